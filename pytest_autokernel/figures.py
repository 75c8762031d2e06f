"""What timing a kernel came to, as a value: its samples, and how it compares with others."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_autokernel import decide, gpu
from pytest_autokernel.baseline_times import Kept
from pytest_autokernel.op import Case
from pytest_autokernel.verdict import Verdict


@dataclass(frozen=True)
class Comparison:
    """The kernel against one other: `estimate.ratio` is the other's time over the kernel's.

    `confirmed` says that the estimate comes from a second, fresh set of rounds."""

    estimate: decide.Estimate
    decision: decide.Answer
    confirmed: bool
    blocks: list[decide.Block]

    @property
    def others_us(self) -> float:
        """The other's median time."""
        return statistics.median(us for other, _ in self.blocks for us in other)


@dataclass(frozen=True)
class Timing:
    """What timing one case came to. Times in microseconds, memory in MB.

    `missing` are baselines that were asked for and are missing, with the reason; `kept` are those
    that were not, as an earlier run found them."""

    case: Case
    samples_us: list[float]
    facts: Mapping[str, Any]
    roofline: gpu.Roofline | None
    sheet: gpu.Roofline | None
    comparisons: Mapping[str, Comparison]
    l2: str
    verdict: Verdict = Verdict.PASS
    reason: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Kept] = field(default_factory=dict)

    @property
    def time_us(self) -> float | None:
        return statistics.median(self.samples_us) if self.samples_us else None

    def summary(self) -> dict[str, Any]:
        """The figures beside the samples."""
        peak, roof = self.facts.get("peak_bytes"), self.roofline
        others = ("calls", "captured", "floor_us", "sm_mhz", "throttled")
        return {
            "name": self.case.name,
            "case": str(self.case),
            "time_us": self.time_us,
            "tflops": roof.tflops if roof else None,
            "gb_s": roof.gb_s if roof else None,
            "pct_roof": roof.pct if roof else None,
            "pct_datasheet": self.sheet.pct if self.sheet else None,
            "roof": {"gb_s": roof.roof_gb_s, "tflops": roof.roof_tflops} if roof else None,
            "peak_mb": peak / 1e6 if peak is not None else None,
            "l2": self.l2,
            "resources": self.facts.get("resources", []),
            **{name: self.facts.get(name) for name in others},
        }

    def to_json(self) -> dict[str, Any]:
        return {
            **self.summary(),
            "comparisons": {
                name: {
                    "ratio": c.estimate.ratio,
                    "low": c.estimate.low,
                    "high": c.estimate.high,
                    "confidence": c.estimate.confidence,
                    "decision": str(c.decision),
                    "confirmed": c.confirmed,
                    "blocks": [[list(a), list(b)] for a, b in c.blocks],
                }
                for name, c in self.comparisons.items()
            },
            "missing": dict(self.missing),
            "cached": {name: kept.to_json() for name, kept in self.kept.items()},
        }
