"""`autokernel` as a user meets it: a process in a git repository, with a scripted pytest."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import typer
from autokernel_agent.__main__ import app
from autokernel_agent.ledger import Ledger
from autokernel_agent.options import default_tag, parse_duration, parse_tag
from autokernel_agent.repository import Repository
from autokernel_agent.stop import experiments
from typer.testing import CliRunner

from .agent_cli import Cli
from .agent_repository import PATH, essence, git, loop, opened, state, user_repository
from .conftest import ROOT


@pytest.fixture
def cli(tmp_path: Path, repo: Path) -> Cli:
    return Cli(repo, tmp_path)


class TestOptimize:
    def test_it_prints_a_line_for_each_experiment_and_what_came_of_all(
        self, cli: Cli, repo: Path
    ) -> None:
        before = state(repo)
        done = cli("optimize", PATH, "--tag", "demo", "--experiments", "4", "--seed", "1")
        assert (done.returncode, done.stderr) == (0, "")
        commit = git(repo, "rev-parse", "--short", "autokernel/demo")
        assert [line.rstrip() for line in done.stdout.splitlines() if line.strip()] == [
            "kernels/softmax.py: tag demo, tuner, seed 1",
            "   0  starter                            starter",
            "   1  KEEP       2.000x [1.980, 2.020]   width 1 -> 4",
            "   2  UNDECIDED  1.004x [0.994, 1.014]   unroll 1 -> 2",
            "   3  REVERT     0.950x [0.940, 0.959]   width 4 -> 8",
            "   4  REVERT     0.750x [0.742, 0.758]   width 4 -> 2",
            "kernels/softmax.py: 4 experiments done",
            "kernels/softmax.py: kept 1 of 4 experiments",
            "experiment  kept change   speedup over previous",
            "         1  width 1 -> 4  2.000x [1.980, 2.020]",
            "total: 2.000x [1.980, 2.020] over the starter, measured afresh, confidence 0.99",
            "results  .autokernel/demo/results.tsv",
            "branch   autokernel/demo",
            f"  {commit} softmax: width 1 -> 4",
        ]
        assert state(repo) == before
        assert not (repo / ".autokernel/demo/worktree").exists()

    def test_started_again_it_goes_on(self, cli: Cli, repo: Path) -> None:
        words = ("optimize", PATH, "--tag", "demo", "--seed", "1")
        cli(*words, "--experiments", "2")
        before = state(repo)
        again = cli(*words)
        assert again.returncode == 0
        assert "starter  " not in again.stdout
        assert "nothing is left to try" in again.stdout
        assert "total: 2.000x" in again.stdout
        assert state(repo) == before
        rows = (repo / ".autokernel/demo/results.tsv").read_text().splitlines()[1:]
        assert [row.split("\t")[0] for row in rows] == [str(n) for n in range(11)]
        assert len({row.split("\t")[-1] for row in rows}) == 11

    def test_it_goes_on_where_its_branch_was_merged(self, cli: Cli, repo: Path) -> None:
        words = ("optimize", PATH, "--tag", "demo", "--experiments", "1")
        cli(*words)
        git(repo, "reset", "--quiet")
        git(repo, "merge", "--quiet", "autokernel/demo")
        assert cli(*words).returncode == 0

    def test_several_kernels_share_the_experiments(self, cli: Cli, repo: Path) -> None:
        limits = ("--experiments", "6", "--move-on", "plateau(1)")
        done = cli("optimize", PATH, "kernels/reduce.py", *limits, "--tag", "both")
        assert done.returncode == 0
        assert "kernels/softmax.py: may yet save 15.0% of the time" in done.stdout
        assert "1 in a row were not kept" in done.stdout
        assert done.stdout.count("total: 2.000x") == 2
        assert len(git(repo, "log", "--oneline", "main..autokernel/both").splitlines()) == 2
        assert cli("log").stdout.count("kernels/") == 8

    def test_a_plan_says_which_kernel_comes_first_and_what_the_whole_gains(
        self, cli: Cli, repo: Path
    ) -> None:
        plan = repo / "plan.yaml"
        plan.write_text(
            "kernels:\n- {kernel: kernels/softmax.py, share: 0.1}\n"
            "- {kernel: kernels/reduce.py, share: 0.4}\n"
        )
        done = cli("optimize", "--plan", "plan.yaml", "--experiments", "1", "--tag", "model")
        assert done.returncode == 0, done.stderr
        assert "kernels/reduce.py: may yet save 12.0% of the time" in done.stdout
        rows = [line.split() for line in cli("status").stdout.splitlines()]
        assert [row[0] for row in rows[1:3]] == ["kernels/reduce.py", "kernels/softmax.py"]
        assert rows[1][1:5] == ["40.0%", "1", "1", "2.000x"]
        assert rows[2][1:5] == ["10.0%", "0", "0", "1.000x"]
        assert "the whole, of which these are 50%: 1.250x" in cli("status").stdout

    @pytest.mark.parametrize(
        ("plan", "words"),
        [
            ("kernels: []", "expected shares"),
            ("kernels: [{kernel: kernels/softmax.py, share: 1.5}]", "softmax.py: 1.5"),
            ("a: 1", "expected `kernels:`"),
            ("kernels: [{kernel: kernels/nope.py, share: 0.5}]", "kernels/nope.py"),
        ],
    )
    def test_a_plan_that_is_none_is_refused(
        self, cli: Cli, repo: Path, plan: str, words: str
    ) -> None:
        (repo / "plan.yaml").write_text(plan)
        done = cli("optimize", "--plan", "plan.yaml")
        assert done.returncode == 2
        assert words in done.stderr

    def test_a_kernel_named_twice_is_worked_on_once(self, cli: Cli) -> None:
        done = cli("optimize", PATH, f"./{PATH}", "--experiments", "2")
        assert done.stdout.count("2 experiments done") == 1

    def test_a_budget_ends_it_in_time(self, cli: Cli) -> None:
        began = time.monotonic()
        done = cli("optimize", PATH, "--budget", "1s")
        assert done.returncode == 0
        assert "the budget is spent" in done.stdout or "nothing is left" in done.stdout
        assert time.monotonic() - began < 10

    def test_it_runs_in_any_folder_of_the_repository(self, cli: Cli, repo: Path) -> None:
        done = cli("optimize", "softmax.py", "--experiments", "1", cwd=repo / "kernels")
        assert done.returncode == 0
        assert (repo / ".autokernel/kernels-softmax/results.tsv").exists()

    def test_a_terminal_sees_it_live(self, cli: Cli) -> None:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            cli.command("optimize", PATH, "--budget", "60s", "--experiments", "3"),
            cwd=cli.repo,
            env={**cli.env, "TERM": "xterm-256color"},
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            shown = b""
            try:
                while chunk := os.read(ours, 65536):
                    shown += chunk
            except OSError:  # how Linux says that the other end was closed
                pass
            assert process.wait() == 0
        os.close(ours)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
        assert "kept 0   reverted 0" in text
        assert re.search(r"best 2.000x +kept 1 +reverted", text)
        assert re.search(r"[01]:\d\d left", text)
        assert "total: 2.000x [1.980, 2.020] over the starter" in text


class TestEndings:
    @pytest.mark.parametrize("how", ["interrupt-agent", "terminate-agent"])
    def test_ctrl_c_ends_it_between_experiments_and_says_how_to_go_on(
        self, how: str, cli: Cli, repo: Path
    ) -> None:
        before = state(repo)
        words = ("optimize", PATH, "--tag", "demo", "--seed", "1")
        done = cli(*words, FAKE=f"{how}:4")
        assert done.returncode == 130
        assert done.stderr == "autokernel: interrupted\n"
        assert "kept 1 of 1 experiments" in done.stdout
        assert "total: not measured" in done.stdout
        assert f"to go on: autokernel optimize {PATH} --tag demo" in done.stdout
        assert state(repo) == before
        last = json.loads(cli.log.read_text().splitlines()[-1])
        assert not Path(f"/proc/{last['pid']}").exists()
        assert "2  UNDECIDED" in cli(*words, "--experiments", "1").stdout

    @pytest.mark.parametrize("call", [1, 2, 3, 4])
    def test_kill_9_costs_the_experiment_it_hit_and_no_other(
        self, call: int, cli: Cli, repo: Path
    ) -> None:
        """Calls of the judge: 1 the starter, 2 and 3 on the first experiment, 4 on the second."""
        words = ("optimize", PATH, "--tag", "demo", "--seed", "1", "--experiments")
        assert cli(*words, "4", FAKE=f"kill-agent:{call}").returncode == -signal.SIGKILL
        done = {1: 0, 2: 0, 3: 0, 4: 1}[call]
        again = cli(*words, str(4 - done))
        assert again.returncode == 0
        rows = (repo / ".autokernel/demo/results.tsv").read_text().splitlines()[1:]
        assert [(r.split("\t")[0], r.split("\t")[1]) for r in rows] == [
            ("0", "baseline"),
            ("1", "keep"),
            ("2", "undecided"),
            ("3", "revert"),
            ("4", "revert"),
        ]
        assert len(git(repo, "worktree", "list").splitlines()) == 1

    def test_a_broken_judge_is_no_verdict_on_the_kernel(self, cli: Cli, repo: Path) -> None:
        done = cli("optimize", PATH, "--tag", "demo", FAKE="exit-4")
        assert done.returncode == 1
        assert "the judge itself failed, twice; this says nothing of the kernel" in done.stderr
        assert "INTERNALERROR> no such option" in done.stderr
        assert not (repo / ".autokernel/demo/experiments.jsonl").exists()
        assert len(git(repo, "worktree", "list").splitlines()) == 1

    def test_a_second_run_of_the_same_tag_refuses(self, cli: Cli, repo: Path) -> None:
        with opened(repo, "demo"):
            done = cli("optimize", PATH, "--tag", "demo")
        assert done.returncode == 2
        assert f"tag 'demo' is in use by process {os.getpid()}" in done.stderr


@pytest.fixture(scope="module")
def worked_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two tags, to be looked at alone."""
    repo = user_repository(tmp_path_factory.mktemp("worked") / "repo")
    for tag, most in [("old", 1), ("demo", 99)]:
        with opened(repo, tag) as ledger:
            loop(ledger).run(experiments(most))
    return repo


