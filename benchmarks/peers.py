"""Where each of our kernels stands beside what a user would pick instead: all in turn, in
processes of their own, by the judge's own measuring.

    python benchmarks/peers.py measure --json peers.json
    python benchmarks/peers.py draw peers.json --into docs/measurements.md --plot docs/peers

Each shape is one comparison: our kernels, and the op's baselines that are installed, take turns
in the same blocks. Large shapes find a cold L2 cache, each call in a captured graph. Small ones
are measured so, beside the op's first baseline, and once more as Python calls them: without a
graph, the launch included. On a CPU the C++ kernels are measured, on shapes that are cut.

`--part 1/4` takes every fourth shape; `draw` puts several files together.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import secrets
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import peers_record
import typer
from peers_record import Record, Row
from peers_shapes import LARGE, small
from rich.console import Console
from rich.progress import track

from pytest_autokernel import baselines, candidate, decide, machine, plan, session
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case, Dtype, Op
from pytest_autokernel.settings import Device, Settings
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import CandidateError, JudgeError, Verdict

PACKAGES = ("torch", "triton", *baselines.LIBRARIES.values())
OURS = {"cuda": ("triton", "cuda"), "cpu": ("cpp",)}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True)


@dataclass(frozen=True)
class Work:
    """One op on one shape."""

    op: str
    dims: tuple[int, ...]
    size: str

    def __str__(self) -> str:
        return f"{self.op} {'x'.join(map(str, self.dims))}"


def work(ops: list[str], sizes: list[str]) -> Iterator[Work]:
    if "large" in sizes:
        yield from (Work(op, dims, "large") for op in ops for dims in LARGE[op])
    if "small" in sizes:
        yield from (Work(op, dims, "small") for op in ops for dims in small(op))


def measured(judge: Judge, work: Work, left_out: Mapping[str, str]) -> Iterator[Row]:
    """One row for each clock: on a GPU a small shape is timed by the host's too."""
    op, on_gpu = judge.op(work.op), judge.hardware.gpu is not None
    place: plan.TargetName = "cuda" if on_gpu else "cpu"
    dtype: Dtype = "bf16" if on_gpu else "fp32"
    dims = dict(zip((dim.name for dim in op.dims), work.dims, strict=True))
    room = plan.Target(place, plan.TIMED_ELEMENTS[place])
    case = plan.fit(op, Case("peers", dims, dtype), room)
    if case is None:
        return
    shape = "x".join(str(n) for n in case.dims.values())
    ours, wrong = _right(judge, op, case)
    for clock in ("gpu", "host") if on_gpu and work.size == "small" else ("gpu",):
        row = Row(work.op, shape, work.size, clock, missing=wrong)
        yield _row(judge, op, case, ours, left_out, row)


def _row(
    judge: Judge,
    op: Op,
    case: Case,
    ours: Mapping[str, Path],
    left_out: Mapping[str, str],
    row: Row,
) -> Row:
    """Who fails is left out with the reason, and the others are measured afresh."""
    failed, missing = dict(left_out), dict(row.missing)
    for some in _some_of(list(ours)):
        while True:
            try:
                return _compared(judge, op, case, {n: ours[n] for n in some}, failed, row, missing)
            except baselines.BaselineError as error:
                failed[error.name] = f"{error.verdict}: {error.reason}"
            except (CandidateError, JudgeError, session.TooShort) as error:
                missing["+".join(some)] = str(error)
                break
    return dataclasses.replace(row, missing=missing)


def _some_of(ours: list[str]) -> Iterator[list[str]]:
    """All of our kernels; and where that fails each alone."""
    if ours:
        yield ours
    if len(ours) > 1:
        yield from ([name] for name in ours)


def _right(judge: Judge, op: Op, case: Case) -> tuple[dict[str, Path], dict[str, str]]:
    """Our kernels that compute this very case, and why the others are not measured."""
    right, missing = {}, {}
    for name in OURS["cuda" if judge.hardware.gpu else "cpu"]:
        path = judge.settings.rootdir / "kernels" / name / f"{op.name}.py"
        subject = WorkerSubject(judge, candidate.read(path))
        seeded = dataclasses.replace(case, seed=secrets.randbits(48))
        try:
            outcome = judge.check(subject, op, seeded)
            wrong = (
                None if outcome.verdict is Verdict.PASS else f"{outcome.verdict}: {outcome.reason}"
            )
        except JudgeError as error:  # out of memory, say, on this shape
            wrong = str(error)
        finally:
            subject.close()
        if wrong is None:
            right[name] = path
        else:
            missing[name] = wrong
    return right, missing


