"""Every planted kernel is killed by the stage, and for the reason, that its docstring states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_autokernel import candidate, plan
from pytest_autokernel.collection import seeded
from pytest_autokernel.examination import Examination
from pytest_autokernel.judge import Judge
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import Outcome, Verdict
from tests.conftest import WRONG

FILES = sorted(WRONG.glob("*.py"))


def claim(path: Path) -> tuple[str, str]:
    """The stage and the pattern of the reason, from `Killed by STAGE: PATTERN`."""
    found = re.search(r'Killed by (\w+): (.+?)"""', path.read_text())
    assert found, f"{path.name}: its docstring does not say what kills it"
    return found[1], found[2]


def outcomes(judge: Judge, path: Path, stage: str) -> list[Outcome]:
    """What smoke comes to, and if it is passed, what the first failing check of `stage` does."""
    kernel = candidate.read(path)
    subject, op = WorkerSubject(judge, kernel), judge.op(kernel.op)
    target = plan.target(subject.target, "normal")
    under = Examination(judge, subject, op, target, {}, "")
    seen = []
    try:
        for check in plan.checks(op, kernel.supports, target, "normal"):
            if check.stage in {"smoke", stage}:
                seen.append(under.outcome(seeded(check, judge.settings.seed)))
                if seen[-1].verdict is not Verdict.PASS:
                    break
    finally:
        subject.close()
    return seen


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_wrong_kernel_is_killed_for_its_own_reason(judge: Judge, path: Path) -> None:
    stage, pattern = claim(path)
    seen = outcomes(judge, path, stage)
    assert seen[-1].verdict is not Verdict.PASS, "it survived"
    assert re.search(pattern, f"{seen[-1].case}: {seen[-1].reason}")
    killed_in_smoke = seen[-1].case.name == seen[0].case.name
    assert killed_in_smoke == (stage == "smoke")
