"""Hires the workers of a run: on this machine, or in a Ray cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from .cluster import connected
from .crew import Crew
from .errors import Refused
from .repository import Repository
from .roster import Roster
from .worker import VISIBLE, Local, gpus

ROSTER = "workers.json"
PATTERN = r"[1-9]\d*|ray(://[^/\s]+)?"


def is_wanted(text: str) -> bool:
    """Whether it says which workers are wanted: a number, or a cluster."""
    return re.fullmatch(PATTERN, text) is not None


@contextmanager
def hired(
    wanted: str | None,
    repository: Repository,
    commit: str,
    folder: Path,
    secrets: Collection[str],
    told: Callable[[str], object],
) -> Iterator[Crew]:
    """Workers on the files of a commit: as `wanted` says, else one for each GPU here. Those of
    a cluster are kept from the variables that `secrets` names; here they were taken away before.
    What they are at is told in the folder's workers.json.
    """
    for left in folder.glob("worktree*"):  # by a crash
        repository.remove_worktree(left)
    (folder / ROSTER).unlink(missing_ok=True)
    if wanted and wanted.startswith("ray"):
        with (
            repository.worktree(folder / "worktree", commit) as worktree,
            connected(wanted, worktree, secrets) as hires,
            Roster(folder / ROSTER) as roster,
            closing(Crew(hires, told, noted=roster.write)) as crew,
        ):
            yield crew
        return
    alike = _alike(wanted, told).items()
    seen = [(name, _where(n, name, kind)) for n, (name, kind) in enumerate(alike)]
    count = int(wanted) if wanted else max(len(seen), 1)
    if seen and count > len(seen):
        raise Refused(
            f"--workers {count}: expected one for each of the {len(seen)} GPUs here at most: two "
            "on the same would spoil each other's samples"
        )
    with ExitStack() as stack:
        hires = []
        for n in range(count):
            tree = folder / (f"worktree-{n}" if n else "worktree")
            worktree = stack.enter_context(repository.worktree(tree, commit))
            name, where = seen[n] if seen else (None, "this machine")
            gpu = name if count > 1 else None
            hires.append(partial(Local, worktree, folder / "scratch" / str(n), gpu, where))
        roster = stack.enter_context(Roster(folder / ROSTER))
        crew = Crew(hires, told, one_on_cpu=wanted is None, noted=roster.write)
        yield stack.enter_context(closing(crew))


def _where(number: int, name: str, kind: str) -> str:
    """`GPU 0, NVIDIA H200`: by the number that nvidia-smi shows, or by the user's word for it."""
    which = name if VISIBLE in os.environ else number
    return ", ".join(filter(None, [f"GPU {which}", kind]))


def _alike(wanted: str | None, told: Callable[[str], object]) -> Mapping[str, str]:
    """The GPUs here, and their kinds. Where they differ one worker makes do with what pytest
    finds, or the user has to choose: what is faster on one may be slower on another."""
    seen = gpus()
    if len({*seen.values()}) <= 1 or wanted == "1":
        return seen
    differ = f"these GPUs differ: {', '.join(seen.values())}: name some of one kind by {VISIBLE}"
    if wanted:
        raise Refused(differ)
    told(f"{differ}; one is used")
    return {}
