"""Right kernels in unusual styles: each passes all that it is judged on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_autokernel import candidate, plan
from pytest_autokernel.collection import seeded
from pytest_autokernel.examination import Examination
from pytest_autokernel.judge import Judge
from pytest_autokernel.settings import Effort
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import Verdict
from tests.conftest import ROOT
from tests.test_wrong_kernels import allowed_by

EFFORT: dict[bool, Effort] = {False: "quick", True: "normal"}
FILES = sorted((ROOT / "tests" / "odd_kernels").glob("*.py"))


@pytest.fixture
def lenient(judge: Judge) -> Iterator[Judge]:
    before = judge.settings
    yield judge
    judge.settings = before


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_right_kernel_passes_however_odd_its_style(lenient: Judge, path: Path) -> None:
    judge, kernel = lenient, candidate.read(path)
    if "On a CPU:" in kernel.text and judge.hardware.gpu is not None:
        pytest.skip(kernel.text.partition("On a CPU: ")[2].partition(".")[0])
    judge.settings = replace(
        judge.settings, allow=allowed_by(kernel.text), effort=EFFORT[judge.hardware.gpu is not None]
    )
    subject, op = WorkerSubject(judge, kernel), judge.op(kernel.op)
    effort = judge.settings.effort
    target = plan.target(subject.target, effort)
    under = Examination(judge, subject, op, target, {}, "")
    with closing(subject):
        for check in plan.checks(op, kernel.supports, target, effort):
            outcome = under.outcome(seeded(check, judge.settings.seed))
            assert outcome.verdict is Verdict.PASS, f"{check.stage}[{check.id}]: {outcome}"
