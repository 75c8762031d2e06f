"""NVIDIA's compute-sanitizer: where it is, how it is called, what its log says. Starts nothing.

Its manual: https://docs.nvidia.com/compute-sanitizer/ComputeSanitizer. memcheck finds accesses
outside of allocations, initcheck reads of global memory that nobody wrote, racecheck hazards in
shared memory, and in that alone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_autokernel.plan import Tool

# Not `--target-processes application-only`: the tool (2025.3) then loses a process at its `exec`.
OPTIONS = (
    # The host's part of a backtrace is Python's own insides.
    *("--show-backtrace", "device", "--print-limit", "10"),
    # How the process ended is for the judge to see.
    *("--check-exit-code", "no"),
)
FOR_TOOL: dict[Tool, tuple[str, ...]] = {
    # torch and Triton call the driver to see whether it refuses. Padding has an access that is far
    # outside of one allocation not land in the next.
    "memcheck": ("--report-api-errors", "no", "--padding", "4096"),
    "racecheck": (),
    "initcheck": (),
}
# How the tool and the kernel's process meet: by TCP, in a network that has nothing else in it. Its
# other way, Unix's sockets, would leave to a kernel the services that listen on those.
ENVIRONMENT = {"NV_COMPUTE_SANITIZER_LOCAL_CONNECTION_OVERRIDE": "tcp"}

PREFIX = "========="
TITLE = "COMPUTE-SANITIZER"
NOTHING = re.compile(
    r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards displayed( \(0 errors, 0 warnings\))?"
)
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) ")
# What the tool says of itself and of how the process went, which it counts as errors too.
ITS_OWN = re.compile(
    r"Internal |Device not supported|Target application|Tracking kernels"
    r"|Error: (?!Race )|Warning: (?!Race )"
)
MOST_LINES = 5  # of an error: what, where, which thread, which address, how far outside
MOST_LOG = 2**20  # bytes; ten errors are some 20 kB


@dataclass(frozen=True)
class Findings:
    """What a log comes to: `clean` if the tool says, and says nothing else, that it found nothing;
    `faulty` if it says that it found something, and what. `words` are its first error, or
    whatever it said instead of a verdict."""

    clean: bool
    faulty: bool
    words: str


def find() -> Path | None:
    """The installed program."""
    named = os.environ.get("CUDA_HOME")
    folders = [Path(named, "bin")] if named else []
    for where in (None, *folders, Path("/usr/local/cuda/bin")):
        if found := shutil.which("compute-sanitizer", path=where and str(where)):
            return Path(found)
    return None


def command(program: Path, tool: Tool, log: Path) -> list[str]:
    """The start of a command line, to which that of the process to be looked into is added."""
    return [str(program), "--tool", tool, "--log-file", str(log), *OPTIONS, *FOR_TOOL[tool]]


def read(log: str) -> Findings:
    """What `log` says. Names in it are the kernel's, and may hold anything: so a log is clean if
    it has nothing in it but the title and one summary."""
    told = [line.removeprefix(PREFIX).removeprefix(" ").rstrip() for line in log.splitlines()]
    told = [line for line in told if line not in {"", TITLE}]
    counts = [int(found[1]) for line in told if (found := SUMMARY.match(line))]
    statements = [i for i, line in enumerate(told) if line[0] != " " and not SUMMARY.match(line)]
    errors = [i for i in statements if not ITS_OWN.match(told[i])]
    first = min(errors or statements, default=len(told))
    return Findings(
        clean=len(told) == 1 and bool(NOTHING.fullmatch(told[0])),
        faulty=max(counts, default=0) > 0 and bool(errors),
        words=_statement(told[first:]) or "; ".join(told) or "it said nothing",
    )


def _statement(lines: Sequence[str]) -> str:
    """The first of the lines, with the indented ones that belong to it."""
    said = list(lines[:1])
    for line in lines[1:MOST_LINES]:
        if line[0] != " " or "backtrace" in line:
            break
        said.append(line)
    return "; ".join(line.strip() for line in said)[:1000]