def _compared(
    judge: Judge,
    op: Op,
    case: Case,
    ours: Mapping[str, Path],
    failed: Mapping[str, str],
    row: Row,
    missing: Mapping[str, str],
) -> Row:
    """The first of ours is the session's kernel, and the second what a user has named."""
    first, *others = ours
    judge.settings = dataclasses.replace(
        judge.settings,
        seed=secrets.randbits(48),
        baseline=str(ours[others[0]]) if others else None,
        compare=(baselines.EVERY,) if row.size == "large" else (),
    )
    subject = WorkerSubject(judge, candidate.read(ours[first]))
    start = time.monotonic()
    measuring = session.Session(judge, subject, op, case, failed, host=row.clock == "host")
    _, samples = measuring.looked_at()
    names = {session.KERNEL: first} | ({baselines.USERS: others[0]} if others else {})
    blocks = [{names.get(name, name): us for name, us in b.items()} for b in samples.blocks]
    times_us = {
        name: statistics.median(us for block in blocks for us in block[name]) for name in blocks[0]
    }
    if row.clock == "gpu":
        measuring.resolve(times_us[first])
    facts = measuring.facts(samples)
    return dataclasses.replace(
        row,
        times_us=times_us,
        ratios={name: _ratios(blocks, name, ours) for name in ours},
        roof=_roof(measuring, times_us[first], first) if row.clock == "gpu" else None,
        missing={**missing, **measuring.missing},
        sm_mhz=facts["sm_mhz"],
        throttled=facts["throttled"],
        seconds=round(time.monotonic() - start, 1),
    )


def _ratios(
    blocks: list[dict[str, list[float]]], name: str, ours: Mapping[str, Path]
) -> dict[str, tuple[float, float, float]]:
    """The others' times over this one's: above 1 it is faster."""
    found = {}
    for other in blocks[0].keys() - ours:
        pairs = [(block[other], block[name]) for block in blocks]
        estimate = decide.estimate(pairs, session.PRINTED_CONFIDENCE)
        found[other] = (estimate.ratio, estimate.low, estimate.high)
    return found


def _roof(measuring: session.Session, time_us: float, name: str) -> dict[str, str | float]:
    """The measured roof, and the time that it allows."""
    found = measuring.roofline(time_us)
    memory = "reading" if measuring.op.roof == "read" else "copying"
    bound = {
        "memory": f"{memory}, {found.roof_gb_s:.0f} GB/s",
        "compute": f"{found.roof_tflops:.0f} TFLOP/s",
    }
    return {"what": bound[found.bound], "time_us": found.pct / 100 * time_us}


@app.command()
def measure(
    json_file: Annotated[Path, typer.Option("--json", help="what was measured")],
    ops: Annotated[str, typer.Option(help="separated by commas")] = ",".join(LARGE),
    sizes: Annotated[str, typer.Option(help="large, small")] = "large,small",
    part: Annotated[str, typer.Option(help="2/4: the second of every four shapes")] = "1/1",
    without: Annotated[str, typer.Option(help="compile,matmul/quack: baselines")] = "",
    minutes: Annotated[float, typer.Option(help="start no row after so many")] = 600,
    device: Annotated[str, typer.Option(help="auto, cuda, cpu")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="keeps compiled code")] = None,
    memory: Annotated[float, typer.Option(help="GiB of the host's, for each process")] = 32,
) -> None:
    """Measure, and write down each row as soon as it is there."""
    settings = Settings(
        rootdir=Path(__file__).resolve().parents[1],
        seed=0,
        device=cast(Device, device),
        effort="quick",
        timeout_s=120,
        memory_bytes=int(memory * 2**30),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        baseline=None,
        json=None,
        cache=cache and cache.absolute(),
    )
    number, parts = map(int, part.split("/"))
    chosen = list(work(ops.split(","), sizes.split(",")))[number - 1 :: parts]
    end, judge = time.monotonic() + 60 * minutes, Judge(settings)
    try:
        record = Record(_machine(judge), [])
        for each in track(chosen, "measuring", console=console):
            if time.monotonic() > end:
                console.print(f"out of time: {each}")
                continue
            for row in measured(judge, each, _left_out(without, each.op)):
                record.rows.append(row)
                record.write(json_file)
                console.print(peers_record.line(row))
    finally:
        judge.close()


def _left_out(without: str, op: str) -> dict[str, str]:
    names = [name.rpartition("/") for name in without.split(",") if name]
    return {name: peers_record.LEFT_OUT for of, _, name in names if of in ("", op)}


def _machine(judge: Judge) -> dict[str, str]:
    """What rows have to share to stand in one table."""
    gpu = judge.hardware.gpu
    versions = {package: machine.package_version(package) or "-" for package in PACKAGES}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"device": gpu.name if gpu else machine.cpu_name(), "date": today, **versions}


@app.command()
def draw(
    records: list[Path],
    into: Annotated[Path | None, typer.Option(help="a text with the tables' place")] = None,
    plot: Annotated[Path | None, typer.Option(help="without suffix: two SVG files")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="all in one file")] = None,
) -> None:
    """The tables and the plot of what was measured, by one or several runs."""
    record = Record.merged([Record.read(file) for file in records])
    if json_file:
        record.write(json_file)
    if plot:
        import peers_plot

        peers_plot.draw(record, plot)
    text = peers_record.markdown(record)
    if into is None:
        typer.echo(text)
        return
    shown = os.path.relpath(plot, into.parent) if plot else None
    into.write_text(peers_record.put(into.read_text(), peers_record.section(text, shown)))


if __name__ == "__main__":
    app()
