"""What the ledger records, and the forms in which others read it. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .report import Decision, Report, Speedup, Timing, Verdict
from .usage import Usage

COLUMNS = (
    "experiment",
    "tag",
    "kernel_type",
    "throughput_tflops",
    "latency_us",
    "pct_peak",
    "speedup_vs_pytorch",
    "correctness",
    "peak_vram_mb",
    "description",
)


@dataclass(frozen=True)
class Experiment:
    """One proposed edit and what became of it.

    `commit` stands on `parent`, the incumbent it was compared with. The starter, the first
    experiment on its kernel, is compared with nothing: its decision and speedup are None, and
    its commit is the one it was found in. `reports` are the judge's own with all samples, the
    screen's first. `binary` is a digest of what it does where it is timed, and `local_bytes` what
    its GPU kernels keep outside of registers, if that is known. One that is `put_off` was not
    judged, because it spills, and may come again.
    """

    experiment: int
    kernel: str
    kernel_type: str
    description: str
    proposer: str
    seed: int
    parent: str
    commit: str
    verdict: Verdict
    decision: Decision | None
    reason: str | None
    speedup: Speedup | None
    started: str
    seconds: float
    reports: tuple[Mapping[str, Any], ...]
    binary: str | None = None
    local_bytes: int | None = None
    put_off: bool = False

    @property
    def kept(self) -> bool:
        return self.decision == "KEEP"

    @property
    def starter(self) -> bool:
        return self.decision is None

    @property
    def timed(self) -> Mapping[str, Any]:
        """The report that its figures are from: the last one with timings."""
        timed = [raw for raw in self.reports if raw["kernels"][0]["timings"]]
        return timed[-1] if timed else self.reports[-1]


@dataclass(frozen=True)
class Closing:
    """The last measurement of a run: the kernel as it is now against its starter, afresh."""

    kernel: str
    starter: str
    commit: str
    seed: int
    verdict: Verdict
    reason: str | None
    speedup: Speedup | None
    started: str
    seconds: float
    reports: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Proposal:
    """What an edit took to be proposed, written before it is judged: money is spent by then.

    `experiment` is the number that the edit has, or would have had: where `failure` says why
    there is none, there was nothing to judge, and so no experiment.
    """

    experiment: int
    kernel: str
    proposer: str
    failure: str | None
    usage: Usage
    started: str
    seconds: float


Judged = Experiment | Closing  # what has the judge's reports
Record = Judged | Proposal

KINDS: Mapping[str, type[Record]] = {
    "experiment": Experiment,
    "closing": Closing,
    "proposal": Proposal,
}
# Fields that are not the same in JSON.
FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "speedup": lambda raw: raw and Speedup(**raw),
    "reports": tuple,
    "usage": lambda raw: Usage(**raw),
}


def to_line(record: Record) -> str:
    kind = next(kind for kind, cls in KINDS.items() if isinstance(record, cls))
    return json.dumps({"kind": kind, **dataclasses.asdict(record)})


def from_line(line: str) -> Record:
    """Raises ValueError, KeyError or TypeError for a line that `to_line` did not write."""
    data = json.loads(line)
    kind = KINDS[data.pop("kind")]
    return kind(**{name: FIELDS.get(name, _same)(value) for name, value in data.items()})


def _same(value: Any) -> Any:
    return value


def results_tsv(experiments: Iterable[Experiment]) -> str:
    rows = [COLUMNS, *(_row(experiment) for experiment in experiments)]
    return "".join("\t".join(row) + "\n" for row in rows)


def _row(experiment: Experiment) -> tuple[str, ...]:
    """The published columns, for the first timed case; empty where there is no figure."""
    report = Report.parse(experiment.timed)
    timing = next(iter(report.timings), None)
    return (
        str(experiment.experiment),
        "baseline" if experiment.decision is None else experiment.decision.lower(),
        experiment.kernel_type,
        _figure(getattr(timing, "tflops", None)),
        _figure(getattr(timing, "time_us", None)),
        _figure(getattr(timing, "pct_roof", None)),
        _figure(_over_pytorch(timing)),
        experiment.verdict,
        _figure(getattr(timing, "peak_mb", None)),
        one_line(experiment.description),
    )


def _over_pytorch(timing: Timing | None) -> float | None:
    """The speedup over the op's own baseline, which stands last."""
    own = [c for name, c in timing.comparisons.items() if name != "baseline"] if timing else []
    return own[0].speedup.ratio if own else None


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def commit_message(experiment: Experiment, tag: str) -> str:
    """What was tried, what came of it, and the commands that judge it again."""
    e, parent = experiment, experiment.parent[:12]
    lines = [f"{e.kernel_type}: {one_line(e.description)}", ""]
    lines += [f"verdict: {e.verdict}" + (f": {one_line(e.reason)}" if e.reason else "")]
    lines += [f"decision: {e.decision}"]
    if e.speedup:
        lines += [f"speedup: {e.speedup} over {parent}, confidence {e.speedup.confidence:g}"]
    for timing in Report.parse(e.timed).timings:
        roof = f", {timing.pct_roof:.3g} % of the roof" if timing.pct_roof is not None else ""
        lines += [f"time: {timing.time_us:.6g} us on {timing.case}{roof}"]
    return "\n".join(
        [
            *lines,
            f"experiment: {tag}/{e.experiment}",
            f"proposer: {e.proposer}",
            f"seed: {e.seed}",
            "reproduce:",
            *(f"  {line}" for line in reproduce(e.kernel, parent, e.seed)),
        ]
    )


def reproduce(kernel: str, baseline: str, seed: int) -> list[str]:
    """The commands that time the kernel at hand once more against that of commit `baseline`."""
    return [
        f"git show {baseline}:{kernel} > baseline.py",
        f"pytest --autokernel {kernel} --autokernel-baseline baseline.py \\",
        f"  --autokernel-effort quick --autokernel-seed {seed}",
    ]
