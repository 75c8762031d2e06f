"""The command line: `autokernel optimize`, `status`, `log`, `show`, `report` and `replay`."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from git.exc import GitCommandError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.syntax import Syntax
from rich.text import Text

from . import options as given
from . import page, session, stop
from .display import workers_table
from .errors import JudgeFailed, Refused, is_full_disk
from .ledger import HOME, Ledger
from .proposers import Settings
from .proposers import secrets as keys_of
from .records import Experiment
from .repository import Repository
from .roster import read as read_roster
from .staff import ROSTER
from .tables import (
    details,
    experiments_table,
    replay_table,
    run_line,
    status_table,
    whole_line,
)

INTERRUPTED = 130  # what a shell reports for Ctrl-C

app = typer.Typer(
    help="Optimise kernels, with pytest --autokernel as the judge.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def optimize(
    kernels: given.Kernels = None,
    budget: given.Budget = None,
    experiments: given.Experiments = None,
    tag: given.NewTag = None,
    seed: given.Seed = None,
    proposer: given.ProposerName = "tuner",
    search: given.Search = Settings.search,
    plan: given.Plan = None,
    move_on: given.MoveOn = stop.MOVE_ON,
    workers: given.Workers = None,
    agent: given.Agent = None,
    agent_command: given.AgentCommand = None,
    agent_env: given.AgentEnv = None,
    agent_read: given.AgentRead = None,
    agent_sandbox: given.AgentSandbox = "auto",
    agent_limit: given.AgentLimit = None,
    agent_stall: given.AgentStall = None,
    model: given.Model = None,
    base_url: given.BaseUrl = None,
    key_env: given.KeyEnv = Settings.key_env,
    price: given.PriceOption = None,
    max_cost: given.MaxCost = None,
    max_tokens: given.MaxTokens = None,
) -> None:
    """Experiment on kernels; keep what is right and provably faster, as commits on a branch.

    Started again with the same tag, it goes on where it ended.
    """
    named = kernels or ([plan] if plan else [])
    if not named:
        raise typer.BadParameter("expected kernel files, or --plan FILE, got neither")
    if search != Settings.search and proposer != "tuner":
        raise typer.BadParameter(f"--search {search} is for --proposer tuner, got {proposer!r}")
    settings = Settings(
        environment=dict(os.environ),
        search=search,
        model=model,
        base_url=base_url,
        key_env=key_env,
        price=price,
        agent=agent,
        agent_command=agent_command,
        agent_env=tuple(agent_env or ()),
        agent_read=tuple(agent_read or ()),
        sandbox=agent_sandbox,
        limit_s=agent_limit or Settings.limit_s,
        stall_s=agent_stall or Settings.stall_s,
    )
    for name in keys_of(settings):
        os.environ.pop(name, None)  # all that is started from here on inherits it
    options = session.Options(
        files=tuple(kernels or ()),
        tag=tag or given.default_tag(named[0]),
        budget_s=budget,
        experiments=experiments,
        seed=secrets.randbits(32) if seed is None else seed,
        proposer=proposer,
        settings=settings,
        max_cost_usd=max_cost,
        max_tokens=max_tokens,
        plan=plan,
        move_on=move_on,
        workers=workers,
    )
    with _told():
        session.optimize(options, _console())


@app.command()
def status(
    tag: given.Tag = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds.")] = False,
) -> None:
    """Show where each kernel of a tag stands, what the whole has gained, and, while a run is on,
    what its workers are at."""
    with _told(), _ledger(tag, "*.json*") as ledger:  # whatever a run writes first
        console = _console()
        if not watch:
            console.print(_status(ledger))
            return
        with Live(_status(ledger), console=console, refresh_per_second=1) as live:
            while True:
                time.sleep(2)
                live.update(_status(Ledger(ledger.repository, ledger.tag)))


def _status(ledger: Ledger) -> Group:
    standings, writer = ledger.standings, ledger.writer
    places = read_roster(ledger.folder / ROSTER)
    parts: list[RenderableType] = [status_table(standings), Text(whole_line(standings)), Text()]
    parts.append(Text(run_line(writer, places is not None)))
    if writer and places:
        parts.append(workers_table(places))
    return Group(*parts)


@app.command()
def log(tag: given.Tag = None) -> None:
    """List the experiments of a tag."""
    with _told(), _ledger(tag) as ledger:
        _console().print(experiments_table(ledger.experiments))


@app.command()
def show(experiment: Annotated[int, typer.Argument(metavar="N")], tag: given.Tag = None) -> None:
    """Show one experiment: its verdict, its samples, its diff."""
    with _told(), _ledger(tag) as ledger:
        found = _find(ledger, experiment)
        console = _console()
        for text in details(found, ledger.usage(found)):
            console.print(text, soft_wrap=True, highlight=False, markup=False)
        if not found.starter:
            diff = ledger.repository.diff(found.commit, found.kernel)
            console.print(
                Syntax(diff, "diff", background_color="default") if console.is_terminal else diff,
                markup=False,
            )


@app.command()
def replay(experiment: Annotated[int, typer.Argument(metavar="N")], tag: given.Tag = None) -> None:
    """Judge an experiment again, on the inputs that it was judged on then."""
    with _told(), _ledger(tag) as ledger:
        found = _find(ledger, experiment)
        now = session.replay(ledger, found)
        console = _console()
        console.print(replay_table(found, now))
        if (now.verdict, now.decision) != (found.verdict, found.decision):
            console.print(f"not what it was: {now.reason or 'another decision on its speed'}")
            raise typer.Exit(1)


@app.command()
def report(
    tag: given.Tag = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="One page that needs no other.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="For a pull request.")
    ] = None,
) -> None:
    """Write what a tag came to: every number with its samples. (default: Markdown, printed)"""
    with _told(), _ledger(tag) as ledger:
        story = page.of(ledger)
        for file, form in ((html, page.html), (markdown, page.markdown)):
            if file:
                _write(file, form(story))
        if not html and not markdown:
            typer.echo(page.markdown(story), nl=False)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror}: choose another file") from error
    typer.echo(f"wrote {file}")


def main() -> None:
    app()


def _console() -> Console:
    """Not a terminal: wide, so that tables keep one row a line."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


