"""Workers that die or break down: nothing is lost with them."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from autokernel_agent.crew import MOST_BROKEN, MOST_LOST, Crew
from autokernel_agent.errors import JudgeFailed
from autokernel_agent.process import Processes
from autokernel_agent.report import Report
from autokernel_agent.stop import never
from autokernel_agent.worker import WorkerLost

from .agent_fakes import KERNEL
from .agent_listed import EDITS, WIDER, Listed, opened_as_listed, worked
from .agent_repository import (
    PATH,
    Given,
    OnGpu,
    ScriptedJudge,
    crew,
    essence,
    loop,
    opened,
    user_repository,
)

pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Listed]:
    return opened_as_listed(monkeypatch)


class Mortal(ScriptedJudge):
    """Is lost with its worker, or breaks down, when `dies` says so of a text."""

    def __init__(self, dies: Callable[[str], Exception | None]) -> None:
        self.dies = dies

    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        if error := self.dies(text):
            raise error
        return super().screen(text, incumbent, seed)


class Once:
    """Of all that are asked for a text, the first one dies."""

    def __init__(self, text: str, error: Exception) -> None:
        self.text, self.error = text, error
        self.asked = 0

    def __call__(self, text: str) -> Exception | None:
        if text != self.text:
            return None
        self.asked += 1
        return self.error if self.asked == 1 else None


class Dying:
    """Answers, but for the second time that it is asked."""

    def __init__(self, answer: Callable[[str], Report]) -> None:
        self.answer, self.asked = answer, 0

    def __call__(self, text: str) -> Report:
        self.asked += 1
        if self.asked == 2:
            raise WorkerLost("killed")
        return self.answer(text)


class TestDeaths:
    @pytest.mark.parametrize("count", [1, 4])
    def test_a_worker_that_dies_is_replaced_and_loses_nothing(
        self, count: int, repo: Path, tmp_path: Path, listed: list[Listed]
    ) -> None:
        dies = Once(WIDER, WorkerLost("killed"))
        done = worked(repo, *(Mortal(dies) for _ in range(count)))
        whole = worked(user_repository(tmp_path / "whole"), *(ScriptedJudge(),) * count)
        assert essence(done) == essence(whole)
        assert dies.asked >= 2

    def test_one_that_dies_while_it_compiles_is_replaced_too(self, repo: Path) -> None:
        judge = OnGpu()
        judge.binary = Dying(judge.binary)  # type: ignore[method-assign]
        done = worked(repo, judge, by="tuner")
        assert len(done) == 11
        assert all(e.binary for e in done)

    def test_one_whose_judge_breaks_down_is_asked_no_more(
        self, repo: Path, listed: list[Listed]
    ) -> None:
        broken, said = threading.Event(), list[str]()

        def breaks(text: str) -> Exception:
            assert not broken.is_set()
            broken.set()
            return JudgeFailed("the GPU fell off the bus")

        def waits(text: str) -> None:
            assert broken.wait(10)

        with opened(repo) as ledger:
            bad, good = Given(Mortal(breaks)), Given(Mortal(waits))
            two = Crew([lambda: bad, lambda: good], said.append)
            dataclasses.replace(loop(ledger), crew=two, proposer="listed").run(never())
            two.close()
            assert len(ledger.experiments) == len(EDITS) + 1
        assert said == ["a worker is gone, the others go on: the GPU fell off the bus"]

    def test_a_candidate_that_kills_every_worker_ends_the_run(
        self, repo: Path, listed: list[Listed]
    ) -> None:
        asked = []

        def dies(text: str) -> Exception | None:
            asked.append(text)
            return WorkerLost("it is gone") if text == WIDER else None

        with opened(repo) as ledger:
            work = dataclasses.replace(loop(ledger), crew=crew(Mortal(dies)), proposer="listed")
            with pytest.raises(JudgeFailed, match="it is gone"):
                work.run(never())
            assert [e.description for e in ledger.experiments[1:]] == [
                edit.description for edit in EDITS[:2]
            ]
        assert asked.count(WIDER) == MOST_LOST

    def test_a_run_without_any_worker_left_ends(self) -> None:
        def hire() -> Given:
            raise JudgeFailed("no room")

        none = Crew([hire, hire])
        answer = none.ask(PATH, "starter", lambda judge: judge.compare(KERNEL, None, 1))
        with pytest.raises(JudgeFailed, match="no room"):
            answer.result(10)
        none.close()

    def test_what_a_worker_has_started_ends_with_it_and_nothing_follows(
        self, tmp_path: Path
    ) -> None:
        processes = Processes({"OURS": "1"})
        process = processes.start(["sleep", "600"], tmp_path, tmp_path / "output")
        processes.close()
        assert process.poll() is not None
        with pytest.raises(JudgeFailed):
            processes.start(["sleep", "600"], tmp_path, tmp_path / "output")

    def test_and_so_does_one_that_breaks_the_judges_of_two(
        self, repo: Path, listed: list[Listed]
    ) -> None:
        asked = []

        def breaks(text: str) -> Exception | None:
            asked.append(text)
            return JudgeFailed("it hangs") if text == WIDER else None

        with opened(repo) as ledger:
            four = crew(*(Mortal(breaks) for _ in range(4)))
            work = dataclasses.replace(loop(ledger), crew=four, proposer="listed")
            with pytest.raises(JudgeFailed, match="it hangs"):
                work.run(never())
        assert asked.count(WIDER) == MOST_BROKEN
