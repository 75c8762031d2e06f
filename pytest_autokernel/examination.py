"""One kernel under examination: each check judged, recorded for the report, and failed with
words that a reader can act on."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from pytest_autokernel import plan, strategies
from pytest_autokernel.judge import Judge, derived_seed
from pytest_autokernel.op import Case, Op
from pytest_autokernel.plan import Check, Target, Tool
from pytest_autokernel.subjects import Subject
from pytest_autokernel.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from pytest_autokernel.ahead import Ahead
    from pytest_autokernel.collection import KernelModule
    from pytest_autokernel.figures import Timing

# What an item leaves for the report: JSON-able, so that it survives xdist.
RECORD: pytest.StashKey[dict[str, Any]] = pytest.StashKey()


class Examination:
    """A subject, its op, and what became of its smoke stage."""

    def __init__(
        self,
        judge: Judge,
        subject: Subject,
        op: Op,
        target: Target,
        about: dict[str, Any],
        replay: str,
    ) -> None:
        self.judge_ = judge
        self.subject = subject
        self.op = op
        self.target = target
        self.about = about
        self.replay = replay
        self.smoke_failure: str | None = None
        self.ahead: Ahead | None = None  # what compiles while the stages go
        self.unable = about.get("skipped")  # why the kernel cannot be run here

    def compile_ahead(self, checks: Sequence[Check]) -> None:
        """Begin to compile what these need, but for the sizes that are drawn, beside them."""
        from pytest_autokernel import ahead

        if (kernel := self.subject.file) and self.subject.device == "cuda":
            special = (self._special(check) for check in checks if check.kind == "drawn")
            cases = [*(check.case for check in checks if check.kind != "drawn"), *chain(*special)]
            self.ahead = ahead.begin(self.judge_, kernel, self.op, cases)

    def judge(self, check: Check, item: pytest.Item) -> None:
        """Run one check as a test item: record it, and fail or skip with the reason."""
        if self.unable:
            self._record(item, check.stage, str(check.case), "SKIP", reason=self.unable)
            pytest.skip(self.unable)
        if self.smoke_failure and check.stage != "smoke":
            self._record(item, check.stage, str(check.case), "SKIP", reason=self.smoke_failure)
            pytest.skip(f"smoke failed: {self.smoke_failure}")
        start = time.monotonic()
        outcome = self.outcome(check)
        if check.stage == "smoke" and outcome.verdict is not Verdict.PASS:
            self.smoke_failure = outcome.reason
        self._settle(item, check.stage, outcome, time.monotonic() - start)

    def compile(self, item: pytest.Item) -> None:
        """Find out what the kernel would do in its timed cases, and what it takes, by compiling it
        alone, as a test item; fails where the GPU would refuse it."""
        from pytest_autokernel import binaries

        kernel, start = self.subject.file, time.monotonic()
        assert kernel is not None
        cases = plan.timed_cases(self.op, self.target.name)
        gpu = self.judge_.hardware.gpu if self.subject.device == "cuda" else None
        target = binaries.target_of(gpu)
        found = binaries.binary(self.judge_, kernel, self.op, cases, target)
        self.about |= {"binary": found.digest, "resources": found.resources}
        if found.unfit:
            self._settle(item, "binary", found.unfit, time.monotonic() - start)
        self._record(item, "binary", "timed cases", "PASS", time.monotonic() - start)

    def sanitize(self, tool: Tool, item: pytest.Item) -> None:
        """Judge some small cases under one of compute-sanitizer's tools as a test item; skips
        where the tool says nothing about the kernel."""
        from pytest_autokernel import instrumented

        kernel, start = self.subject.file, time.monotonic()
        assert kernel is not None
        cases = [
            replace(case, seed=derived_seed(self.judge_.settings.seed, "sanitizer", case.id))
            for case in plan.tool_cases(self.op, self.subject.supports)
        ]
        reason = self.smoke_failure and f"smoke failed: {self.smoke_failure}"
        if not reason:
            try:
                outcome = instrumented.judged(
                    self.judge_, kernel, self.subject.device, self.op, cases, tool
                )
            except instrumented.NoFindings as error:
                reason = str(error)
        if reason:
            self._record(item, "sanitizer", tool, "SKIP", time.monotonic() - start, reason=reason)
            pytest.skip(reason)
        self._settle(item, "sanitizer", outcome, time.monotonic() - start)

    def _settle(self, item: pytest.Item, stage: str, outcome: Outcome, seconds: float) -> None:
        """Record what an item came to, and fail it unless that is a pass."""
        reason = self._words(outcome) if outcome.verdict is not Verdict.PASS else None
        self._record(
            item,
            stage,
            str(outcome.case),
            outcome.verdict,
            seconds,
            outcome.completed,
            outcome.worst,
            reason,
            outcome.hybrid,
        )
        if reason:
            words = f"{outcome.verdict}: {reason}\n{self._replay_line(item)}"
            pytest.fail(words, pytrace=False)

    def outcome(self, check: Check) -> Outcome:
        """Judge one check, with no test item in sight."""
        amount = plan.AMOUNTS[self.judge_.settings.effort]
        if check.kind == "drawn":
            return self._drawn(check, amount)
        repeats = amount.repeats if check.kind == "repeat" else 1
        return self.judge_.check(
            self.subject, self.op, check.case, check.kind, check.relation, repeats
        )

    def time(self, case: Case, item: pytest.Item) -> Timing:
        """Measure one case against the baselines; skips where there is nothing to time."""
        from pytest_autokernel import timing
        from pytest_autokernel.session import TooShort

        reason = self.smoke_failure and f"smoke failed: {self.smoke_failure}"
        if self.unable:
            reason = self.unable
        elif self.target.name == "interpreter":
            reason = (
                "Triton's interpreter on the CPU says nothing about a GPU's speed; no CUDA GPU here"
            )
        elif hasattr(item.config, "workerinput"):
            reason = "samples need the machine for themselves: run without pytest-xdist's -n"
        if reason:
            self._record(item, "roofline", str(case), "SKIP", reason=reason)
            pytest.skip(reason)
        if self.ahead:
            self.ahead.close()
        start = time.monotonic()
        try:
            measured = timing.measure(self.judge_, self.subject, self.op, case)
        except TooShort as short:
            self._record(item, "roofline", str(case), "SKIP", reason=str(short))
            pytest.skip(str(short))
        self._record(
            item,
            "roofline",
            str(case),
            measured.verdict,
            time.monotonic() - start,
            reason=measured.reason,
        )
        if measured.samples_us:
            item.stash[RECORD]["timing"] = measured.to_json()
        return measured

    def accept(self, timing: Timing) -> None:
        """Fail the item where the kernel is wrong, impossibly fast, or slower than its baseline."""
        if timing.reason:
            pytest.fail(f"{timing.verdict}: {timing.reason}", pytrace=False)

    def _drawn(self, check: Check, amount: plan.Amount) -> Outcome:
        """The sizes that the source names, then what Hypothesis draws; a failure is shrunk."""
        worst, completed = 0.0, 0
        hybrid: set[str] = set()
        for special in self._special(check):
            outcome = self.judge_.check(self.subject, self.op, special)
            if outcome.verdict is not Verdict.PASS:
                return outcome
            worst, completed = max(worst, outcome.worst), completed + 1
            hybrid |= set(outcome.hybrid)
        searched = self._searched(check, amount)
        return replace(
            searched,
            worst=max(worst, searched.worst),
            completed=completed + searched.completed,
            hybrid=tuple(sorted({*searched.hybrid, *hybrid})),
        )

    def _special(self, check: Check) -> Iterator[Case]:
        """The sizes that the source names, and those beside them."""
        case = check.case
        dtypes = self.op.dtypes[: plan.AMOUNTS[self.judge_.settings.effort].dtypes]
        turn = self.judge_.settings.seed + dtypes.index(case.dtype)
        return strategies.special_cases(
            self.op,
            case.dims,
            case.dtype,
            self.subject.integers,
            case.seed,
            lambda size: (size + turn) % len(dtypes) == 0,
            self._fit,
        )

    def _fit(self, case: Case, kept: str | None) -> Case | None:
        return plan.fit(self.op, case, self.target, kept)

    def _searched(self, check: Check, amount: plan.Amount) -> Outcome:
        strategy = strategies.cases(
            self.op,
            tuple(self.op.claimed(self.subject.supports)),
            check.case.dtype,
            self.subject.integers,
            self._fit,
        )
        outcomes: dict[str, Outcome] = {}

        def passes(case: Case) -> bool:
            outcomes[repr(case)] = self.judge_.check(self.subject, self.op, case)
            return outcomes[repr(case)].verdict is Verdict.PASS

        completed, failed = strategies.search(
            strategy, passes, amount.drawn, amount.shrink_s, check.case.seed
        )
        if failed is not None:
            return outcomes[repr(failed)]
        if completed < amount.drawn:
            reason = f"only {completed} of {amount.drawn} drawn cases were completed"
            return Outcome(Verdict.FAIL, check.case, completed, reason=reason)
        worst = max(outcome.worst for outcome in outcomes.values())
        hybrid = {name for outcome in outcomes.values() for name in outcome.hybrid}
        return Outcome(Verdict.PASS, check.case, completed, worst, hybrid=tuple(sorted(hybrid)))

    def _words(self, outcome: Outcome) -> str:
        return f"{self.op.name} {outcome.case}: {outcome.reason}"

    def _replay_line(self, item: pytest.Item) -> str:
        settings = self.judge_.settings
        words = [self.replay.format(nodeid=item.nodeid), f"--autokernel-seed {settings.seed}"]
        if settings.effort != "normal":
            words.append(f"--autokernel-effort {settings.effort}")
        if settings.allow:
            words.append(f"--autokernel-allow {shlex.quote(','.join(settings.allow))}")
        return f"replay: {' '.join(words)}"

    def _record(
        self,
        item: pytest.Item,
        stage: str,
        case: str,
        verdict: str,
        seconds: float = 0.0,
        completed: int = 0,
        worst: float | None = None,
        reason: str | None = None,
        hybrid: Sequence[str] = (),
    ) -> None:
        item.stash[RECORD] = {
            "kernel": self.about,
            "item": {
                "id": item.nodeid,
                "stage": stage,
                "case": case,
                "verdict": str(verdict),
                "seconds": round(seconds, 3),
                "completed": completed,
                "worst": worst if worst is None or worst < 1e300 else None,
                "reason": reason,
                "hybrid": list(hybrid),
            },
        }


@contextlib.contextmanager
def of_file(module: KernelModule) -> Iterator[Examination]:
    """The examination of a kernel file, whose worker ends with it."""
    about = about_file(module)
    replay = "pytest --autokernel '{nodeid}'"
    subject = module.subject
    found = Examination(module.judge, subject, module.op, module.target, about, replay)
    try:
        # Effort quick has few checks; pytest-xdist's workers would all do the same.
        if module.judge.settings.effort != "quick" and not hasattr(module.config, "workerinput"):
            found.compile_ahead(module.selected)
        yield found
    finally:
        if found.ahead:
            found.ahead.close()
        subject.close()


def about_file(module: KernelModule) -> dict[str, Any]:
    """What the report says of a kernel file."""
    kernel = module.kernel
    return {
        "path": module.nodeid,
        "op": kernel.op,
        "backend": kernel.backend,
        "device": module.target.name,
        "sha256": kernel.sha256,
        "supports": sorted(kernel.supports),
        "not_claimed": [e for e in module.op.extensions if e not in kernel.supports],
        "left_out": plan.left_out(
            module.op, kernel.supports, module.target, module.judge.settings.effort
        ),
        "weights": {case.name: module.op.weights.get(case.name, 1) for case in module.timed},
        "critical": sorted(module.op.critical),
        "skipped": module.subject.unable,
    }


def of_callable(judge: Judge, subject: Subject, op: Op, name: str) -> Examination:
    """The examination of a callable from a user's own test."""
    target = plan.target(subject.target, judge.settings.effort, judge.hardware.gpu_memory)
    about = {
        "path": name,
        "op": op.name,
        "backend": "callable",
        "device": target.name,
        "sha256": None,
        "supports": sorted(subject.supports),
        "not_claimed": [e for e in op.extensions if e not in subject.supports],
        "left_out": [],
    }
    return Examination(judge, subject, op, target, about, "pytest '{nodeid}'")
