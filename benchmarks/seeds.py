"""Does the judge ever fail a right kernel? Each shipped kernel is judged again and again, each time
with a fresh seed: other inputs, other shapes, other fillings.

    python benchmarks/seeds.py --runs 50 --jobs 8 kernels/cpp kernels/triton

Without timing: right or wrong is all that it is about, and runs go side by side.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

console = Console()


def judge(kernel: Path, device: str, effort: str, folder: Path, number: int) -> dict[str, Any]:
    """One run of pytest; its report's account of the kernel."""
    report = folder / f"{kernel.parent.name}-{kernel.stem}-{number}.json"
    command = (
        *(sys.executable, "-m", "pytest", "--autokernel", "-q", "-p", "no:cacheprovider"),
        *(f"--autokernel-device={device}", f"--autokernel-effort={effort}"),
        *(f"--autokernel-json={report}", "-k", "not roofline"),
        str(kernel),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not report.exists():
        return {"verdict": "no report", "reason": done.stdout[-500:], "items": []}
    (found,) = json.loads(report.read_text())["kernels"]
    return {**found, "seed": json.loads(report.read_text())["seed"]}


def main(
    paths: Annotated[list[Path], typer.Argument(help="kernel files, or folders of them")],
    runs: int = 50,
    jobs: int = 2,
    device: str = "cpu",
    effort: str = "normal",
    minutes: Annotated[float, typer.Option(help="start no run after so many")] = 600,
) -> None:
    kernels = [
        k for path in paths for k in (sorted(path.glob("*.py")) if path.is_dir() else [path])
    ]
    end = time.monotonic() + 60 * minutes
    results: dict[Path, list[dict[str, Any]]] = defaultdict(list)
    cpus = itertools.cycle(sorted(os.sched_getaffinity(0)))

    def settle() -> None:
        """One processor for each job: a thread's processors are also those of what it starts."""
        os.sched_setaffinity(0, {next(cpus)})

    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(jobs, initializer=settle) as pool,
    ):

        def one(kernel: Path, number: int) -> tuple[Path, dict[str, Any] | None]:
            if time.monotonic() > end:
                return kernel, None
            return kernel, judge(kernel, device, effort, Path(folder), number)

        pending = [pool.submit(one, kernel, n) for n in range(runs) for kernel in kernels]
        for done in as_completed(pending):
            kernel, found = done.result()
            if found is None:
                continue
            results[kernel].append(found)
            if found["verdict"] != "PASS":
                seed = found.get("seed")
                console.print(f"{kernel}: {found['verdict']}, seed {seed}: {found['reason']}")
    table = Table(box=None, header_style="bold")
    for name in ("kernel", "runs", "failed", "checks", "calls compared", "worst error"):
        table.add_column(name, justify="left" if name == "kernel" else "right")
    for kernel in kernels:
        table.add_row(str(kernel), *summary(results[kernel]))
    console.print(table)
    failed = [found for of in results.values() for found in of if found["verdict"] != "PASS"]
    raise typer.Exit(bool(failed))


def summary(found: list[dict[str, Any]]) -> tuple[str, ...]:
    items = [item for run in found for item in run["items"]]
    worst = max((item["worst"] or 0 for item in items), default=0)
    failed = sum(run["verdict"] != "PASS" for run in found)
    calls = sum(item["completed"] for item in items)
    return str(len(found)), str(failed), str(len(items)), str(calls), f"{worst:.0%}"


if __name__ == "__main__":
    typer.run(main)
