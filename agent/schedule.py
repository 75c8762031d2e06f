"""Which kernel next. Pure: from what the ledger says of each to a choice, and to the gain of the
whole by Amdahl's law (1967).

A kernel has a share of the run time of whatever it is a part of (a model, say), given by a plan or
taken to be equal. It is worked on in visits: a visit ends by its rule (stop.py), and the next goes
to the kernel from which most is to be expected.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import Refused
from .records import Experiment
from .report import Report

RECENT = 10  # experiments by which success is told


@dataclass(frozen=True)
class Standing:
    """Where a kernel stands: its `share` of the run time before anything was kept, how much
    faster it has become, percent of its roof, and the experiments on it (not the starter), of which
    `recent` are those kept of the last RECENT."""

    kernel: str
    share: float
    gained: float
    pct_roof: float | None
    tried: int
    kept: int
    recent: int

    @property
    def expected(self) -> float:
        """What part of the run time may yet go: the time that the kernel takes by now, its distance
        to the roof, and how often the last experiments gained (by Laplace's rule)."""
        above = 1 - min(self.pct_roof or 0.0, 100.0) / 100
        success = (self.recent + 1) / (min(self.tried, RECENT) + 2)
        return self.share / self.gained * above * success


def standing(kernel: str, share: float, experiments: Sequence[Experiment]) -> Standing:
    """From all experiments on the kernel, in order, the starter first."""
    tried = [e for e in experiments if not e.starter]
    return Standing(
        kernel=kernel,
        share=share,
        gained=gained(tried),
        pct_roof=pct_roof(experiments),
        tried=len(tried),
        kept=sum(e.kept for e in tried),
        recent=sum(e.kept for e in tried[-RECENT:]),
    )


def gained(tried: Sequence[Experiment]) -> float:
    """How much faster a kernel has become by these experiments: each was measured against the one
    that was kept before it."""
    return math.prod(e.speedup.ratio for e in tried if e.kept and e.speedup)


def reverts(tried: Sequence[Experiment]) -> int:
    """How many of the last experiments in a row were not kept."""
    return next((n for n, e in enumerate(reversed(tried)) if e.kept), len(tried))


def pct_roof(experiments: Sequence[Experiment]) -> float | None:
    """Of the kernel as it is now: the least share of the roof over the timed cases, in percent."""
    now = next((e for e in reversed(experiments) if e.kept or e.starter), None)
    timings = Report.parse(now.timed).timings if now else ()
    return min((t.pct_roof for t in timings if t.pct_roof is not None), default=None)


def choose(standings: Iterable[Standing], over: Collection[str]) -> Standing | None:
    """The kernel to visit next, of those that are not over for this run."""
    left = [s for s in standings if s.kernel not in over]
    return max(left, key=lambda s: s.expected, default=None)


def whole(standings: Sequence[Standing]) -> float:
    """How much faster the whole has become, of which the kernels are parts (Amdahl's law)."""
    rest = 1 - sum(s.share for s in standings)
    return 1 / (rest + sum(s.share / s.gained for s in standings))


def equal(kernels: Sequence[str]) -> dict[str, float]:
    """The shares of kernels of which nothing is known."""
    return dict.fromkeys(kernels, 1 / len(kernels))


def read_plan(file: Path) -> dict[str, float]:
    """Kernel -> share, of a YAML or JSON file: `kernels: [{kernel: PATH, share: 0.31}, ...]`.
    Paths are relative to the folder that one is in. Raises Refused."""
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))["kernels"]
        shares = {str(entry["kernel"]): float(entry["share"]) for entry in entries}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"{file}: expected `kernels:` with a `kernel` and a `share` each, got {error!r}"
        ) from error
    if not shares or not all(0 < s <= 1 for s in shares.values()) or sum(shares.values()) > 1.001:
        raise Refused(
            f"{file}: expected shares of the run time above 0 that sum to 1 at most, got "
            f"{', '.join(f'{kernel}: {share:g}' for kernel, share in shares.items()) or 'none'}"
        )
    return shares


def to_json(shares: Mapping[str, float]) -> dict[str, Any]:
    """A plan, as `read_plan` takes it."""
    return {"kernels": [{"kernel": kernel, "share": share} for kernel, share in shares.items()]}
