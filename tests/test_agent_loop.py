"""Experiments and their ledger: what is kept, recorded and left alone; crashes and resuming."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent import ledger as ledgers
from autokernel_agent.errors import Refused
from autokernel_agent.ledger import Ledger
from autokernel_agent.records import COLUMNS, Experiment
from autokernel_agent.report import Report
from autokernel_agent.repository import Repository
from autokernel_agent.stop import never

from .agent_fakes import KERNEL, config_of
from .agent_repository import (
    BARE,
    PATH,
    ScriptedJudge,
    git,
    loop,
    opened,
    run,
    state,
    user_repository,
)

# What the script gives: width pays up to 4, unroll=2 is within the noise, unroll=4 is wrong.
BEST = {"width": 4, "unroll": 1}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BARE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return user_repository(tmp_path / "repo")


def rows(repo: Path) -> list[dict[str, str]]:
    with (repo / ".autokernel/t/results.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def essence(experiments: list[Experiment]) -> list[tuple[object, ...]]:
    """What must not depend on when, or in how many runs, experiments were made."""
    return [(e.experiment, e.description, e.verdict, e.decision, e.seed) for e in experiments]


class TestARun:
    def test_it_keeps_what_is_right_and_faster_and_reverts_the_rest(self, repo: Path) -> None:
        experiments = run(repo, never())
        kept = [e.description for e in experiments if e.kept]
        assert kept == ["width 1 -> 4"]
        assert config_of(git(repo, "show", f"autokernel/t:{PATH}")) == BEST
        assert len(experiments) == 11  # the whole space
        assert {e.decision for e in experiments} == {None, "KEEP", "REVERT", "UNDECIDED"}

    def test_a_fast_kernel_that_fails_the_full_judgement_is_not_kept(self, repo: Path) -> None:
        wrong = [e for e in run(repo, never()) if e.verdict == "FAIL"]
        assert wrong
        assert all(e.decision == "REVERT" for e in wrong)
        assert all(e.speedup is not None and e.speedup.low > 1 for e in wrong)
        assert all(len(e.reports) == 2 for e in wrong)

    def test_only_what_is_promising_is_judged_in_full(self, repo: Path) -> None:
        for e in run(repo, never()):
            assert len(e.reports) == (2 if e.kept or e.verdict == "FAIL" else 1)

    def test_the_users_branch_index_and_work_tree_stay_as_they_were(self, repo: Path) -> None:
        before = state(repo)
        run(repo, 4)
        assert state(repo) == before
        assert (repo / "notes.txt").read_text() == "changed\n"

    def test_its_seeds_are_its_own_and_repeatable(self, repo: Path, tmp_path: Path) -> None:
        here = run(repo, 4)
        there = run(user_repository(tmp_path / "there"), 4)
        assert essence(here) == essence(there)
        assert len({e.seed for e in here}) == len(here)

    def test_the_closing_measurement_is_against_the_starter(self, repo: Path) -> None:
        with opened(repo) as ledger:
            work = loop(ledger)
            assert work.run(never()) == "nothing is left to try"
            closing = work.close()
        assert closing is not None
        assert closing.speedup is not None
        assert closing.speedup.ratio == pytest.approx(2)
        assert closing.starter == git(repo, "rev-parse", "main")
        assert closing.commit == git(repo, "rev-parse", "autokernel/t")
        with opened(repo) as ledger:
            assert ledger.closing(PATH) == closing

    def test_with_nothing_kept_there_is_nothing_to_close(self, repo: Path) -> None:
        with opened(repo) as ledger:
            work = dataclasses.replace(loop(ledger), judge=NeverFaster())
            work.run(never())
            assert work.close() is None
            assert ledger.tip == git(repo, "rev-parse", "main")

    def test_a_wrong_starter_is_refused_with_the_reason_and_nothing_is_recorded(
        self, repo: Path
    ) -> None:
        with opened(repo) as ledger:
            work = dataclasses.replace(loop(ledger), judge=AlwaysWrong())
            with pytest.raises(Refused, match="is not right as it is: CRASH: segfault"):
                work.run(never())
            assert ledger.experiments == []
        assert git(repo, "for-each-ref", "refs/heads/autokernel", "refs/autokernel") == ""

    def test_a_kernel_that_cannot_be_timed_is_refused_with_the_reason(self, repo: Path) -> None:
        with opened(repo) as ledger:
            work = dataclasses.replace(loop(ledger), judge=Untimed())
            with pytest.raises(Refused, match=r"was not timed(.|\n)*SKIP: no GPU"):
                work.run(never())


class NeverFaster(ScriptedJudge):
    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        return super().compare(KERNEL, baseline and KERNEL, seed)


class AlwaysWrong(ScriptedJudge):
    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        report = super().compare(text, baseline, seed)
        return dataclasses.replace(report, verdict="CRASH", reason="segfault")


class Untimed(ScriptedJudge):
    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        report = super().compare(text, baseline, seed)
        skip = {"id": "roofline", "verdict": "SKIP", "reason": "no GPU"}
        raw: dict[str, Any] = {**report.raw, "kernels": [{"items": [skip]}]}
        return dataclasses.replace(report, timings=(), raw=raw)


class TestTheLedger:
    def test_results_tsv_has_the_published_columns_and_a_row_for_each_experiment(
        self, repo: Path
    ) -> None:
        experiments = run(repo, 4)
        header = (repo / ".autokernel/t/results.tsv").read_text().splitlines()[0]
        assert header == "\t".join(COLUMNS)
        first, second, *_ = rows(repo)
        assert first == {
            "experiment": "0",
            "tag": "baseline",
            "kernel_type": "softmax",
            "throughput_tflops": "0.25",
            "latency_us": "1000",
            "pct_peak": "40",
            "speedup_vs_pytorch": "0.9",
            "correctness": "PASS",
            "peak_vram_mb": "",
            "description": "starter",
        }
        assert (second["tag"], second["description"]) == ("keep", "width 1 -> 4")
        assert len(rows(repo)) == len(experiments)

    def test_results_tsv_agrees_with_the_git_log(self, repo: Path) -> None:
        run(repo, never())
        kept = [f"softmax: {row['description']}" for row in rows(repo) if row["tag"] == "keep"]
        assert (
            git(repo, "log", "--format=%s", "--reverse", "main..autokernel/t").split("\n") == kept
        )

    def test_every_experiment_is_a_commit_on_its_parent_that_changes_one_file(
        self, repo: Path
    ) -> None:
        for e in run(repo, never())[1:]:
            assert git(repo, "rev-parse", f"refs/autokernel/t/{e.experiment}") == e.commit
            assert git(repo, "rev-parse", f"{e.commit}^") == e.parent
            assert git(repo, "diff", "--name-only", e.parent, e.commit) == PATH

    def test_a_commit_says_what_was_tried_what_came_of_it_and_how_to_repeat_it(
        self, repo: Path
    ) -> None:
        kept = next(e for e in run(repo, never()) if e.kept)
        assert git(repo, "log", "-1", "--format=%B", kept.commit).splitlines() == [
            "softmax: width 1 -> 4",
            "",
            "verdict: PASS",
            "decision: KEEP",
            f"speedup: 2.000x [1.980, 2.020] over {kept.parent[:12]}, confidence 0.99",
            "time: 500 us on large-fp32, 40 % of the roof",
            "experiment: t/1",
            "proposer: tuner",
            f"seed: {kept.seed}",
            "reproduce:",
            f"  git show {kept.parent[:12]}:{PATH} > baseline.py",
            f"  pytest --autokernel {PATH} --autokernel-baseline baseline.py \\",
            f"    --autokernel-effort quick --autokernel-seed {kept.seed}",
        ]

    def test_it_commits_as_itself_where_git_knows_no_name(self, repo: Path) -> None:
        run(repo, 1)
        author = git(repo, "log", "-1", "--format=%an <%ae> %cn", "refs/autokernel/t/1")
        assert author == "autokernel <autokernel@localhost> autokernel"

    def test_it_commits_as_the_user_where_git_knows_a_name(self, repo: Path) -> None:
        git(repo, "config", "user.name", "Ada")
        git(repo, "config", "user.email", "ada@example.org")
        run(repo, 1)
        assert git(repo, "log", "-1", "--format=%an <%ae>", "refs/autokernel/t/1") == (
            "Ada <ada@example.org>"
        )

    def test_hooks_and_signing_are_not_its_business(self, repo: Path) -> None:
        hook = repo / ".git/hooks/reference-transaction"
        hook.parent.mkdir()
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
        git(repo, "config", "commit.gpgsign", "true")
        git(repo, "config", "gpg.program", "false")
        assert len(run(repo, 2)) == 3

    def test_a_record_survives_its_way_through_the_journal(self, repo: Path) -> None:
        before = run(repo, 3)
        with opened(repo) as ledger:
            assert ledger.experiments == before

    def test_two_kernels_share_a_branch(self, repo: Path) -> None:
        with opened(repo) as ledger:
            loop(ledger).run(never())
            loop(ledger, kernel="kernels/reduce.py").run(never())
            numbers = [e.experiment for e in ledger.experiments]
        assert numbers == list(range(22))
        assert config_of(git(repo, "show", f"autokernel/t:{PATH}")) == BEST
        assert config_of(git(repo, "show", "autokernel/t:kernels/reduce.py")) == BEST


class TestGoingOn:
    def test_a_run_in_pieces_is_the_run_in_one(self, repo: Path, tmp_path: Path) -> None:
        for _ in range(5):
            run(repo, 2)
        whole = run(user_repository(tmp_path / "whole"), 10)
        assert essence(run(repo, 0)) == essence(whole)

    def test_an_exhausted_space_stays_exhausted(self, repo: Path) -> None:
        assert run(repo, never()) == run(repo, never())

    def test_half_a_line_at_the_end_of_the_journal_is_cut_off(self, repo: Path) -> None:
        before = run(repo, 3)
        journal = repo / ".autokernel/t/experiments.jsonl"
        with journal.open("a") as file:
            file.write('{"kind": "experiment", "exper')
        assert run(repo, 0) == before
        assert len(run(repo, 1)) == len(before) + 1
        assert all(json.loads(line) for line in journal.read_text().splitlines())

    def test_a_broken_line_within_the_journal_is_refused_with_its_number(self, repo: Path) -> None:
        run(repo, 2)
        journal = repo / ".autokernel/t/experiments.jsonl"
        lines = journal.read_text().splitlines()
        journal.write_text("\n".join([lines[0], "{}", lines[2]]) + "\n")
        with pytest.raises(Refused, match=r"experiments\.jsonl:2: expected a record"):
            run(repo, 1)

    def test_a_branch_that_somebody_moved_is_refused(self, repo: Path) -> None:
        run(repo, 3)
        git(repo, "branch", "--force", "autokernel/t", "main")
        with pytest.raises(Refused, match="was moved by somebody else"):
            run(repo, 1)

    def test_a_branch_that_somebody_moves_during_the_run_is_left_alone(self, repo: Path) -> None:
        with opened(repo) as ledger:
            loop(ledger).run(never())
            git(repo, "branch", "--force", "autokernel/t", "main")
            with pytest.raises(Refused, match="was moved by somebody else"):
                ledger.append(ledger.experiments[-1])
        assert git(repo, "rev-parse", "autokernel/t") == git(repo, "rev-parse", "main")

    def test_a_branch_without_its_ledger_is_refused(self, repo: Path) -> None:
        git(repo, "branch", "autokernel/t")
        with pytest.raises(Refused, match=r"its ledger .* does not"):
            run(repo, 1)

    def test_a_branch_that_is_checked_out_is_refused(self, repo: Path) -> None:
        run(repo, 1)
        git(repo, "stash")
        git(repo, "switch", "--quiet", "autokernel/t")
        with pytest.raises(Refused, match="is checked out in"):
            run(repo, 1)

    def test_a_second_writer_is_told_who_the_first_is(self, repo: Path) -> None:
        with opened(repo), pytest.raises(Refused, match=r"tag 't' is in use by process \d+: wait"):
            run(repo, 1)
        with opened(repo, "other"):
            assert len(run(repo, 1)) == 2


class Crash(BaseException):
    """The process is gone."""


# Every function whose call changes something on disk, in the order of an experiment.
STEPS: list[tuple[object, str]] = [
    (Repository, "commit"),
    (Ledger, "append"),
    (Ledger, "_settle"),
    (Repository, "point"),
    (Repository, "move"),
    (ledgers, "_replace"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in BARE.items():
            patch.setenv(name, value)
        return essence(run(user_repository(tmp_path_factory.mktemp("whole") / "repo"), 3))


class TestCrashes:
    """A run that dies before or after any step that writes is taken up by the next one."""

    @pytest.mark.parametrize("call", [1, 2])
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
    def test_a_crash_costs_at_most_the_experiment_it_happened_in(
        self,
        owner: object,
        name: str,
        after: bool,
        call: int,
        repo: Path,
        monkeypatch: pytest.MonkeyPatch,
        undisturbed: list[tuple[object, ...]],
    ) -> None:
        step: Callable[..., Any] = getattr(owner, name)
        calls = 0

        def crashing(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and not after:
                raise Crash
            result = step(*args, **options)
            if calls == call:
                raise Crash
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, crashing)
            with pytest.raises(Crash):
                run(repo, 3)
        with opened(repo) as ledger:
            done = len(ledger.experiments)
            assert essence(ledger.experiments) == undisturbed[:done]
            assert ledger.tip == (git(repo, "rev-parse", "autokernel/t") if done else None)
        assert essence(run(repo, len(undisturbed) - max(done, 1))) == undisturbed
        assert [row["experiment"] for row in rows(repo)] == list("0123")

    def test_half_a_work_tree_is_replaced(self, repo: Path) -> None:
        with opened(repo) as ledger:
            folder = ledger.folder / "worktree"
            head = ledger.repository.head()
            for _ in range(2):
                git(repo, "worktree", "add", "--detach", "--lock", str(folder), "HEAD")
                (folder / ".git").unlink()
                with ledger.repository.worktree(folder, head) as worktree:
                    assert (worktree / PATH).read_text() == KERNEL
            git(repo, "worktree", "add", "--detach", str(folder), "HEAD")
            with ledger.repository.worktree(folder, head) as worktree:
                assert git(worktree, "status", "--porcelain") == ""
        assert len(git(repo, "worktree", "list").splitlines()) == 1
