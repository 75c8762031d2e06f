"""The oracle as a process: what is asked of pytest, what is believed, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent import process as processes
from autokernel_agent.errors import JudgeFailed
from autokernel_agent.judge import PytestJudge
from autokernel_agent.process import Standing

from . import agent_fakes
from .agent_cli import gone, soon
from .agent_fakes import KERNEL

FASTER = KERNEL.replace('"width": 1,', '"width": 4,')


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    folder = tmp_path / "worktree"
    (folder / "kernels").mkdir(parents=True)
    return folder


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """How the stand-in for pytest has been called."""
    log = tmp_path / "calls.jsonl"
    monkeypatch.setenv("FAKE_LOG", str(log))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


COMMAND = (sys.executable, agent_fakes.__file__)


@pytest.fixture
def standing(worktree: Path, calls: object) -> Iterator[Standing]:
    scratch = worktree.parent / "scratch"
    with closing(Standing(worktree, scratch / "standing.txt", COMMAND)) as standing:
        yield standing


@pytest.fixture
def judge(worktree: Path, standing: Standing) -> PytestJudge:
    return PytestJudge(
        worktree,
        "kernels/softmax.py",
        worktree.parent / "scratch",
        standing,
        compiling=standing,
        command=COMMAND,
        limit_s={"quick": 30, "normal": 30},
    )


def options(call: dict[str, Any]) -> dict[str, str]:
    return dict(zip(call["argv"], call["argv"][1:], strict=False))


class TestWhatIsAsked:
    def test_a_candidate_is_screened_beside_the_incumbent_from_another_file(
        self, judge: PytestJudge, worktree: Path, calls: Callable[[], list[dict[str, Any]]]
    ) -> None:
        report = judge.screen(FASTER, KERNEL, seed=7)
        (call,) = calls()
        asked = options(call)
        assert report.timings[0].comparisons["baseline"].speedup.ratio == pytest.approx(2)
        assert call["cwd"] == str(worktree)
        assert f"--rootdir={worktree}" in call["argv"]
        assert asked["--autokernel"] == "kernels/softmax.py"
        assert asked["--autokernel-effort"] == "quick"
        assert asked["--autokernel-ask"] == "screen"
        assert asked["--autokernel-seed"] == "7"
        assert "-x" in call["argv"]
        assert Path(asked["--autokernel-baseline"]).read_text() == KERNEL
        assert worktree not in Path(asked["--autokernel-baseline"]).parents
        assert (worktree / "kernels/softmax.py").read_text() == FASTER

    def test_a_starter_is_compared_with_nothing(
        self, judge: PytestJudge, calls: Callable[[], list[dict[str, Any]]]
    ) -> None:
        assert "baseline" not in judge.compare(KERNEL, None, seed=7).timings[0].comparisons
        assert "--autokernel-baseline" not in calls()[0]["argv"]

    def test_the_whole_judgement_takes_all_cases_and_decides(
        self, judge: PytestJudge, calls: Callable[[], list[dict[str, Any]]]
    ) -> None:
        report = judge.judge(FASTER, KERNEL, seed=7)
        asked = options(calls()[0])
        assert report.whole
        assert report.whole.decision == "KEEP"
        assert asked["--autokernel-effort"] == "normal"
        assert asked["--autokernel-ask"] == "keep"
        assert "-k" not in asked

    def test_a_binary_is_asked_of_another_file_than_the_one_that_is_measured(
        self, judge: PytestJudge, worktree: Path, calls: Callable[[], list[dict[str, Any]]]
    ) -> None:
        judge.screen(KERNEL, KERNEL, seed=7)
        assert judge.binary(FASTER).binary == "4 2"
        asked = options(calls()[1])
        assert asked["--autokernel-ask"] == "binary"
        assert Path(asked["--autokernel"]).read_text() == FASTER
        assert (worktree / "kernels/softmax.py").read_text() == KERNEL
        assert asked["--autokernel-json"] != options(calls()[0])["--autokernel-json"]

    def test_screens_share_a_process_and_each_judgement_has_its_own(
        self, judge: PytestJudge, calls: Callable[[], list[dict[str, Any]]]
    ) -> None:
        for ask in (judge.screen, judge.screen, judge.judge, judge.screen, judge.judge):
            ask(FASTER, KERNEL, seed=7)
        judge.compare(FASTER, KERNEL, seed=7)
        first, second, whole, third, again, last = (call["pid"] for call in calls())
        assert first == second == third
        assert len({first, whole, again, last}) == 4

    def test_the_users_options_for_pytest_do_not_reach_the_judge(
        self, worktree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
        monkeypatch.setenv("PYTEST_PLUGINS", "nothing")
        output = worktree / "output"
        processes.run([sys.executable, "-c", "import os; print(*os.environ)"], worktree, output, 30)
        assert "PYTEST_" not in output.read_text()
        assert "PATH" in output.read_text()


class TestWhatIsBelieved:
    def test_a_failed_kernel_is_a_verdict(self, judge: PytestJudge) -> None:
        report = judge.judge(KERNEL.replace('"unroll": 1}', '"unroll": 4}'), KERNEL, seed=7)
        assert report.verdict == "FAIL"
        assert report.reason is not None
        assert "off by 3 ulp" in report.reason

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ("exit-4", "expected pytest to exit with 0 or 1(.|\n)*INTERNALERROR> no such option"),
            ("signal", "got -11"),
            ("no-report", "pytest exited with 1 and wrote none"),
            ("garbage", "not as agreed"),
            ("schema", "expected a report of schema 1, got 2"),
            ("contradiction", "contradicts itself: verdict PASS, exit code 1"),
        ],
    )
    def test_a_broken_judge_is_asked_again_and_then_gives_no_verdict(
        self,
        how: str,
        words: str,
        judge: PytestJudge,
        calls: Callable[[], list[dict[str, Any]]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("FAKE", how)
        with pytest.raises(JudgeFailed, match=words):
            judge.judge(KERNEL, KERNEL, seed=7)
        assert len(calls()) == 2

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ("exit-4", "expected pytest to exit with 0 or 1, got 4"),
            ("signal", "pytest ended before it had answered"),
            ("no-report", "pytest exited with 1 and wrote none"),
        ],
    )
    def test_a_broken_screen_is_asked_again_by_another_process(
        self,
        how: str,
        words: str,
        judge: PytestJudge,
        calls: Callable[[], list[dict[str, Any]]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("FAKE", how)
        with pytest.raises(JudgeFailed, match=words):
            judge.screen(KERNEL, KERNEL, seed=7)
        first, second = (call["pid"] for call in calls())
        assert first != second
        assert gone(first)

    def test_a_screen_that_hangs_is_ended(
        self, judge: PytestJudge, standing: Standing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE", "hang")
        with pytest.raises(JudgeFailed, match="did not end within 1 s and was killed"):
            standing.ask(["--autokernel", "kernels/softmax.py"], limit_s=1)

    @pytest.mark.parametrize("how", ["exit-4:1", "no-report:1", "signal:1"])
    def test_one_breakdown_is_forgiven(
        self, how: str, judge: PytestJudge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE", how)
        assert judge.compare(KERNEL, KERNEL, seed=7).verdict == "PASS"

    @pytest.mark.parametrize("how", ["exit-4:2", "no-report:2", "signal:2"])
    def test_and_one_of_the_pytest_that_stays(
        self, how: str, judge: PytestJudge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FAKE", how)
        for _ in range(3):
            assert judge.screen(KERNEL, KERNEL, seed=7).verdict == "PASS"

    def test_an_old_report_is_not_taken_for_a_new_one(
        self, judge: PytestJudge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judge.judge(KERNEL, KERNEL, seed=7)
        monkeypatch.setenv("FAKE", "no-report")
        with pytest.raises(JudgeFailed):
            judge.judge(FASTER, KERNEL, seed=7)


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep({seconds})
"""


