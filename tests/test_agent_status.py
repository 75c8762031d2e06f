"""What a run says of its workers while it goes: in `autokernel status`, and on its terminal."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from autokernel_agent.crew import Crew
from autokernel_agent.display import Status, workers_table
from autokernel_agent.errors import JudgeFailed
from autokernel_agent.report import Report
from autokernel_agent.roster import Place, Roster, read
from autokernel_agent.worker import WorkerLost
from rich.console import Console, RenderableType

from .agent_cli import Cli, soon
from .agent_fakes import KERNEL
from .agent_repository import PATH, Given, ScriptedJudge, opened

OPTIMIZE = ("optimize", PATH, "--tag", "t", "--seed", "1")
JUDGING = Place("GPU 1, H200", PATH, "experiment 7", 1000.0, 3)


class Waiting(ScriptedJudge):
    """Answers when it is let, or fails as it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self.let, self.error = threading.Event(), threading.Event(), error

    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        self.asked.set()
        assert self.let.wait(10)
        if error := self.error:
            self.error = None
            raise error
        return super().compare(text, baseline, seed)


def ask(crew: Crew, what: str = "starter") -> Report:
    return crew.ask(PATH, what, lambda judge: judge.compare(KERNEL, None, 1)).result(10)


def shown(what: RenderableType) -> list[str]:
    console = Console(width=120)
    with console.capture() as text:
        console.print(what)
    return [line.rstrip() for line in text.get().splitlines()]


class TestACrew:
    def test_says_what_a_worker_judges_while_it_does(self) -> None:
        judge, noted = Waiting(), list[Place]()
        with closing(Crew([lambda: Given(judge)], noted=lambda p: noted.extend(p))) as crew:
            assert crew.places == [Place()]
            asked = crew.ask(PATH, "experiment 7", lambda j: j.compare(KERNEL, None, 1))
            assert judge.asked.wait(10)
            (place,) = crew.places
            assert (place.where, place.kernel, place.what) == ("here", PATH, "experiment 7")
            assert abs(place.since - time.time()) < 10
            judge.let.set()
            asked.result(10)
            assert (crew.places[0].kernel, crew.places[0].judged) == (None, 1)
            assert [place, crew.places[0]] == noted[-2:]

    def test_counts_no_compiling(self) -> None:
        with closing(Crew([lambda: Given(ScriptedJudge())])) as crew:
            crew.binary(PATH, KERNEL).result(10)
            assert crew.places == [Place("here")]

    def test_says_why_a_worker_was_lost_and_counts_what_the_next_one_judges(self) -> None:
        judge = Waiting(WorkerLost("the machine is gone"))
        judge.let.set()
        with closing(Crew([lambda: Given(judge)])) as crew:
            ask(crew)
            assert crew.places[0].lost == ("the machine is gone",)
            assert crew.places[0].judged == 1

    def test_says_why_nobody_follows_one_whose_judge_broke_down(self) -> None:
        bad, good = Waiting(JudgeFailed("the GPU fell off the bus")), Waiting()
        with closing(Crew([lambda: Given(bad), lambda: Given(good)])) as crew:
            both = [crew.ask(PATH, "x", lambda j: j.compare(KERNEL, None, 1)) for _ in range(2)]
            assert bad.asked.wait(10)
            assert good.asked.wait(10)
            bad.let.set()
            good.let.set()
            for answer in both:
                answer.result(10)
            assert [(p.gone, p.judged) for p in crew.places] == [
                ("the GPU fell off the bus", 0),
                (None, 2),
            ]


class TestTheFile:
    def test_is_what_was_written_and_is_removed_at_the_end(self, tmp_path: Path) -> None:
        file = tmp_path / "workers.json"
        places = [JUDGING, Place(lost=("killed",), gone="no room")]
        with Roster(file) as roster:
            roster.write([Place()])
            roster.write(places)
            assert read(file) == places
        roster.write(places)  # by a thread that comes too late
        assert [*tmp_path.iterdir()] == []
        assert read(file) is None

    def test_of_another_version_is_not_guessed_at(self, tmp_path: Path) -> None:
        file = tmp_path / "workers.json"
        for text in (
            '{"schema": 2, "workers": []}',
            "{}",
            "half",
            '{"schema": 1, "workers": [{"x":',
        ):
            file.write_text(text)
            assert read(file) is None

    def test_that_cannot_be_written_ends_no_run(self, tmp_path: Path) -> None:
        with Roster(tmp_path / "missing" / "workers.json") as roster:
            roster.write([JUDGING])


