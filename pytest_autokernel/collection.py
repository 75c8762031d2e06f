"""Kernel files as test files: which files they are, and the module that stands for one.

Collecting a kernel file reads its text and runs none of it. That holds for a broken or
hostile file too, and for one that no longer looks like a kernel: under `--autokernel` a file
in a `kernels` folder, or given as an argument, is never imported by pytest.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_autokernel import candidate, plan
from pytest_autokernel.candidate import KernelFileError
from pytest_autokernel.judge import Judge, derived_seed
from pytest_autokernel.ops import OpError
from pytest_autokernel.plan import STAGES, Check
from pytest_autokernel.subjects import WorkerSubject

MARK = re.compile(r"^KERNEL_TYPE\b", re.MULTILINE)
FUNCTIONS = (*STAGES, "roofline")
# What is collected where a part of it is asked for.
PARTS = {"binary": ("binary",), "screen": ("smoke", "roofline")}
PLACE: pytest.StashKey[int] = pytest.StashKey()  # of an item among those of its kernel file


def is_kernel_file(path: Path, parent: pytest.Collector) -> bool:
    """Whether `path` is judged as a kernel and not imported as a test module."""
    config = parent.config
    if path.suffix != ".py" or path.name in {"conftest.py", "__init__.py"}:
        return False
    inside = path.relative_to(config.rootpath).parts if path.is_relative_to(config.rootpath) else ()
    if "kernels" in inside[:-1]:
        return not path.name.startswith("_")
    if any(fnmatch.fnmatch(path.name, pattern) for pattern in config.getini("python_files")):
        return False
    explicit = parent.session.isinitpath(path)
    return explicit or bool(MARK.search(path.read_text(encoding="utf-8", errors="replace")))


class KernelModule(pytest.Module):
    """One kernel file. Its tests are those of suite.py."""

    judge: Judge
    kernel: candidate.KernelFile
    checks: list[Check]

    @classmethod
    def of(cls, parent: pytest.Collector, path: Path, judge: Judge) -> KernelModule:
        module: KernelModule = cls.from_parent(parent, path=path)
        module.judge = judge
        return module

    def _getobj(self) -> ModuleType:
        from pytest_autokernel import suite

        return suite

    def funcnamefilter(self, name: str) -> bool:
        part = PARTS.get(self.judge.settings.asked or "")
        if part is not None:
            return name in part
        return name in FUNCTIONS or (name == "sanitizer" and bool(self.tools))

    def classnamefilter(self, name: str) -> bool:
        return False

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        try:
            self.kernel = candidate.read(self.path)
            self.op = self.judge.op(self.kernel.op)
            self._claims()
        except (KernelFileError, OpError) as error:
            yield Unreadable.of(self, str(error))
            return
        self._plan()
        for place, item in enumerate(super().collect()):
            item.stash[PLACE] = place
            # pytest would show suite.py as the place of every item.
            item.__dict__["location"] = (self.nodeid, 0, item.name)
            yield item

    @property
    def selected(self) -> list[Check]:
        """The checks of the items that are to be run."""
        items = [item for item in self.session.items if item.getparent(KernelModule) is self]
        params = [item.callspec.params for item in items if hasattr(item, "callspec")]
        return [each["check"] for each in params if "check" in each]

    def _claims(self) -> None:
        unknown = self.kernel.supports - set(self.op.extensions)
        if unknown:
            known = ", ".join(self.op.extensions) or "none"
            raise KernelFileError(
                f"{self.path}: SUPPORTS claims {', '.join(sorted(unknown))}, "
                f"which {self.op.name} does not have: expected some of {known}"
            )

    def _plan(self) -> None:
        settings = self.judge.settings
        self.subject = WorkerSubject(self.judge, self.kernel)
        self.judge.nursery(self.subject.interpreted).start()
        self.target = plan.target(
            self.subject.target, settings.effort, self.judge.hardware.gpu_memory
        )
        self.checks = [
            seeded(check, settings.seed)
            for check in plan.checks(self.op, self.kernel.supports, self.target, settings.effort)
        ]
        self.tools = plan.tools(self.target.name, settings.effort)
        self.timed = plan.timed_cases(self.op, self.target.name)


class Unreadable(pytest.Item):
    """The one item of a kernel file that cannot be judged: it fails with the reason."""

    reason: str

    @classmethod
    def of(cls, parent: KernelModule, reason: str) -> Unreadable:
        item: Unreadable = cls.from_parent(parent, name="smoke[source]")
        item.reason = reason
        return item

    def runtest(self) -> None:
        from pytest_autokernel.examination import RECORD

        assert self.parent is not None
        about: dict[str, Any] = {
            "path": self.parent.nodeid,
            "op": None,
            "backend": None,
            "device": None,
            "sha256": None,
            "supports": [],
            "not_claimed": [],
            "left_out": [],
        }
        record = {
            "id": self.nodeid,
            "stage": "smoke",
            "case": "source",
            "verdict": "FAIL",
            "seconds": 0.0,
            "completed": 0,
            "worst": None,
            "reason": self.reason,
        }
        self.stash[RECORD] = {"kernel": about, "item": record}
        pytest.fail(self.reason, pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name


def in_order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The same items: those of a kernel file one after the other, as they were collected, in the
    places that kernel files have. Who shuffles tests may shuffle the files; the tests of one are
    one examination, which begins with smoke and ends with the roofline."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        if module := item.getparent(KernelModule):
            files.setdefault(module.nodeid, []).append(item)
    for its in files.values():
        its.sort(key=lambda item: item.stash.get(PLACE, 0))
    theirs = (item for its in files.values() for item in its)
    return [next(theirs) if item.getparent(KernelModule) else item for item in items]


def seeded(check: Check, seed: int) -> Check:
    """The check with its own seed, derived from the run's."""
    case = dataclasses.replace(check.case, seed=derived_seed(seed, check.stage, check.id))
    return dataclasses.replace(check, case=case)
