"""A pytest that stays: it is asked for one session after another, which share one judge.

    python -m pytest -p pytest_autokernel.standing --autokernel-standing FD

What takes seconds to start is started once: torch, the comparison, and the nursery. None of them
ever runs a candidate, whose own processes are as fresh as ever and end with their session. Over
the socket come requests, JSON, a line each: `{"args": [...]}`, the words of a command line; each
is answered by `{"code": 1}`, pytest's exit code. It ends when the other side has.
"""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_autokernel.judge import Judge
    from pytest_autokernel.settings import Settings

# Each session finds imported what the first has imported, and no session's asserts are ours.
IMPORTED = ("-W", "ignore:Module already imported so cannot be rewritten")
USUAL = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("autokernel")
    group.addoption(
        "--autokernel-standing",
        type=int,
        metavar="FD",
        help="stay, and run the sessions that are asked for over this socket",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    fd = config.getoption("autokernel_standing")
    if fd is None:
        return None
    serve(socket.socket(fileno=fd))
    return 0


def serve(asked: socket.socket) -> None:
    """Run sessions until nobody can ask for any, or one is interrupted."""
    asked.set_inheritable(False)
    with contextlib.closing(KeptJudge()) as kept, asked, asked.makefile("rw") as lines:
        for line in lines:
            code = pytest.main([*IMPORTED, *json.loads(line)["args"]], plugins=[kept])
            if code not in USUAL:
                kept.close()
            lines.write(json.dumps({"code": int(code)}) + "\n")
            lines.flush()
            if code == pytest.ExitCode.INTERRUPTED:
                return


class KeptJudge:
    """Gives each session the judge of the one before, while that fits its settings."""

    def __init__(self) -> None:
        self.judge: Judge | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Before the plugin's own, which starts a judge where there is none."""
        from pytest_autokernel.plugin import JUDGE
        from pytest_autokernel.settings import Settings

        if self.judge is None or not config.getoption("autokernel"):
            return
        settings = Settings.from_config(config)
        if not _alike(settings, self.judge.settings):
            self.close()
            return
        self.judge.settings = settings
        config.stash[JUDGE] = self.judge

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Before the plugin's own, which would close it."""
        from pytest_autokernel.plugin import JUDGE

        if JUDGE in config.stash:
            self.judge = config.stash[JUDGE]
            del config.stash[JUDGE]

    def close(self) -> None:
        if self.judge is not None:
            self.judge.close()
        self.judge = None


def _alike(one: Settings, other: Settings) -> bool:
    """Whether they differ only in what a judge reads afresh for each kernel."""
    return one == replace(
        other,
        seed=one.seed,
        effort=one.effort,
        baseline=one.baseline,
        json=one.json,
        asked=one.asked,
    )