class TestLogAndShow:
    @pytest.fixture
    def shown(self, tmp_path: Path, worked_in: Path) -> Cli:
        return Cli(worked_in, tmp_path)

    def test_log_lists_the_experiments_of_the_latest_tag(self, shown: Cli) -> None:
        lines = shown("log").stdout.splitlines()
        assert len([line for line in lines if PATH in line]) == 11
        assert any(
            re.search(r" 1 +kernels/softmax.py +KEEP +2.000x \[1.980", line) for line in lines
        )
        assert any("FAIL" in line and "off by 3 ulp in lane 0" in line for line in lines)
        assert (
            len([ln for ln in shown("log", "--tag", "old").stdout.splitlines() if PATH in ln]) == 2
        )

    def test_show_gives_verdict_samples_and_diff(self, shown: Cli) -> None:
        text = shown("show", "1").stdout
        assert "experiment 1  KEEP  width 1 -> 4" in text
        assert "against baseline: 2.000x [1.980, 2.020], confidence 0.99, KEEP" in text
        assert "block 1: 1000 us -> 500 us, 2x (medians of 3 samples, of as many," in text
        (screen, judgement) = re.findall(r"timing +large-fp32: .* \((.*)\)", text)
        assert (screen, judgement) == ("the screen's", "the judgement's")
        assert '-CONFIG = {"width": 1, "unroll": 1}' in text
        assert '+CONFIG = {"width": 4, "unroll": 1}' in text

    def test_show_gives_the_reason_of_a_failure(self, shown: Cli) -> None:
        lines = shown("log").stdout.splitlines()
        number = next(line.split()[0] for line in lines if "FAIL" in line)
        assert "edge_cases[large-fp32]: FAIL: softmax 1x1" in shown("show", number).stdout

    def test_show_gives_the_starter_without_a_diff(self, shown: Cli) -> None:
        text = shown("show", "0").stdout
        assert "this is the starter" in text
        assert "diff" not in text

    def test_an_unknown_experiment_is_refused(self, shown: Cli) -> None:
        done = shown("show", "99")
        assert done.returncode == 2
        assert "has the experiments 0 to 10, no experiment 99" in done.stderr