@contextmanager
def _told() -> Iterator[None]:
    """Turn the known ways of ending early into a message and an exit code."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(ending, signal.default_int_handler)
    try:
        yield
    except Refused as error:
        typer.echo(f"autokernel: {error}", err=True)
        raise typer.Exit(2) from error
    except JudgeFailed as error:
        typer.echo(
            f"autokernel: the judge itself failed, twice; this says nothing of the kernel: {error}",
            err=True,
        )
        raise typer.Exit(1) from error
    except (OSError, GitCommandError) as error:
        if not is_full_disk(error):
            raise
        typer.echo(
            "autokernel: the disk is full; nothing that was recorded is lost: make room, then "
            "start the same command again to go on",
            err=True,
        )
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("autokernel: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def _ledger(tag: str | None, files: str = "experiments.jsonl") -> Iterator[Ledger]:
    """The ledger of a tag, or the one of whose `files` one was written last, to be read."""
    repository = Repository(Path.cwd())
    try:
        journals = sorted(
            (repository.root / HOME).glob(f"{tag or '*'}/{files}"),
            key=lambda file: file.stat().st_mtime,
        )
        if not journals:
            whose = f"tag {tag!r}" if tag else "any tag"
            raise Refused(f"no experiments of {whose} in {repository.root / HOME}")
        yield Ledger(repository, journals[-1].parent.name)
    finally:
        repository.close()


def _find(ledger: Ledger, number: int) -> Experiment:
    if not 0 <= number < len(ledger.experiments):
        last = len(ledger.experiments) - 1
        raise Refused(f"tag {ledger.tag!r} has the experiments 0 to {last}, no experiment {number}")
    return ledger.experiments[number]


if __name__ == "__main__":
    main()
