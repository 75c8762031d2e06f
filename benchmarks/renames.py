"""A night of experiments that change nothing but a name: none of them may be kept.

    python benchmarks/renames.py kernels/cpp/softmax.py --name softmax_row --experiments 100

The agent works on a copy of the kernel in a repository of its own, as on any other; what proposes
is all that differs. Copies that compile to the same are recognised and not judged, so the name has
to be one that the binary holds: of a C++ function that is exported, as templates are; not of a
variable, nor of anything in a Triton or a CUDA C++ kernel but of the kernel itself.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import git
import typer
from autokernel_agent import session
from autokernel_agent.ledger import open_ledger
from autokernel_agent.proposers import PROPOSERS, Edit, Settings, Situation
from autokernel_agent.repository import Repository
from rich.console import Console

console = Console()


class Renames:
    """Proposes the incumbent with `name` numbered anew."""

    def __init__(self, name: str) -> None:
        self.name, self.number = name, 0

    def ask(self, situation: Situation) -> Edit:
        self.number += 1
        return self._renamed(situation.text, self.number)

    def foresee(self, edit: Edit, situation: Situation) -> Edit:
        return self._renamed(situation.text, int(edit.description.rpartition("_")[2]) + 1)

    def postpones(self, edit: Edit) -> bool:
        return False

    def _renamed(self, text: str, number: int) -> Edit:
        new = f"{self.name}_{number}"
        text = re.sub(rf"\b{self.name}(_\d+)?\b", new, text)
        return Edit(text, f"{self.name} -> {new}")

    def tell(self, tried: object) -> None:
        pass


def main(
    kernel: Path,
    name: Annotated[str, typer.Option(help="a function of the kernel's C++")] = "softmax_row",
    experiments: int = 100,
    budget: Annotated[float, typer.Option(help="seconds at most")] = 36000,
    workers: Annotated[str | None, typer.Option(help="as of `autokernel optimize`")] = None,
) -> None:
    if not re.search(rf"\b{name}\b", kernel.read_text()):
        raise typer.BadParameter(f"{kernel} has no {name!r}: name one of its functions")
    with tempfile.TemporaryDirectory() as folder:
        (copy := Path(folder, "kernels", kernel.name)).parent.mkdir()
        shutil.copy(kernel, copy)
        with git.Repo.init(folder) as repo:
            with repo.config_writer() as config:
                config.set_value("user", "name", "renames").set_value("user", "email", "a@a")
            repo.index.add(["kernels"])
            repo.index.commit("a kernel")
        os.chdir(folder)
        # Read-only to all but this benchmark, which has a proposer of its own.
        PROPOSERS["renames"] = lambda text, seed, settings: Renames(name)  # type: ignore[index]
        settings = Settings(environment={})
        wanted = session.Options((copy,), "aa", budget, experiments, 1, "renames", settings)
        session.optimize(replace(wanted, workers=workers), console)
        with open_ledger(Repository(Path(folder)), "aa") as ledger:
            tried = [e for e in ledger.experiments if not e.starter]
        starts = [datetime.fromisoformat(e.started) for e in tried]
        ends = [
            start + timedelta(seconds=e.seconds) for start, e in zip(starts, tried, strict=True)
        ]
        seconds = (max(ends) - min(starts)).total_seconds()
        console.print(dict(Counter(str(e.decision) for e in tried)))
        console.print(f"{len(tried)} experiments, {3600 * len(tried) / seconds:.0f} an hour")
        raise typer.Exit(any(e.kept for e in tried))


if __name__ == "__main__":
    typer.run(main)
