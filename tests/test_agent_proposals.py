"""What the loop makes of proposals: those that come to nothing, and what all of them take."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from autokernel_agent import page
from autokernel_agent.proposers import PROPOSERS, Edit, ProposalFailed, Settings, Situation, Try
from autokernel_agent.records import Experiment, Proposal, from_line, to_line
from autokernel_agent.stop import Progress, Stop, cost, failures, never, seconds, tokens
from autokernel_agent.tables import details
from autokernel_agent.usage import NOTHING, Price, Usage, total

from .agent_fakes import KERNEL
from .agent_repository import BARE, PATH, Silent, loop, opened, user_repository

FASTER = KERNEL.replace('"width": 1,', '"width": 4,')
WRONG = KERNEL.replace('"width": 1, "unroll": 1', '"width": 4, "unroll": 4')
Step = Edit | ProposalFailed | None


class Scripted:
    """Gives one step of a script after the other, and remembers what it is told."""

    def __init__(self, script: Iterator[Step]) -> None:
        self.script = script
        self.situations: list[Situation] = []
        self.told: list[Try] = []

    def ask(self, situation: Situation) -> Edit | None:
        self.situations.append(situation)
        step = next(self.script, None)
        if isinstance(step, ProposalFailed):
            raise step
        return step

    def tell(self, tried: Try) -> None:
        self.told.append(tried)


@dataclasses.dataclass
class Run:
    """What became of a run with a scripted proposer."""

    proposer: Scripted
    why: str
    experiments: list[Experiment]
    proposals: list[Proposal]
    seen: list[str]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    for name, value in BARE.items():
        monkeypatch.setenv(name, value)
    repo = user_repository(tmp_path / "repo")

    def run(*steps: Step, stop: Stop | None = None) -> Run:
        proposer = Scripted(iter(steps))

        def open_it(text: str, seed: int, settings: Settings) -> Scripted:
            return proposer

        monkeypatch.setattr("autokernel_agent.loop.PROPOSERS", {**PROPOSERS, "scripted": open_it})
        with opened(repo) as ledger:
            display = Silent()
            work = dataclasses.replace(loop(ledger), proposer="scripted", display=display)
            why = work.run(stop or never())
            return Run(proposer, why, ledger.experiments, ledger.proposals, display.seen)

    return run


class TestAProposalThatFails:
    def test_is_told_and_recorded_and_is_no_experiment(self, play: Callable[..., Run]) -> None:
        run = play(ProposalFailed("it hung", Usage(5, 5)), Edit(FASTER, "wide"))
        assert [e.description for e in run.experiments] == ["starter", "wide"]
        assert run.experiments[1].kept
        (proposal,) = run.proposals
        assert (proposal.experiment, proposal.kernel) == (1, PATH)
        assert (proposal.failure, proposal.usage) == ("it hung", Usage(5, 5))
        assert "1 it hung" in run.seen

    def test_is_told_to_the_next_proposal_and_no_longer(self, play: Callable[..., Run]) -> None:
        run = play(ProposalFailed("one"), ProposalFailed("two"), Edit(FASTER, "wide"))
        assert [s.failed for s in run.proposer.situations] == [(), ("one",), ("one", "two"), ()]

    def test_is_remembered_when_the_run_is_taken_up_again(self, play: Callable[..., Run]) -> None:
        play(ProposalFailed("it hung"), stop=failures(1))
        assert play().proposer.situations[0].failed == ("it hung",)

    def test_ends_the_run_if_it_is_one_of_many_in_a_row(self, play: Callable[..., Run]) -> None:
        no = ProposalFailed("no key")
        run = play(no, no, Edit(FASTER, "wide"), no, no, no, stop=failures(3))
        assert run.why == "3 proposals in a row came to nothing, the last: no key"
        assert len(run.experiments) == 2

    def test_does_not_outlast_the_budget(self) -> None:
        assert seconds(1).why(Progress(elapsed_s=2)) is None
        assert seconds(1).why(Progress(elapsed_s=2, failed=("it hung",)))


class TestASituation:
    def test_is_of_the_incumbent_and_its_own_report(self, play: Callable[..., Run]) -> None:
        first, second, third = play(
            Edit(FASTER, "wide"), Edit(WRONG, "unrolled")
        ).proposer.situations
        assert (first.text, first.op, first.kernel) == (KERNEL, "softmax", PATH)
        assert first.history == ()
        assert second.text == third.text == FASTER
        assert first.report.timings[0].time_us == 1000
        assert second.report.timings[0].time_us == third.report.timings[0].time_us == 500

    def test_has_what_was_tried_with_verdict_reason_and_speedup(
        self, play: Callable[..., Run]
    ) -> None:
        run = play(Edit(FASTER, "wide"), Edit(WRONG, "unrolled"))
        kept, wrong = run.proposer.situations[-1].history
        assert kept.kept
        assert kept.speedup
        assert kept.speedup.ratio == pytest.approx(2)
        assert (wrong.verdict, wrong.kept, wrong.text) == ("FAIL", False, WRONG)
        assert wrong.reason
        assert "off by 3 ulp" in wrong.reason
        assert run.proposer.told == [kept, wrong]
        assert play().proposer.told == [kept, wrong]  # of the ledger, in the next run


class TestWhatProposalsTake:
    def test_it_is_on_record_before_the_edit_is_judged(self, play: Callable[..., Run]) -> None:
        run = play(Edit(FASTER, "wide", Usage(100, 20, 0.5)))
        (proposal,) = run.proposals
        assert (proposal.failure, proposal.usage) == (None, Usage(100, 20, 0.5))
        assert from_line(to_line(proposal)) == proposal

    def test_it_is_shown_with_the_experiment_that_it_came_to(
        self, play: Callable[..., Run], tmp_path: Path
    ) -> None:
        hung = ProposalFailed("it hung", Usage(1000, 0, 0.25))
        play(hung, Edit(FASTER, "wide", Usage(200, 34, 0.5)), Edit(WRONG, "wrong", Usage(7, 0)))
        with opened(tmp_path / "repo") as ledger:
            starter, wide, wrong = ledger.experiments
            assert ledger.usage(starter) is None
            assert "proposal   1,234 tokens, $0.75" in details(wide, ledger.usage(wide))
            assert "proposal   7 tokens" in details(wrong, ledger.usage(wrong))
            story = page.of(ledger)
        html, markdown = page.html(story), page.markdown(story)
        assert "Proposals: 3, 1 came to nothing; 1,241 tokens." in markdown
        assert r"by scripted (1,234 tokens, \$0.75)" in markdown
        assert re.search(r"\(7 tokens\) .*off by 3 ulp", markdown)
        assert "by scripted (1,234 tokens, $0.75)" in html
        assert ">7 tokens</span>" in html

    def test_what_is_not_known_is_not_nothing(self) -> None:
        assert total([Usage(1, 2, 0.5), Usage(1, 2)]) == Usage(2, 4, None)
        assert total([]) == NOTHING
        assert str(Usage(1000, 500, 0.25)) == "1,500 tokens, $0.25"
        assert str(Usage(1000, 500, 1234.5678)) == "1,500 tokens, $1,234.57"
        assert str(Usage(1000, 500, 0.00421)) == "1,500 tokens, $0.0042"
        assert str(Usage()) == "tokens unknown"

    def test_a_price_gives_the_cost_that_nobody_reported(self) -> None:
        price = Price(2.0, 10.0)
        assert price.of(Usage(1_000_000, 100_000)).cost_usd == 3.0
        assert price.of(Usage(1_000_000, 100_000, 1.0)).cost_usd == 1.0
        assert price.of(Usage()) == Usage()

    @pytest.mark.parametrize(
        ("stop", "words"),
        [
            (cost(1.0), "$1.2 of $1 are spent"),
            (tokens(200), "240 of 200 tokens are spent"),
        ],
    )
    def test_a_limit_ends_the_run_before_the_next_proposal(
        self, play: Callable[..., Run], stop: Stop, words: str
    ) -> None:
        spent = Usage(100, 20, 0.6)
        run = play(Edit(FASTER, "a", spent), ProposalFailed("no", spent), stop=stop)
        assert run.why == words
        assert len(run.proposer.situations) == 2

    def test_one_that_is_not_known_counts_as_the_dearest(self, play: Callable[..., Run]) -> None:
        known = Edit(FASTER, "a", Usage(50, 50, 0.5))
        assert play(known, ProposalFailed("hung"), known, stop=cost(1.0)).why.startswith("$1 of $1")

    @pytest.mark.parametrize("stop", [cost(1.0), tokens(200)])
    def test_a_limit_on_what_nobody_reports_ends_the_run(
        self, play: Callable[..., Run], stop: Stop
    ) -> None:
        run = play(Edit(FASTER, "a", Usage()), stop=stop)
        assert "cannot hold" in run.why
        assert len(run.proposer.situations) == 1
