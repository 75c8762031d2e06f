"""Our own medicine: `autokernel optimize` on our own kernels, and what it found, to be committed.

    python benchmarks/tune.py kernels/triton/*.py kernels/cuda/*.py --budget 60s

Each kernel is worked on in a repository of its own. Its ledger goes to
`benchmarks/ledgers/<backend>/<op>.tsv` and `.jsonl`, cut to what is small: samples of the starter,
of what was kept and of the last measurement alone. Where that measurement shows a gain over the
starter, the kernel's file is replaced by what was found.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import git
import typer
from autokernel_agent.ledger import Ledger
from autokernel_agent.records import Closing, Experiment, Record, from_line, results_tsv, to_line
from autokernel_agent.repository import Repository
from rich.console import Console

LEDGERS = Path(__file__).resolve().parent / "ledgers"
TAG = "tune"
DIGITS = 5  # of a sample; a GPU's clock has fewer

console = Console(width=200)


def cut(record: Record) -> dict[str, Any]:
    """A record as JSON, without what nobody would look up."""
    data: dict[str, Any] = json.loads(to_line(record))
    if isinstance(record, Experiment | Closing):
        timed = record.timed if isinstance(record, Experiment) else record.reports[-1]
        whole = isinstance(record, Closing) or record.kept or record.starter
        data["reports"] = [_small(json.loads(json.dumps(timed)), whole)]
    return data


def _small(report: dict[str, Any], samples: bool) -> dict[str, Any]:
    """A report of the judge with what did not pass, and the samples of the user's baseline or of
    none."""
    for kernel in report["kernels"]:
        kernel["items"] = [i for i in kernel["items"] if i["verdict"] not in ("PASS", "SKIP")]
        for timing in kernel["timings"]:
            for name, comparison in timing["comparisons"].items():
                kept = comparison["blocks"] if samples and name == "baseline" else []
                comparison["blocks"] = [[_rounded(us) for us in block] for block in kept]
    return report


def _rounded(times_us: list[float]) -> list[float]:
    return [float(f"{us:.{DIGITS}g}") for us in times_us]


def tuned(kernel: Path, options: list[str], scratch: Path) -> Ledger:
    """The ledger of a run on a copy of the kernel."""
    copy = scratch / "kernels" / kernel.parent.name / kernel.name
    copy.parent.mkdir(parents=True)
    shutil.copy(kernel, copy)
    with git.Repo.init(scratch) as repo:
        with repo.config_writer() as config:
            config.set_value("user", "name", "tune").set_value("user", "email", "tune@localhost")
        repo.index.add(["kernels"])
        repo.index.commit("a kernel")
    words = [sys.executable, "-m", "autokernel_agent", "optimize", str(copy), "--tag", TAG]
    subprocess.run([*words, *options], cwd=scratch, check=False)
    return Ledger(Repository(scratch), TAG)


def keep(ledger: Ledger, kernel: Path, folder: Path) -> None:
    """Write the ledger down, and the kernel where it is shown to be faster than its starter."""
    folder.mkdir(parents=True, exist_ok=True)
    records = map(from_line, ledger.journal.read_text(encoding="utf-8").splitlines())
    lines = [json.dumps(cut(record)) + "\n" for record in records]
    (folder / f"{kernel.stem}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / f"{kernel.stem}.tsv").write_text(results_tsv(ledger.experiments), encoding="utf-8")
    name = ledger.experiments[0].kernel
    closing, tip = ledger.closing(name), ledger.tip
    gained = closing is not None and closing.speedup is not None and closing.speedup.low > 1
    if gained and tip is not None:
        kernel.write_text(ledger.repository.text(tip, name), encoding="utf-8")
    console.print(line(ledger, kernel, gained))


def line(ledger: Ledger, kernel: Path, gained: bool) -> str:
    """What a kernel's run came to."""
    tried = [e for e in ledger.experiments if not e.starter]
    counts: Mapping[str, int] = Counter(str(e.decision) for e in tried)
    closing = ledger.closing(ledger.experiments[0].kernel)
    total = closing.speedup if closing else None
    steps = "; ".join(e.description for e in tried if e.kept)
    verdict = "replaced" if gained else "left as it was"
    return f"{kernel}: {verdict}, {total or 'no gain'}, {dict(counts)}: {steps or '-'}"


def main(
    kernels: list[Path],
    budget: Annotated[str, typer.Option(help="for each kernel: 60s, 10m")] = "60s",
    experiments: Annotated[int | None, typer.Option(help="at most so many on each")] = None,
    seed: int = 1,
    folder: Annotated[Path, typer.Option("--ledgers", help="where they go")] = LEDGERS,
) -> None:
    options = ["--budget", budget, "--seed", str(seed)]
    options += ["--experiments", str(experiments)] if experiments else []
    for kernel in kernels:
        with tempfile.TemporaryDirectory() as scratch:
            ledger = tuned(kernel, options, Path(scratch))
            with contextlib.closing(ledger.repository):
                if ledger.experiments:
                    keep(ledger, kernel, folder / kernel.parent.name)
                else:
                    console.print(f"{kernel}: nothing was measured")


if __name__ == "__main__":
    typer.run(main)
