"""Every planted kernel is killed by the stage, and for the reason, that its docstring states."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_autokernel import candidate, plan
from pytest_autokernel.collection import seeded
from pytest_autokernel.examination import Examination
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.timing import measure
from pytest_autokernel.verdict import Outcome, Verdict
from tests.conftest import WRONG

SMALL: dict[str, dict[str, int]] = {
    "softmax": {"rows": 64, "cols": 256},
    "matmul": {"M": 64, "N": 64, "K": 64},
}
FILES = sorted(WRONG.glob("*.py"))


def claim(path: Path) -> tuple[str, str]:
    """The stage and the pattern of the reason, from `Killed by STAGE: PATTERN`."""
    found = re.search(r'Killed by (\w+): (.+?)\n?"""', path.read_text())
    assert found, f"{path.name}: its docstring does not say what kills it"
    return found[1], found[2]


def allowed_by(text: str) -> tuple[str, ...]:
    """What the user is taken to have allowed: all, for kernels whose flaw is not that."""
    return ("*",) if "Hybrid." in text else ()


@pytest.fixture
def judged(judge: Judge) -> Iterator[Callable[[Path, str], list[Outcome]]]:
    """What smoke comes to, and if it is passed, what the first failing check of a stage does."""
    before = judge.settings

    def outcomes(path: Path, stage: str) -> list[Outcome]:
        kernel = candidate.read(path)
        judge.settings = replace(before, allow=allowed_by(kernel.text), cpus=before.cpus[:1])
        subject, op = WorkerSubject(judge, kernel), judge.op(kernel.op)
        target = plan.target(subject.target, "normal")
        under = Examination(judge, subject, op, target, {}, "")
        seen = []
        with closing(subject):
            for check in plan.checks(op, kernel.supports, target, "normal"):
                if check.stage in {"smoke", stage}:
                    seen.append(under.outcome(seeded(check, judge.settings.seed)))
                    if seen[-1].verdict is not Verdict.PASS:
                        return seen
            if stage == "roofline":
                on_gpu = subject.device == "cuda"
                case = Case("small", op.sizes["large"] if on_gpu else SMALL[op.name], "fp32")
                timing = measure(judge, subject, op, case)
                seen.append(Outcome(timing.verdict, case, 0, reason=timing.reason))
        return seen

    yield outcomes
    judge.settings = before


def cases() -> Iterator[object]:
    for path in FILES:
        marks = [pytest.mark.gpu] if "Needs a GPU." in path.read_text() else []
        yield pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.parametrize("path", list(cases()))
def test_a_wrong_kernel_is_killed_for_its_own_reason(
    judge: Judge, judged: Callable[[Path, str], list[Outcome]], path: Path
) -> None:
    stage, pattern = claim(path)
    if "On a CPU." in path.read_text() and judge.gpu is not None:
        pytest.skip("what it does in timed calls it does on a CPU alone")
    seen = judged(path, stage)
    assert seen[-1].verdict is not Verdict.PASS, "it survived"
    assert re.search(pattern, f"{seen[-1].case}: {seen[-1].reason}")
    killed_in_smoke = seen[-1].case.name == seen[0].case.name
    assert killed_in_smoke == (stage == "smoke")
