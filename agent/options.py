"""The options of the command line: what they take, and what their help says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from .proposers import PROPOSERS, SEARCHES
from .proposers.settings import Sandbox
from .staff import is_wanted
from .usage import Price


def parse_duration(text: str) -> float:
    """Seconds of `90`, `60s`, `10m`, `8h`, `1h30m`."""
    units = {"h": 3600, "m": 60, "s": 1, "": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms]?)", text)
    total = sum(float(number) * units[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or total <= 0:
        raise typer.BadParameter(f"expected a duration such as 60s, 10m, 8h or 1h30m, got {text!r}")
    return total


def parse_price(text: str) -> Price:
    """`3,15`: US dollars for a million tokens read, and written."""
    if not re.fullmatch(r"\d+(\.\d+)?,\d+(\.\d+)?", text):
        raise typer.BadParameter(
            f"expected US dollars for a million tokens read and written, such as 3,15, got {text!r}"
        )
    read, written = map(float, text.split(","))
    return Price(read, written)


def parse_workers(text: str) -> str:
    if not is_wanted(text):
        raise typer.BadParameter(f"expected a number, ray or ray://HOST:PORT, got {text!r}")
    return text


def parse_tag(text: str) -> str:
    """A tag is part of a branch's name and a folder's."""
    if (
        not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", text)
        or ".." in text
        or text.endswith(".lock")
    ):
        raise typer.BadParameter(
            f"expected letters, digits and single . _ - between them, got {text!r}"
        )
    return text


def default_tag(kernel: Path) -> str:
    """`cpp-softmax` for kernels/cpp/softmax.py: the same command goes on with the same work."""
    words = "-".join(kernel.resolve().with_suffix("").parts[-2:])
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-") or "kernel"


def parse_proposer(name: str) -> str:
    if name not in PROPOSERS:
        raise typer.BadParameter(f"expected one of {', '.join(PROPOSERS)}, got {name!r}")
    return name


def parse_search(name: str) -> str:
    if name not in SEARCHES:
        raise typer.BadParameter(f"expected one of {', '.join(SEARCHES)}, got {name!r}")
    return name


PANEL = "Coding agents and models"

Tag = Annotated[str | None, typer.Option(help="Which work to show. (default: the latest)")]
NewTag = Annotated[
    str | None,
    typer.Option(
        "--tag",  # typer 0.27 would take the metavar for the option's name
        parser=parse_tag,
        metavar="TAG",
        help="Names branch and ledger. (default: from the file)",
    ),
]
Kernels = Annotated[
    list[Path] | None,
    typer.Argument(metavar="KERNEL_FILE...", help="Committed kernel files. (default: the plan's)"),
]
Budget = Annotated[
    float | None,
    typer.Option(
        parser=parse_duration,
        metavar="TIME",
        help="60s, 10m, 8h for the experiments on all kernels.",
    ),
]
Experiments = Annotated[
    int | None, typer.Option(min=1, help="At most so many, for all kernels together.")
]
Seed = Annotated[
    int | None, typer.Option(help="Makes search and inputs repeatable. (default: drawn)")
]
ProposerName = Annotated[
    str, typer.Option(parser=parse_proposer, metavar="NAME", help="Who proposes edits.")
]
Search = Annotated[
    str,
    typer.Option(
        parser=parse_search,
        metavar="NAME",
        help="How the tuner searches: local, or optuna (an extra).",
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The kernels' shares of the run time, as YAML or JSON."),
]
MoveOn = Annotated[
    str, typer.Option(metavar="RULES", help="When to leave one of several kernels for another.")
]
Workers = Annotated[
    str | None,
    typer.Option(
        parser=parse_workers,
        metavar="N|ray[://HOST:PORT]",
        help="How many judge at a time, each on a GPU of its own here; or a Ray cluster's (an "
        "extra). (default: one for each GPU)",
    ),
]
Agent = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The coding agent of --proposer command: claude, codex, gemini, aider, opencode.",
        rich_help_panel=PANEL,
    ),
]
AgentCommand = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS",
        help="Another agent's command line, with {prompt} in it; {kernel}, {context}, {home} and "
        "{model} are replaced too.",
        rich_help_panel=PANEL,
    ),
]
AgentEnv = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VARIABLE",
        help="Give the agent this variable too: its key, if it goes by another name.",
        rich_help_panel=PANEL,
    ),
]
AgentRead = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Leave the agent this to read, if it does not start without.",
        rich_help_panel=PANEL,
    ),
]
AgentSandbox = Annotated[
    Sandbox,
    typer.Option(
        help="Keep the agent from your files: as far as this system can, only if it can, or not.",
        rich_help_panel=PANEL,
    ),
]
AgentLimit = Annotated[
    float | None,
    typer.Option(
        parser=parse_duration,
        metavar="TIME",
        help="For one proposal. (default: 30m)",
        rich_help_panel=PANEL,
    ),
]
AgentStall = Annotated[
    float | None,
    typer.Option(
        parser=parse_duration,
        metavar="TIME",
        help="End an agent that says nothing for so long. (default: 10m)",
        rich_help_panel=PANEL,
    ),
]
Model = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its model.", rich_help_panel=PANEL)
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The endpoint of --proposer llm. (default: OPENAI_BASE_URL, else OpenAI's)",
        rich_help_panel=PANEL,
    ),
]
KeyEnv = Annotated[
    str,
    typer.Option(
        metavar="VARIABLE", help="Where the key of --proposer llm is.", rich_help_panel=PANEL
    ),
]
PriceOption = Annotated[
    Price | None,
    typer.Option(
        "--price",
        parser=parse_price,
        metavar="READ,WRITTEN",
        help="US dollars for a million tokens, where the agent does not report its cost.",
        rich_help_panel=PANEL,
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="USD",
        help="Propose no more once so much is spent, or once it is unknown how much is.",
        rich_help_panel=PANEL,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=0, help="The same for tokens, read and written.", rich_help_panel=PANEL),
]
