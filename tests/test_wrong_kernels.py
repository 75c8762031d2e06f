"""Every planted kernel is killed by the stage, and for the reason, that its docstring states."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_autokernel import candidate, plan
from pytest_autokernel.collection import seeded
from pytest_autokernel.examination import Examination
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.timing import measure
from pytest_autokernel.verdict import Verdict
from tests.conftest import WRONG

SMALL: dict[str, dict[str, int]] = {
    "softmax": {"rows": 64, "cols": 256},
    "matmul": {"M": 64, "N": 64, "K": 64},
}
HANGING_S = 2  # the time that a kernel has whose flaw is that it takes for ever
FILES = sorted(WRONG.glob("*.py"))
# What differences.py calls wrong numbers; and what reads them from where nothing is may crash.
NUMBERS = {
    *("value", "precision", "dtype", "scale", "boundary", "tail", "rows", "wrong", "off by"),
    *("NaN", "infinity", "SIGSEGV"),
}


@dataclass(frozen=True)
class Claim:
    """What kills a kernel, from `Killed by STAGE: PATTERN`, and the pattern of the reason. More
    than one stage, joined by |, where the inputs decide which comes first. STAGE[CHECK] where one
    check alone is to do it, in any dtype: the stage's others are left out, since it would take the
    interpreter many seconds to pass them."""

    stages: frozenset[str]
    check: str | None
    pattern: str

    @staticmethod
    def of(path: Path) -> Claim:
        found = re.search(r'Killed by ([\w|]+)(?:\[(\w+)\])?: (.+?)\n?"""', path.read_text())
        assert found, f"{path.name}: its docstring does not say what kills it"
        return Claim(frozenset(found[1].split("|")), found[2], found[3])

    def concerns(self, check: plan.Check) -> bool:
        return check.stage in self.stages and self.check in (None, check.case.name)


def says(pattern: str) -> str:
    """What a reason has to match. A claim of wrong numbers is one of any kind of them: which it
    looks like depends on the inputs, and these on the run's seed."""
    return "|".join([pattern, *NUMBERS]) if NUMBERS & set(pattern.split("|")) else pattern


def allowed_by(text: str) -> tuple[str, ...]:
    """What the user is taken to have allowed: all, for kernels whose flaw is not that."""
    return ("*",) if "Hybrid." in text else ()


@pytest.fixture
def killed(
    judge: Judge, own_cpu: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path, Claim], tuple[str, str]]]:
    """The stage that a kernel dies in, of smoke and the claimed ones, and why; or no stage."""
    before = judge.settings
    not_shrinking = replace(plan.AMOUNTS["normal"], shrink_s=0)
    monkeypatch.setitem(plan.AMOUNTS, "normal", not_shrinking)

    def killed(path: Path, claim: Claim) -> tuple[str, str]:
        kernel = candidate.read(path)
        hangs = "no answer" in claim.pattern
        judge.settings = replace(
            before,
            allow=allowed_by(kernel.text),
            cpus=own_cpu,
            timeout_s=HANGING_S if hangs else before.timeout_s,
        )
        subject, op = WorkerSubject(judge, kernel), judge.op(kernel.op)
        target = plan.target(subject.target, "normal")
        under = Examination(judge, subject, op, target, {}, "")
        with closing(subject):
            for check in plan.checks(op, kernel.supports, target, "normal"):
                if check.stage == "smoke" or claim.concerns(check):
                    outcome = under.outcome(seeded(check, judge.settings.seed))
                    if outcome.verdict is not Verdict.PASS:
                        return check.stage, f"{outcome.case}: {outcome.reason}"
            if "roofline" in claim.stages:
                on_gpu = subject.device == "cuda"
                case = Case("small", op.sizes["large"] if on_gpu else SMALL[op.name], "fp32")
                timing = measure(judge, subject, op, case)
                if timing.verdict is not Verdict.PASS:
                    return "roofline", f"{case}: {timing.reason}"
        return "none", "it survived"

    yield killed
    judge.settings = before


def cases() -> Iterator[object]:
    for path in FILES:
        marks = [pytest.mark.gpu] if "Needs a GPU." in path.read_text() else []
        yield pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.parametrize("path", list(cases()))
def test_a_wrong_kernel_is_killed_for_its_own_reason(
    judge: Judge, killed: Callable[[Path, Claim], tuple[str, str]], path: Path
) -> None:
    claim = Claim.of(path)
    if "On a CPU." in path.read_text() and judge.hardware.gpu is not None:
        pytest.skip("what it does in timed calls it does on a CPU alone")
    stage, reason = killed(path, claim)
    assert stage in claim.stages, reason
    assert re.search(says(claim.pattern), reason), reason
