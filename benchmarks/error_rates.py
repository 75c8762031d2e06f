"""How often the decision procedure errs on this very machine: a kernel against a copy of itself,
and against copies that do some percent more work: on a GPU what takes so much of its time.

    python benchmarks/error_rates.py --trials 25 --percent 0,5,10 kernels/cpp/softmax.py

Each trial is one whole comparison by the judge, confirmation and fresh processes included, with the
gate's question (what did the change do?) or the agent's (is it to be kept?). Every trial's samples
can be kept (`--json`): benchmarks/decisions.py says what they are to be held against.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import secrets
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pytest_autokernel import candidate, plan, session
from pytest_autokernel.judge import Judge
from pytest_autokernel.settings import Effort, Settings
from pytest_autokernel.subjects import WorkerSubject

# What our C++ kernels are written with, and what it becomes with PERCENT more work: more rows,
# which are the first ones again.
MORE_ROWS = {
    r"next\.fetch_add\(BLOCK\)\) < rows;": (
        "next.fetch_add(BLOCK)) < rows + rows * PERCENT / 100;"
    ),
    r"for \(int64_t r = first; r < std::min\(first \+ BLOCK, rows\); r\+\+\)": (
        "for (int64_t q = first; q < std::min(first + BLOCK, rows + rows * PERCENT / 100); q++)\n"
        "for (int64_t r = q % rows, once = 1; once; once = 0)"
    ),
}
# Of a kernel on a GPU: STEPS multiplications after it, each of which waits for the last. (More
# programs take no more time where the GPU has room for them.)
MORE_STEPS = """

import torch as _torch
import triton as _triton
import triton.language as _tl


@_triton.jit(do_not_specialize=["steps"])
def multiplied(y, steps):
    x = _tl.load(y)
    for _ in range(steps):
        x = x * 1.0000001 + 1e-9
    _tl.store(y, x)


_once = kernel_fn


def kernel_fn(*args, **kwargs):
    out = _once(*args, **kwargs)
    multiplied[(1,)](_torch.empty(1, device=out.device), STEPS)
    return out
"""

console = Console()


@dataclass(frozen=True)
class Result:
    """One comparison. `ratio` is the base's time over the planted kernel's."""

    kernel: str
    percent: int
    answer: str
    ratio: float
    low: float
    high: float
    blocks: int
    seconds: float
    time_us: float


def with_more_rows(text: str, percent: int) -> str:
    """The C++ kernel with `percent` more work, rounded down to whole rows."""
    places = 0
    for written, longer in MORE_ROWS.items():
        text, count = re.subn(written, longer.replace("PERCENT", str(percent)), text)
        places += count
    if places < 2:
        raise typer.BadParameter("expected a C++ kernel written like ours, by rows")
    return text


def with_more_steps(text: str, steps: int) -> str:
    """The kernel with a chain of so many multiplications after it, on one thread of a GPU."""
    return text + MORE_STEPS.replace("STEPS", str(steps))


def step_us() -> float:
    """How long one multiplication of the chain takes on this GPU."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "chain.py")).write_text("kernel_fn = None" + MORE_STEPS)
        multiplied = runpy.run_path(str(file))["multiplied"]
        y, steps, times = torch.ones(1, device="cuda"), 10**6, []
        for _ in range(5):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            multiplied[(1,)](y, steps)
            end.record()
            end.synchronize()
            times.append(1000 * start.elapsed_time(end) / steps)
    return statistics.median(times)


@dataclass
class Planter:
    """Makes kernels slower by some percent, `usual` times being known by then."""

    device: str
    usual_us: dict[Path, float] = field(default_factory=dict)

    def planted(self, path: Path, percent: int) -> str:
        text = path.read_text()
        if self.device == "cpu":
            return with_more_rows(text, percent)
        steps = percent and round(percent / 100 * self.usual_us[path] / self.step_us)
        return with_more_steps(text, steps)

    @cached_property
    def step_us(self) -> float:
        return step_us()