class TestOptions:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("90", 90), ("60s", 60), ("10m", 600), ("8h", 28800), ("1h30m", 5400), ("0.5m", 30)],
    )
    def test_a_duration_is_read(self, text: str, seconds: float) -> None:
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize("text", ["", "soon", "10x", "-5s", "0", "1h 5m", "s"])
    def test_what_is_no_duration_is_refused(self, text: str) -> None:
        with pytest.raises(typer.BadParameter, match="expected a duration such as 60s"):
            parse_duration(text)

    @pytest.mark.parametrize("tag", ["demo", "2026-11-20", "a.b_c", "x"])
    def test_a_tag_is_what_a_branch_can_be_called(self, tag: str) -> None:
        assert parse_tag(tag) == tag

    @pytest.mark.parametrize("tag", ["", "a/b", "../x", "a..b", ".x", "x.lock", "a b", "-x"])
    def test_a_tag_that_is_no_name_is_refused(self, tag: str) -> None:
        with pytest.raises(typer.BadParameter):
            parse_tag(tag)

    def test_the_default_tag_says_which_kernel(self) -> None:
        assert default_tag(Path("kernels/cpp/softmax.py")) == "cpp-softmax"
        assert parse_tag(default_tag(Path("/odd name/é.py")))

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--budget", "soon"], "expected a duration"),
            (["--tag", "a/b"], "expected letters"),
            (["--proposer", "oracle"], "expected one of tuner"),
            (["--experiments", "0"], "greater than or equal"),
        ],
    )
    def test_a_bad_option_is_refused_before_anything_happens(
        self, words: list[str], message: str
    ) -> None:
        result = CliRunner().invoke(app, ["optimize", PATH, *words])
        assert result.exit_code == 2
        assert message in result.stderr


