"""The ledger: what it says of every experiment, in git, in results.tsv and in its journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from autokernel_agent.records import COLUMNS
from autokernel_agent.stop import never

from .agent_fakes import config_of
from .agent_repository import PATH, git, loop, opened, rows, run

pytestmark = pytest.mark.usefixtures("bare")


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
        assert config_of(git(repo, "show", f"autokernel/t:{PATH}")) == {"width": 4, "unroll": 1}
        assert config_of(git(repo, "show", "autokernel/t:kernels/reduce.py")) == {
            "width": 4,
            "unroll": 1,
        }