def compare(judge: Judge, path: Path, percent: int, planter: Planter) -> tuple[Result, Any]:
    """One trial: the base has the longer loops too, so that the percent are all that differs."""
    (judge.folder / "base").mkdir(exist_ok=True)
    base, changed = judge.folder / "base" / path.name, judge.folder / path.name
    base.write_text(planter.planted(path, 0))
    changed.write_text(planter.planted(path, percent) + "\n# the change\n")
    judge.settings = replace(judge.settings, seed=secrets.randbits(48), baseline=str(base))
    subject = WorkerSubject(judge, candidate.read(changed))
    op = judge.op(subject.kernel.op)
    (case, *_) = plan.timed_cases(op, subject.target)
    start = time.monotonic()
    trial, samples = session.Session(judge, subject, op, case).tried()
    seconds, found = time.monotonic() - start, trial.estimate
    taken = [us for block in samples.blocks for us in block[session.KERNEL]]
    result = Result(
        path.as_posix(),
        percent,
        str(trial.answer),
        *(found.ratio, found.low, found.high),
        len(trial.first) + len(trial.confirmation),
        seconds,
        statistics.median(taken),
    )
    return result, [[list(a), list(b)] for a, b in (*trial.first, *trial.confirmation)]


def main(
    kernels: list[Path],
    trials: Annotated[int, typer.Option(help="for each kernel and slowdown")] = 25,
    percent: Annotated[str, typer.Option(help="more work of the planted kernels")] = "0,5,10",
    device: str = "cpu",
    question: Annotated[str, typer.Option(help="gate or agent")] = "gate",
    minutes: Annotated[float, typer.Option(help="start no trial after so many")] = 600,
    json_file: Annotated[Path | None, typer.Option("--json", help="a line per trial")] = None,
) -> None:
    effort: Effort = "quick" if question == "agent" else "normal"
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    settings = Settings(
        rootdir=Path.cwd(),
        seed=0,
        device="cuda" if device == "cuda" else "cpu",
        effort=effort,
        timeout_s=60,
        memory_bytes=8 * 2**30,
        cpus=cpus,
        baseline=None,
        json=None,
    )
    percents = [int(p) for p in percent.split(",")]
    if device == "cuda" and percents[0]:
        raise typer.BadParameter("expected --percent to begin with 0: of what, is measured first")
    work = [(k, more) for _ in range(trials) for k in kernels for more in percents]
    found: dict[tuple[str, int], list[Result]] = defaultdict(list)
    end, judge, planter = time.monotonic() + 60 * minutes, Judge(settings), Planter(device)
    try:
        for kernel, more in track(work, "comparing", console=Console(stderr=True)):
            if time.monotonic() > end:
                break
            result, blocks = compare(judge, kernel, more, planter)
            found[result.kernel, more].append(result)
            planter.usual_us.setdefault(kernel, result.time_us)
            if json_file:
                with json_file.open("a") as file:
                    file.write(json.dumps({**result.__dict__, "samples": blocks}) + "\n")
    finally:
        judge.close()
    console.print(table(found))


def table(found: dict[tuple[str, int], list[Result]]) -> Table:
    rows = Table(box=None, header_style="bold")
    for name in ("kernel", "us", "more work", "trials", "answers", "median ratio", "seconds each"):
        rows.add_column(name, justify="left" if name in {"kernel", "answers"} else "right")
    for (kernel, more), results in sorted(found.items()):
        answers = sorted({r.answer for r in results})
        counted = (f"{sum(r.answer == a for r in results)} {a}" for a in answers)
        rows.add_row(
            kernel,
            f"{statistics.median(r.time_us for r in results):.0f}",
            f"{more} %",
            str(len(results)),
            ", ".join(counted),
            f"{statistics.median(r.ratio for r in results):.4f}",
            f"{statistics.median(r.seconds for r in results):.1f}",
        )
    return rows


if __name__ == "__main__":
    typer.run(main)
