"""`--workers` with real processes: several here, and a Ray cluster of four logical GPUs."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer
from autokernel_agent.ledger import Ledger
from autokernel_agent.options import parse_workers
from autokernel_agent.repository import Repository
from autokernel_agent.roster import read
from autokernel_agent.staff import ROSTER

from .agent_cli import Cli, gone, soon
from .agent_repository import PATH, git, user_repository

OPTIMIZE = ("optimize", PATH, "--tag", "t", "--seed", "1")
CLUSTER = """
import sys, ray
found = ray.init(
    num_cpus=1, num_gpus=4, object_store_memory=80 * 2**20, include_dashboard=False,
    logging_level="ERROR", log_to_driver=False, _temp_dir=sys.argv[1],
)
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture
def cli(tmp_path: Path, repo: Path) -> Cli:
    return Cli(repo, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What one worker tries."""
    folder = tmp_path_factory.mktemp("whole")
    repo = user_repository(folder / "repo")
    assert Cli(repo, folder)(*OPTIMIZE).returncode == 0
    return tried(repo)


def tried(repo: Path) -> set[str]:
    """The texts of all experiments, which are numbered one by one, none twice."""
    repository = Repository(repo)
    done = Ledger(repository, "t").experiments
    texts = [repository.text(e.commit, PATH) for e in done]
    repository.close()
    assert [e.experiment for e in done] == [*range(len(done))]
    assert len({*texts}) == len(texts)
    assert sum(e.kept for e in done) > 0
    return {*texts}


class TestOnThisMachine:
    @pytest.mark.parametrize("how", ["", "signal:6"], ids=["undisturbed", "one is killed"])
    def test_four_try_what_one_tries(self, how: str, cli: Cli, repo: Path, whole: set[str]) -> None:
        done = cli(*OPTIMIZE, "--workers", "4", FAKE=how)
        assert (done.returncode, done.stderr) == (0, "")
        assert "nothing is left to try" in done.stdout
        assert "total: 2.000x" in done.stdout
        assert tried(repo) == whole
        calls = [json.loads(line) for line in cli.log.read_text().splitlines()]
        assert len({call["cwd"] for call in calls}) > 1
        assert len(git(repo, "worktree", "list").splitlines()) == 1

    def test_kill_9_of_the_runner_loses_nothing_that_was_recorded(
        self, cli: Cli, repo: Path, whole: set[str]
    ) -> None:
        killed = cli(*OPTIMIZE, "--workers", "4", FAKE="kill-agent:9")
        assert killed.returncode == -signal.SIGKILL
        before = (repo / ".autokernel/t/experiments.jsonl").read_text()
        assert cli(*OPTIMIZE).returncode == 0
        assert (repo / ".autokernel/t/experiments.jsonl").read_text().startswith(before)
        assert tried(repo) == whole
        assert len(git(repo, "worktree", "list").splitlines()) == 1

    def test_ctrl_c_ends_all_of_them(self, cli: Cli, repo: Path) -> None:
        done = cli(*OPTIMIZE, "--workers", "4", FAKE="interrupt-agent:9")
        assert (done.returncode, done.stderr) == (130, "autokernel: interrupted\n")
        assert f"to go on: autokernel optimize {PATH} --tag t --workers 4" in done.stdout
        calls = [json.loads(line) for line in cli.log.read_text().splitlines()]
        assert soon(lambda: all(gone(call["pid"]) for call in calls))
        assert len(git(repo, "worktree", "list").splitlines()) == 1

    @pytest.mark.parametrize("text", ["0", "-1", "many", "ray:", "ray://", "dask"])
    def test_other_words_are_refused(self, text: str) -> None:
        assert [parse_workers(word) for word in ("8", "ray", "ray://a:1")] == [
            "8",
            "ray",
            "ray://a:1",
        ]
        with pytest.raises(typer.BadParameter, match="expected a number, ray or"):
            parse_workers(text)


class TestRay:
    def test_without_ray_it_is_said_what_to_install(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "path/ray.py").write_text("raise ImportError\n")
        done = cli(*OPTIMIZE, "--workers", "ray")
        assert done.returncode == 2
        assert "--workers ray needs the package ray: pip install" in done.stderr

    @pytest.fixture
    def cluster(self, cli: Cli, tmp_path: Path) -> Iterator[dict[str, str]]:
        """The variables with which one is reached. One of its workers is killed by the sixth call
        of its judge; what was exported where it was started must not reach any."""
        pytest.importorskip("ray", reason="ray, an extra, is not installed")
        folder = tempfile.mkdtemp(prefix="ray-")  # a short path: its sockets lie there
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(tmp_path)}
        with subprocess.Popen(
            [sys.executable, "-c", CLUSTER, folder],
            env={**cli.env, **token, **quiet, "FAKE": "kill-agent:6", "OPENAI_API_KEY": "hidden"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            try:
                yield {**token, "RAY_ADDRESS": process.stdout.readline().strip()}
            finally:
                process.communicate(timeout=30)  # closes its input
                shutil.rmtree(folder, ignore_errors=True)

    def test_four_try_what_one_tries_though_one_is_killed(
        self, cluster: dict[str, str], cli: Cli, repo: Path, whole: set[str]
    ) -> None:
        roster, places = repo / ".autokernel/t" / ROSTER, set()
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(cli, *OPTIMIZE, "--workers", "ray", **cluster)
            while not run.done():
                places |= {place.where for place in read(roster) or ()}
                time.sleep(0.01)
        done = run.result()
        assert done.returncode == 0, done.stderr
        here = {f"{socket.gethostname()}, GPU {n}" for n in range(4)}
        assert set() < places - {""} <= here
        assert "total: 2.000x" in done.stdout
        assert tried(repo) == whole
        calls = [json.loads(line) for line in cli.log.read_text().splitlines()]
        assert len({call["cwd"] for call in calls}) > 1
        assert {call["gpu"] for call in calls} <= {"0", "1", "2", "3"}  # some may start too late
        assert not any("OPENAI_API_KEY" in call["variables"] for call in calls)
        assert soon(lambda: all(gone(call["pid"]) for call in calls))
        assert not any(str(repo) in call["cwd"] for call in calls)