class TestWhatIsLeftBehind:
    """`STUBBORN` ignores the request to end and has a child in its group."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(processes, "GRACE_S", 0.2)

    def run(self, tmp_path: Path, seconds: float, limit_s: float) -> int:
        command = [sys.executable, "-c", STUBBORN.format(seconds=seconds)]
        return processes.run(command, tmp_path, tmp_path / "output", limit_s)

    def pids(self, tmp_path: Path) -> list[int]:
        return [int(word) for word in (tmp_path / "output").read_text().split()]

    def test_nothing_after_a_normal_end(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, seconds=0, limit_s=30) == 0
        assert soon(lambda: all(map(gone, self.pids(tmp_path))))

    def test_nothing_after_the_limit(self, tmp_path: Path) -> None:
        with pytest.raises(JudgeFailed, match="did not end within 1 s"):
            self.run(tmp_path, seconds=600, limit_s=1)
        assert len(self.pids(tmp_path)) == 2
        assert soon(lambda: all(map(gone, self.pids(tmp_path))))

    def test_nothing_after_an_interruption(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = subprocess.Popen.wait

        def interrupted(process: subprocess.Popen[bytes], limit_s: float | None = None) -> int:
            assert soon(lambda: len((tmp_path / "output").read_text().split()) == 2)
            monkeypatch.setattr(subprocess.Popen, "wait", real)
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path, seconds=600, limit_s=30)
        assert soon(lambda: all(map(gone, self.pids(tmp_path))))


class TestLifeline:
    """A real pytest with the plugin, asleep in a test that notes how it ended."""

    TEST = """
        import os, pathlib, time
        def test_sleep():
            here = pathlib.Path(__file__).parent
            (here / "pid.part").write_text(str(os.getpid()))
            (here / "pid.part").rename(here / "pid")
            try:
                time.sleep(600)
            finally:
                (here / "cleaned").touch()
    """
    AGENT = """
        import subprocess, sys
        from pathlib import Path
        from autokernel_agent.process import PYTEST, run
        run([*PYTEST, "test_sleep.py", "-p", "no:cacheprovider"], Path.cwd(), Path("output"), 600)
    """

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_the_judge_cleans_up_and_ends_with_its_agent(
        self, how: signal.Signals, tmp_path: Path
    ) -> None:
        (tmp_path / "test_sleep.py").write_text(textwrap.dedent(self.TEST))
        command = [sys.executable, "-c", textwrap.dedent(self.AGENT)]
        agent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        try:
            assert soon((tmp_path / "pid").exists)
            pid = int((tmp_path / "pid").read_text())
            os.kill(agent.pid, how)
            assert soon(lambda: gone(pid))
            assert (tmp_path / "cleaned").exists()
        finally:
            agent.kill()
            agent.wait()
