"""Timing a kernel: what its samples beside others' (session.py) come to.

decide.py draws the conclusions; no stored time takes part in one.
"""

from __future__ import annotations

import statistics

from pytest_autokernel import baselines, decide, gpu
from pytest_autokernel.baseline_times import BaselineTimes
from pytest_autokernel.figures import Comparison, Timing
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case, Op
from pytest_autokernel.session import KERNEL, MEASURED_LIMIT, Samples, Session, l2_of
from pytest_autokernel.subjects import Subject
from pytest_autokernel.verdict import CandidateError, Verdict


def measure(judge: Judge, subject: Subject, op: Op, case: Case) -> Timing:
    """Time a case against the user's baseline, which decides how long is measured, and against
    the op's own, which are there to be printed."""
    try:
        session, trial, samples = _measured(judge, subject, op, case)
    except CandidateError as error:
        l2, why = l2_of(judge, subject), error.reason
        return Timing(case, [], {}, None, None, {}, l2, error.verdict, why)
    beside = {name: blocks for name in session.others if (blocks := samples.against(name))}
    comparisons = {name: session.printed(blocks) for name, blocks in beside.items()}
    times = BaselineTimes(judge, op, case, subject.device, session.l2)
    times.keep({name: c.others_us for name, c in comparisons.items() if name in op.baselines})
    kept = times.kept([n for n in op.baselines if n not in {**comparisons, **session.missing}])
    taken = [us for block in samples.blocks for us in block[KERNEL]]
    time_us = statistics.median(taken)
    session.resolve(time_us)
    roofline, sheet = session.roofline(time_us), session.sheet(time_us)
    fault = _too_fast(roofline, sheet, judge.hardware.spec) or session.witness.clock_fault(time_us)
    if trial is not None:
        comparisons[baselines.USERS] = _decided(trial)
        fault = fault or _slower(trial)
    verdict = Verdict.FAIL if fault else Verdict.PASS
    return Timing(
        case,
        taken,
        session.facts(samples),
        roofline,
        sheet,
        comparisons,
        session.l2,
        verdict,
        fault,
        session.missing,
        kept,
    )


def _measured(
    judge: Judge, subject: Subject, op: Op, case: Case
) -> tuple[Session, decide.Trial | None, Samples]:
    """All is measured afresh without a baseline that fails: it decides nothing, and whom it ran
    beside is then the same in all blocks."""
    failed: dict[str, str] = {}
    while True:
        session = Session(judge, subject, op, case, failed)
        try:
            return session, *(session.tried() if session.named else session.looked_at())
        except baselines.BaselineError as error:
            failed[error.name] = error.reason


def _decided(trial: decide.Trial) -> Comparison:
    blocks = [*(trial.confirmation or trial.first)]
    return Comparison(trial.estimate, trial.answer, bool(trial.confirmation), blocks)


def _too_fast(
    measured: gpu.Roofline, sheet: gpu.Roofline | None, spec: gpu.GpuSpec | None
) -> str | None:
    if sheet and spec and (reason := gpu.beyond_roof(sheet, spec.ceilings())):
        return reason
    if measured.pct > 100 * MEASURED_LIMIT:
        return (
            f"{measured.pct:.0f} % of the measured roof ({measured.bound}): faster than the "
            "device can be; work is skipped or the clock is wrong"
        )
    return None


def _slower(trial: decide.Trial) -> str | None:
    if trial.answer is not decide.Change.SLOWER:
        return None
    found = trial.estimate
    return (
        f"SLOWER: {found.ratio:.3f} times the baseline's speed, {found.confidence:.1%} interval "
        f"[{found.low:.3f}, {found.high:.3f}], threshold {trial.rule.threshold:.1%}"
    )