class TestTheTable:
    def test_has_a_line_for_each_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time", lambda: 1066.0)
        lost = ("first", "a worker in the cluster was lost:\nthe node died")
        places = [
            JUDGING,
            Place("node-3, GPU 0", judged=12, lost=lost),
            Place(gone="no worker could be had"),
            Place(),
        ]
        assert [
            line.split("  ")
            for line in re.sub(" {2,}", "  ", "\n".join(shown(workers_table(places)))).split("\n")
        ] == [
            ["worker", "judged", "for", "what it judges now"],
            ["0", "GPU 1, H200", "3", "1:06", f"{PATH}, experiment 7"],
            ["1", "node-3, GPU 0", "12", "waits"],
            ["", "2 lost here, the last: a worker in the cluster was lost: the node died"],
            ["2", "0", "gone: no worker could be had"],
            ["3", "0", "is not there yet"],
        ]

    def test_follows_the_last_line_of_a_run_that_has_several(self) -> None:
        assert len(shown(Status(0.0, None, lambda: [JUDGING]))) == 1
        lines = shown(Status(0.0, None, lambda: [JUDGING, Place()]))
        assert "GPU 1, H200" in lines[2]


@pytest.fixture
def cli(tmp_path: Path, repo: Path) -> Cli:
    return Cli(repo, tmp_path)


@contextmanager
def going(cli: Cli, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        cli.command(*words),
        cwd=cli.repo,
        env={**cli.env, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def hangs(place: Place) -> bool:
    return place.what.startswith("experiment") and time.time() - place.since > 1


class TestStatus:
    def test_shows_what_each_worker_is_at_and_afterwards_that_no_run_is_on(
        self, cli: Cli, repo: Path
    ) -> None:
        file = repo / ".autokernel/t/workers.json"
        with going(cli, *OPTIMIZE, "--workers", "2", FAKE="hang:4") as run:
            assert soon(lambda: any(hangs(place) for place in read(file) or ()))
            text = cli("status").stdout
        assert f"a run is on, in process {run.pid}\n" in text
        assert re.search(rf"\n[01]  this machine +\d+ +0:\d\d  {PATH}, experiment \d", text)
        assert run.returncode == 130
        assert not file.exists()
        text = cli("status").stdout
        assert text.endswith("no run is on\n")
        assert "this machine" not in text

    def test_shows_a_run_that_measures_its_starter(self, cli: Cli, repo: Path) -> None:
        file = repo / ".autokernel/t/workers.json"
        with going(cli, *OPTIMIZE, FAKE="hang:1"):
            assert soon(lambda: any(p.kernel for p in read(file) or ()))
            done = cli("status")
        assert done.returncode == 0, done.stderr
        assert f"{PATH}, starter" in done.stdout
        assert cli("log").returncode == 2  # of no experiment yet

    def test_says_plainly_that_a_run_was_killed(self, cli: Cli, repo: Path) -> None:
        cli(*OPTIMIZE, FAKE="kill-agent:4")
        assert json.loads((repo / ".autokernel/t/workers.json").read_text())["workers"]
        text = cli("status").stdout
        assert "no run is on: the last one was killed; nothing that was recorded is lost" in text
        assert "experiment 2" not in text
        cli(*OPTIMIZE, "--experiments", "1")
        assert cli("status").stdout.endswith("no run is on\n")

    def test_keeps_no_run_from_beginning(self, repo: Path) -> None:
        """It holds the run's lock for a moment, to see whether anybody else does."""
        with opened(repo):
            pass
        look = os.open(repo / ".autokernel/t/lock", os.O_RDONLY)
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.2, os.close, [look]).start()
        with opened(repo) as ledger:
            assert ledger.writer == str(os.getpid())
        assert ledger.writer is None