class TestReplay:
    def test_an_experiment_is_judged_again_with_the_same_outcome(
        self, cli: Cli, repo: Path
    ) -> None:
        cli("optimize", PATH, "--experiments", "3", "--seed", "1")
        before = state(repo)
        for number in range(4):
            done = cli("replay", str(number))
            assert done.returncode == 0, done.stdout + done.stderr
            then, now = done.stdout.splitlines()[-2:]
            assert then.split()[1:] == now.split()[1:]
        assert state(repo) == before

    def test_another_outcome_is_said(self, cli: Cli) -> None:
        cli("optimize", PATH, "--experiments", "1", "--seed", "1")
        done = cli("replay", "1", FAKE="fail")
        assert done.returncode == 1
        assert "not what it was" in done.stdout


# Runs in namespaces of its own, where it may mount a disk that is soon full.
ON_A_SMALL_DISK = """
import json, os, subprocess, sys
from pathlib import Path

from tests.agent_repository import essence, user_repository
from autokernel_agent.ledger import Ledger
from autokernel_agent.repository import Repository

disk, room_kb, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
repo = user_repository(disk / "repo")
free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
(disk / "filler").write_bytes(bytes(free - 1024 * room_kb))
full = subprocess.run(command, cwd=repo, capture_output=True, text=True)
(disk / "filler").unlink()
journal = repo / ".autokernel/small/experiments.jsonl"
while (done := journal.read_bytes().count(b'"kind": "experiment"') if journal.exists() else 0) < 7:
    left = [*command[:-1], str(7 - max(done, 1))]
    again = subprocess.run(left, cwd=repo, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
ledger = Ledger(Repository(repo), "small")
print(json.dumps([full.returncode, full.stderr, repr(essence(ledger.experiments))]))
"""


@pytest.mark.parametrize("room_kb", [40, 80, 120, 160])
def test_a_full_disk_is_said_and_loses_nothing(
    cli: Cli, repo: Path, tmp_path: Path, room_kb: int
) -> None:
    unshare = ("unshare", "--user", "--map-root-user", "--mount")
    missing = shutil.which("unshare") is None
    if missing or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("this system lets nobody but root mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    limit = ("--experiments", "6")
    optimize = cli.command("optimize", PATH, "--tag", "small", "--seed", "1", *limit)
    script = [sys.executable, "-c", ON_A_SMALL_DISK, str(disk), str(room_kb), *optimize]
    path = os.pathsep.join([cli.env["PYTHONPATH"], str(ROOT)])
    env = {**cli.env, "PYTHONPATH": path}
    done = subprocess.run([*unshare, *script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, words, found = json.loads(done.stdout)
    assert code == 1
    assert "the disk is full" in words, words
    cli("optimize", PATH, "--tag", "small", "--seed", "1", *limit)
    with closing(Repository(repo)) as repository:
        assert found == repr(essence(Ledger(repository, "small").experiments))
