"""How often the decision procedure errs on this very machine: a kernel against a copy of itself,
and against copies that do some percent more work.

    python benchmarks/error_rates.py --trials 25 --percent 0,5,10 kernels/cpp/softmax.py

Each trial is one whole comparison by the judge, confirmation and fresh processes included, with the
gate's question (what did the change do?) or the agent's (is it to be kept?). Every trial's samples
can be kept (`--json`): benchmarks/decisions.py says what they are to be held against.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, replace
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

# What our kernels are written with, and what it becomes with PERCENT more work: in C++ more rows,
# which are the first ones again; in Triton more programs, of which the last do the first ones' work
# again (of T = N + N * PERCENT // 100 programs N is T * 100 / (100 + PERCENT), rounded up).
LONGER = {
    r"next\.fetch_add\(BLOCK\)\) < rows;": (
        "next.fetch_add(BLOCK)) < rows + rows * PERCENT / 100;"
    ),
    r"for \(int64_t r = first; r < std::min\(first \+ BLOCK, rows\); r\+\+\)": (
        "for (int64_t q = first; q < std::min(first + BLOCK, rows + rows * PERCENT / 100); q++)\n"
        "for (int64_t r = q % rows, once = 1; once; once = 0)"
    ),
    r"tl\.program_id\(0\)": (
        "(tl.program_id(0) % ((tl.num_programs(0) * 100 + PERCENT + 99) // (100 + PERCENT)))"
    ),
    r"\[\((.+),\)\]\(": r"[(\1 + (\1) * PERCENT // 100,)](",
    r"grid = \((.+),\)\n": r"grid = (\1 + (\1) * PERCENT // 100,)\n",
}

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


def planted(text: str, percent: int) -> str:
    """The kernel with `percent` more work, rounded down to whole rows or programs."""
    places = 0
    for written, longer in LONGER.items():
        text, count = re.subn(written, longer.replace("PERCENT", str(percent)), text)
        places += count
    if places < 2:
        raise typer.BadParameter("expected a kernel written like ours, by rows or by programs")
    return text


def compare(judge: Judge, path: Path, percent: int, folder: Path) -> tuple[Result, Any]:
    """One trial: the base has the longer loops too, so that the percent are all that differs."""
    text = path.read_text()
    (folder / "base").mkdir(exist_ok=True)
    base, changed = folder / "base" / path.name, folder / path.name
    base.write_text(planted(text, 0))
    changed.write_text(planted(text, percent) + "\n# the change\n")
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
    work = [(k, int(p)) for _ in range(trials) for k in kernels for p in percent.split(",")]
    found: dict[tuple[str, int], list[Result]] = defaultdict(list)
    end, judge = time.monotonic() + 60 * minutes, Judge(settings)
    try:
        for kernel, more in track(work, "comparing", console=Console(stderr=True)):
            if time.monotonic() > end:
                break
            result, blocks = compare(judge, kernel, more, judge.folder)
            found[result.kernel, more].append(result)
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
