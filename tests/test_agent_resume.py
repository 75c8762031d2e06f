"""Runs that end early, by a crash at any step or by somebody's hand, and are taken up again."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent import ledger as ledgers
from autokernel_agent.errors import Refused
from autokernel_agent.ledger import Ledger
from autokernel_agent.repository import Repository
from autokernel_agent.stop import never

from .agent_fakes import KERNEL
from .agent_repository import (
    BARE,
    PATH,
    essence,
    git,
    loop,
    opened,
    rows,
    run,
    user_repository,
)

pytestmark = pytest.mark.usefixtures("bare")


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


def killed(doing: Callable[[], object]) -> bool:
    """Whether it ended by SIGKILL, in a process of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside xdist's threads
        child = os.fork()
    if not child:
        try:
            doing()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


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
    """A run that is killed before or after any step that writes is taken up by the next one."""

    @pytest.mark.parametrize("call", [1, 2])
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
    def test_kill_9_costs_at_most_the_experiment_it_happened_in(
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

        def dying(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = step(*args, **options)
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying)
            assert killed(lambda: run(repo, 3))
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
