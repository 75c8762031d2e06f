"""A made-up night of experiments on a GPU: a ledger with every outcome, noise and hostile words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autokernel_agent.ledger import Ledger
from autokernel_agent.records import Closing, Experiment, commit_message
from autokernel_agent.report import Decision, Report, Verdict

from . import agent_fakes
from .agent_fakes import KERNEL
from .agent_repository import PATH, opened, user_repository

HOSTILE = '</script><script>window.stolen = 1</script><img src=x onerror="stolen = 1">'
H200 = {
    "device": "NVIDIA H200",
    "driver": "570.86.15",
    "max_sm_mhz": 1980.0,
    "torch": "2.13.0",
    "triton": "3.7.1",
    "python": "3.12.8",
    "cpus": 16,
}
CASES = {"4096x4096 bf16": (0.62, 2.1), "8192x32768 bf16": (0.625, 2.9)}
BLOCKS, SAMPLES = 8, 6


@dataclass(frozen=True)
class Tried:
    """One experiment to make up: what was tried, and the ratio and the outcome that it came to."""

    description: str
    outcome: str
    ratio: float | None = None
    reason: str | None = None

    @property
    def verdict(self) -> Verdict:
        verdicts: dict[str, Verdict] = {"FAIL": "FAIL", "CRASH": "CRASH", "TIMEOUT": "TIMEOUT"}
        return verdicts.get(self.outcome, "PASS")

    @property
    def decision(self) -> Decision | None:
        decisions: dict[str, Decision | None] = {"starter": None, "KEEP": "KEEP"}
        undecided: Decision = "UNDECIDED" if self.outcome == "UNDECIDED" else "REVERT"
        return decisions.get(self.outcome, undecided)


WRONG = "softmax 32x777 bf16: value: at [21, 216] got 0.05, expected 4.4e-05"
NIGHT = (
    Tried("starter", "starter"),
    Tried("block 1024 -> 2048", "REVERT", 0.931),
    Tried("warps 4 -> 8", "KEEP", 1.412),
    Tried("no mask on the last tile", "FAIL", 1.6, WRONG),
    Tried("two rows for each program", "UNDECIDED", 1.008),
    Tried("warps 8 -> 16", "REVERT", 0.874),
    Tried("one pass over the row, with a running maximum", "KEEP", 1.237),
    Tried("a persistent kernel", "CRASH", None, "worker ended by SIGSEGV\n  at frame 0\n  at 1"),
    Tried(f"fast exp2 {HOSTILE}", "KEEP", 1.064),
    Tried("spin until the other block is done", "TIMEOUT", None, f"no result in 30 s {HOSTILE}"),
    Tried("block 2048 -> 8192", "REVERT", 0.213),
    Tried("stages 2 -> 3", "UNDECIDED", 0.998),
    Tried("needs more shared memory than there is", "REVERT", None, "too short to resolve"),
)


def made_up(folder: Path, night: tuple[Tried, ...] = NIGHT, closing: bool = True) -> Path:
    """A repository whose tag `night` holds this night."""
    repo = user_repository(folder)
    with opened(repo, "night") as ledger:
        chance = random.Random(1)
        for number, tried in enumerate(night):
            ledger.append(experiment(ledger, number, tried, chance))
        if closing:
            ledger.append(_closing(ledger, chance))
    return repo


def experiment(ledger: Ledger, number: int, tried: Tried, chance: random.Random) -> Experiment:
    parent = ledger.tip or ledger.repository.head()
    raw = _raw(tried, number, chance)
    whole = Report.parse(raw).whole
    found = Experiment(
        experiment=number,
        kernel=PATH,
        kernel_type="softmax",
        description=tried.description,
        proposer="tuner",
        seed=1000 + number,
        parent=parent,
        commit=parent,
        verdict=tried.verdict,
        decision=tried.decision,
        reason=tried.reason,
        speedup=whole.speedup if whole else None,
        started=f"2026-11-21T0{number // 6}:{number % 6}0:00+00:00",
        seconds=41.5 + number,
        reports=(raw,),
    )
    if tried.outcome == "starter":
        return found
    text = KERNEL.replace('"width": 1', f'"width": {number}') + f"\n# {tried.description}\n"
    commit = ledger.repository.commit(parent, PATH, text, commit_message(found, "night"))
    return Experiment(**{**found.__dict__, "commit": commit})


def _closing(ledger: Ledger, chance: random.Random) -> Closing:
    kept = [e for e in ledger.experiments if e.kept]
    raw = _raw(Tried("", "KEEP", 1.846), 99, chance)
    whole = Report.parse(raw).whole
    assert whole is not None
    return Closing(
        kernel=PATH,
        starter=ledger.experiments[0].commit,
        commit=kept[-1].commit,
        seed=77,
        verdict="PASS",
        reason=None,
        speedup=whole.speedup,
        started="2026-11-21T03:00:00+00:00",
        seconds=50.0,
        reports=(raw,),
    )


def _raw(tried: Tried, seed: int, chance: random.Random) -> dict[str, Any]:
    """What the judge would say."""
    raw = agent_fakes.report(KERNEL, None, seed, full=False)
    raw["environment"] = H200
    (kernel,) = raw["kernels"]
    compared = tried.outcome != "starter"
    timed = tried.ratio is not None or not compared
    kernel["timings"] = [_timing(case, tried, chance) for case in CASES] if timed else []
    kernel["overall"] = _speedup(tried.ratio, tried) if tried.ratio else None
    kernel.update(verdict=tried.verdict, reason=tried.reason)
    return raw


def _speedup(ratio: float, tried: Tried) -> dict[str, Any]:
    interval = {"ratio": ratio, "low": ratio * 0.991, "high": ratio * 1.0085, "confidence": 0.99}
    return {**interval, "decision": tried.decision}


def _timing(case: str, tried: Tried, chance: random.Random) -> dict[str, Any]:
    intensity, tflops = CASES[case]
    ratio = tried.ratio or 1.0
    before_us = 61.3 if case.startswith("4096") else 940.0
    blocks = [
        [
            [before_us * chance.gauss(1, 0.004) for _ in range(SAMPLES)],
            [before_us / ratio * chance.gauss(1, 0.004) for _ in range(SAMPLES)],
        ]
        for _ in range(BLOCKS)
    ]
    comparison = {**_speedup(ratio, tried), "confirmed": tried.decision == "KEEP", "blocks": blocks}
    eager = {**comparison, **_speedup(ratio * 0.9, tried)}
    gb_s = tflops * 1e3 / intensity / 1.2
    return {
        "case": case,
        "time_us": before_us / ratio,
        "tflops": tflops / 1.2,
        "gb_s": gb_s,
        "pct_roof": gb_s / 42.5,
        "roof": {"gb_s": 4250.0, "tflops": 740.0},
        "peak_mb": 67.1,
        "l2": "cold",
        "sm_mhz": 1755.0,
        "throttled": 0,
        "comparisons": {"eager": eager} | ({"baseline": comparison} if tried.ratio else {}),
    }
