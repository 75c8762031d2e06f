"""The command proposer against a scripted agent: what comes of good and of bad behaviour."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent.errors import Refused
from autokernel_agent.proposers import Edit, ProposalFailed, Settings, Situation, watched
from autokernel_agent.proposers.command import Command, probe
from autokernel_agent.report import Report, Speedup
from autokernel_agent.usage import Price, Usage

from pytest_autokernel import keeper

from . import agent_fakes, agent_program
from .agent_cli import Cli
from .agent_fakes import KERNEL
from .agent_repository import PATH, git, state, user_repository

FASTER = KERNEL.replace('"width": 1,', '"width": 4,')
REPORT = Report.parse(agent_fakes.report(KERNEL, None, 1, full=False))
SITUATION = Situation(PATH, "softmax", KERNEL, REPORT, (), reference="OP = ...\n")
Propose = Callable[..., Edit]


def program(folder: Path, name: str = "agent") -> Path:
    """The scripted agent as a program, started by this Python."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    source = Path(agent_program.__file__).read_text()
    file.write_text(f"#!{sys.executable}\n{source}")
    file.chmod(0o755)
    return file


def settings(words: str, **more: Any) -> Settings:
    variables = {"PATH": os.environ["PATH"], **more.pop("environment", {})}
    more = {"limit_s": 30, "stall_s": 20, **more}
    return Settings(variables, agent_command=f"{words} {{kernel}} {{prompt}}", **more)


@pytest.fixture
def propose(tmp_path: Path) -> Propose:
    agent = program(tmp_path / "bin")

    def ask(what: str, **more: Any) -> Edit:
        edit = Command(settings(f"{shlex.quote(str(agent))} {what}", **more)).ask(SITUATION)
        assert edit is not None
        return edit

    return ask


def found(edit: Edit) -> Any:
    """What the agent left as a comment in the kernel's last line."""
    return json.loads(edit.text.splitlines()[-1].removeprefix("# "))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(holds: Callable[[], bool], patience_s: float = 20) -> None:
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


class TestTheDifferenceAloneCounts:
    def test_a_good_edit_is_proposed_in_the_agents_last_words(self, propose: Propose) -> None:
        edit = propose("good")
        assert (edit.text, edit.description) == (FASTER, "width from 1 to 4")
        assert edit.usage == Usage()  # of which it said nothing

    def test_a_good_edit_is_one_whatever_the_exit_status(self, propose: Propose) -> None:
        assert propose("good_and_exit_3").text == FASTER

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            (
                "nothing",
                "softmax.py was not changed; it exited with 0; its last words: It is now 10 times "
                "faster!",
            ),
            ("other_files", "expected softmax.py alone to be changed, found also: conftest.py"),
            ("context", "found also: context/reference.py"),
            ("deletes", "softmax.py is gone"),
            ("link", "softmax.py is gone, is no plain file"),
            ("broken", "softmax.py has a syntax error in line 1"),
            ("binary", "softmax.py is not Python source"),
            ("no_such_thing", "softmax.py was not changed; it exited with 1"),
        ],
    )
    def test_anything_else_is_no_edit(self, propose: Propose, what: str, words: str) -> None:
        with pytest.raises(ProposalFailed) as failure:
            propose(what)
        assert words in str(failure.value)

    def test_files_of_git_do_not_count(self, tmp_path: Path) -> None:
        shell = "sh -c 'echo x > .git/x; sed -i \"s/: 1, /: 4, /\" {kernel}' {prompt}"
        agent = Settings({"PATH": os.environ["PATH"]}, agent_command=shell)
        edit = Command(agent).ask(SITUATION)
        assert edit is not None
        assert (edit.text, edit.description) == (FASTER, "+1 -1 lines")


class TestLimits:
    def test_an_agent_that_hangs_is_ended_for_its_silence(self, propose: Propose) -> None:
        with pytest.raises(ProposalFailed, match="it was silent for 1 s and was ended"):
            propose("hang", stall_s=1)

    def test_an_agent_that_does_not_end_is_ended(self, propose: Propose) -> None:
        with pytest.raises(ProposalFailed, match="it took over 2 s and was ended"):
            propose("talk", limit_s=2)

    def test_an_agent_that_floods_its_output_is_ended(self, propose: Propose) -> None:
        with pytest.raises(ProposalFailed, match="it said over 64,000,000 bytes and was ended"):
            propose("flood")

    def test_a_daemon_in_a_session_of_its_own_is_ended_too(self, propose: Propose) -> None:
        began = time.monotonic()
        try:
            pid = int(propose("daemon").description)
        except ProposalFailed as failure:  # it had overwritten the kernel by then
            pid = int(str(failure).rpartition(" ")[2])
        assert not alive(pid)
        assert time.monotonic() - began < 15

    def test_an_interrupted_proposal_leaves_nothing_running(self, tmp_path: Path) -> None:
        agent = program(tmp_path / "bin")
        pids = []

        def interrupt(line: str) -> None:
            pids.extend(map(int, line.split()))
            raise KeyboardInterrupt

        order = watched.Program(
            argv=["sh", "-c", f"sleep 300 & echo $! $$; {agent} hang x x"],
            env={"PATH": os.environ["PATH"]},
            cwd=tmp_path,
            confined=False,
            readable=[],
            writable=[],
        )
        with pytest.raises(KeyboardInterrupt):
            watched.run(order, watched.Limits(30, 30), interrupt)
        assert len(pids) == 2
        assert not any(map(alive, pids))

    def test_a_killed_run_leaves_nothing_running(self, tmp_path: Path) -> None:
        started = tmp_path / "pid"
        code = f"""
from pathlib import Path
from autokernel_agent.proposers import watched
order = watched.Program(["sh", "-c", "sleep 300 & echo $!; wait"], {{}}, Path("/"), False, [], [])
watched.run(order, watched.Limits(60, 60), Path({str(started)!r}).write_text)
"""
        with subprocess.Popen([sys.executable, "-c", code]) as run:
            wait_until(started.exists)
            run.kill()
        wait_until(lambda: not alive(int(started.read_text())))


class TestWhatItIsGiven:
    def test_a_home_of_its_own_its_key_and_no_gpu(
        self, propose: Propose, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_TOKEN", "ghp_of_the_user")
        theirs = {"SOME_KEY": "key", "OTHER_KEY": "other", "HOME": "/home/user"}
        there = found(propose("surroundings", environment=theirs, agent_env=("SOME_KEY",)))
        variables = there["environment"]
        assert variables["SOME_KEY"] == "key"
        assert variables["CUDA_VISIBLE_DEVICES"] == ""
        assert not {"OTHER_KEY", "GITHUB_TOKEN"} & set(variables)
        assert variables["HOME"] != "/home/user"
        assert there["home"] == ["tmp"]

    def test_closed_input_and_a_session_of_its_own(self, propose: Propose) -> None:
        there = found(propose("surroundings"))
        assert (there["stdin"], there["session"]) == ("", True)

    def test_the_one_kernel_and_context_to_read(self, propose: Propose) -> None:
        there = found(propose("surroundings"))
        context = [f"context/{name}" for name in ("program.md", "reference.py", "situation.md")]
        assert there["files"] == ["context", *context, "softmax.py"]
        assert "faster" in there["prompt"]
        assert "softmax.py" in there["prompt"]

    def test_a_secret_does_not_reach_the_kernel_file(self, propose: Propose) -> None:
        with pytest.raises(ProposalFailed, match="the kernel file holds the value of SOME_KEY"):
            propose("leak", environment={"SOME_KEY": "sk-123456"}, agent_env=("SOME_KEY",))

    def test_a_secret_and_control_characters_do_not_reach_the_ledger(
        self, propose: Propose
    ) -> None:
        with pytest.raises(ProposalFailed) as failure:
            propose("shout", environment={"SOME_KEY": "sk-123456"}, agent_env=("SOME_KEY",))
        assert str(failure.value).endswith("its last words: invalid key [31m***")

    def test_nothing_of_its_folder_is_left(self, propose: Propose) -> None:
        home = Path(found(propose("surroundings"))["environment"]["HOME"])
        assert not home.parent.exists()


class TestTheSandbox:
    @pytest.fixture(autouse=True)
    def _sandbox(self) -> None:
        if lacks := probe().lacks:
            pytest.skip(f"the sandbox lacks here: {'; '.join(lacks)}")

    def reached(self, propose: Propose, tmp_path: Path, **more: Any) -> Any:
        """What it can do to a file of the user's, a module of the judge, and this process."""
        users = tmp_path / "users.txt"
        users.write_text("secret\n")
        targets = [str(users), str(Path(keeper.__file__).with_name("judge.py"))]
        theirs = {"TARGETS": ":".join(targets), "VICTIM": str(os.getpid())}
        names = ("TARGETS", "VICTIM")
        return found(propose("reach", environment=theirs, agent_env=names, **more))

    def test_files_and_processes_of_the_user_and_the_judge_are_out_of_reach(
        self, propose: Propose, tmp_path: Path
    ) -> None:
        assert self.reached(propose, tmp_path) == []

    def test_without_it_they_are_not(self, propose: Propose, tmp_path: Path) -> None:
        done = self.reached(propose, tmp_path, sandbox="off")
        assert f"ab {tmp_path}/users.txt" in done
        assert "signal" in done

    def test_what_the_user_leaves_it_can_be_read_and_not_written(
        self, propose: Propose, tmp_path: Path
    ) -> None:
        done = self.reached(propose, tmp_path, agent_read=(tmp_path,))
        assert done == [f"rb {tmp_path}/users.txt"]


EVENTS: dict[str, tuple[list[dict[str, Any]], Usage, str]] = {
    "claude": (
        [
            {"type": "system", "subtype": "init"},
            {"type": "assistant", "message": {"usage": {"input_tokens": 3}}},
            {
                "type": "result",
                "subtype": "success",
                "is_error": False,
                "result": "Done.\nwider rows",
                "total_cost_usd": 0.0125,
                "usage": {
                    "input_tokens": 3,
                    "cache_creation_input_tokens": 100,
                    "cache_read_input_tokens": 1000,
                    "output_tokens": 50,
                },
            },
        ],
        Usage(1103, 50, 0.0125),
        "wider rows",
    ),
    "codex": (
        [
            {"type": "thread.started", "thread_id": "t"},
            {"type": "item.completed", "item": {"type": "agent_message", "text": "a\nwider rows"}},
            {
                "type": "turn.completed",
                "usage": {"input_tokens": 1000, "cached_input_tokens": 900, "output_tokens": 50},
            },
        ],
        Usage(1000, 50, 0.0035),
        "wider rows",
    ),
    "gemini": (
        [
            {"type": "init", "model": "m"},
            {"type": "message", "role": "assistant", "content": "a\nwider ", "delta": True},
            {"type": "message", "role": "assistant", "content": "rows", "delta": True},
            {
                "type": "result",
                "status": "success",
                "stats": {"total_tokens": 1050, "input_tokens": 1000, "output_tokens": 20},
            },
        ],
        Usage(1000, 50, 0.0035),
        "wider rows",
    ),
    "opencode": (
        [
            {"type": "step_start", "part": {}},
            {"type": "text", "part": {"text": "wider rows"}},
            *[
                {
                    "type": "step_finish",
                    "part": {
                        "cost": 0.5,
                        "tokens": {"input": 10, "output": 5, "cache": {"read": 100, "write": 1}},
                    },
                }
            ]
            * 2,
        ],
        Usage(222, 10, 1.0),
        "wider rows",
    ),
    "aider": (
        [
            {"event": "launched", "properties": {}},
            {
                "event": "message_send",
                "properties": {"prompt_tokens": 1000, "completion_tokens": 50, "cost": 0.0},
            },
        ],
        Usage(1000, 50, 0.0035),
        "+1 -1 lines",
    ),
}


class TestProfiles:
    def asked(self, tmp_path: Path, agent: str, output: str) -> Edit:
        file = program(tmp_path / "bin", agent)
        file.with_suffix(".events").write_text(output)
        path = f"{file.parent}:{os.environ['PATH']}"
        keys = dict.fromkeys(("ANTHROPIC_API_KEY", "CODEX_API_KEY", "GEMINI_API_KEY"), "secret-key")
        theirs = {"PATH": path, **keys}
        known = Settings(
            theirs, agent=agent, price=Price(2.0, 30.0), agent_read=(file.with_suffix(".events"),)
        )
        edit = Command(known).ask(SITUATION)
        assert edit is not None
        return edit

    @pytest.mark.parametrize("agent", EVENTS)
    def test_tokens_cost_and_words_are_read_from_its_events(
        self, tmp_path: Path, agent: str
    ) -> None:
        events, usage, words = EVENTS[agent]
        edit = self.asked(tmp_path, agent, "\n".join(map(json.dumps, events)))
        assert edit.text == FASTER
        assert edit.usage is not None
        assert edit.usage.cost_usd == pytest.approx(usage.cost_usd)
        assert (edit.usage.input_tokens, edit.usage.output_tokens, edit.description) == (
            usage.input_tokens,
            usage.output_tokens,
            words,
        )

    @pytest.mark.parametrize("agent", EVENTS)
    def test_events_that_are_not_as_agreed_cost_no_edit(self, tmp_path: Path, agent: str) -> None:
        bare = [{kind: event.get(kind) for kind in ("type", "event")} for event in EVENTS[agent][0]]
        lines = [*map(json.dumps, bare), "[1]", "{", "null", "\x00", "[" * 100_000]
        edit = self.asked(tmp_path, agent, "\n".join(lines))
        assert (edit.text, edit.usage) == (FASTER, Usage())


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({}, "needs either --agent, one of claude"),
            ({"agent": "cloud"}, "got agent='cloud'"),
            ({"agent": "claude", "agent_command": "x {prompt}"}, "needs either --agent"),
            ({"agent": "claude"}, "set ANTHROPIC_API_KEY"),
            ({"agent_command": "sh -c x"}, "expected --agent-command 'PROGRAM ... {prompt}"),
            ({"agent_command": "sh ' {prompt}"}, "No closing quotation"),
            ({"agent_command": "no-such-program {prompt}"}, "no program 'no-such-program' on PATH"),
            ({"agent_command": "sh {prompt}", "agent_env": ("KEY",)}, "no such variable: set it"),
        ],
    )
    def test_what_cannot_work_is_refused_before_anything_runs(
        self, more: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(Refused) as refusal:
            Command(Settings({"PATH": os.environ["PATH"]}, **more))
        assert words in str(refusal.value)


class TestTheCommandLine:
    @pytest.fixture
    def repo(self, tmp_path: Path) -> Path:
        return user_repository(tmp_path / "repo")

    def test_a_run_keeps_what_an_agent_proposed(self, tmp_path: Path, repo: Path) -> None:
        before = state(repo)
        cli, agent = Cli(repo, tmp_path), program(tmp_path / "bin")
        words = ["--proposer", "command", "--agent-command", f"{agent} good {{kernel}} {{prompt}}"]
        done = cli("optimize", PATH, "--tag", "t", "--experiments", "1", *words)
        assert done.returncode == 0, done.stderr
        assert "1  KEEP" in done.stdout
        assert "width from 1 to 4" in done.stdout
        assert "proposals: 1, 0 came to nothing; tokens unknown" in done.stdout
        assert git(repo, "show", f"autokernel/t:{PATH}") == FASTER.strip()
        assert "proposer: command agent" in git(repo, "log", "-1", "--format=%b", "autokernel/t")
        assert state(repo) == before

    def test_the_judge_is_not_given_the_keys(self, tmp_path: Path, repo: Path) -> None:
        cli, agent = Cli(repo, tmp_path), program(tmp_path / "bin")
        words = f"{agent} surroundings {{kernel}} {{prompt}}"
        more = ("--proposer", "command", "--agent-command", words, "--agent-env", "MY_KEY")
        keys = {"MY_KEY": "k", "OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"}
        done = cli("optimize", PATH, "--tag", "t", "--experiments", "1", *more, **keys)
        assert done.returncode == 0, done.stderr
        assert '"MY_KEY": "k"' in git(repo, "show", f"refs/autokernel/t/1:{PATH}")
        calls = [json.loads(line) for line in cli.log.read_text().splitlines()]
        assert len(calls) == 2
        assert not any(set(keys) & set(call["variables"]) for call in calls)

    def test_a_run_ends_when_nothing_comes_any_more(self, tmp_path: Path, repo: Path) -> None:
        cli, agent = Cli(repo, tmp_path), program(tmp_path / "bin")
        words = f"{agent} nothing {{kernel}} {{prompt}}"
        more = ("--proposer", "command", "--agent-command", words)
        done = cli("optimize", PATH, "--tag", "t", *more)
        assert done.returncode == 0
        assert done.stdout.count("no edit    softmax.py was not changed") == 5
        assert "5 proposals in a row came to nothing" in done.stdout

    def test_bad_options_are_one_clear_error(self, tmp_path: Path, repo: Path) -> None:
        cli = Cli(repo, tmp_path)
        done = cli("optimize", PATH, "--proposer", "command", "--agent", "cloud")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "got agent='cloud'" in done.stderr
        done = cli("optimize", PATH, "--price", "3")
        assert done.returncode == 2
        assert "such as 3,15, got '3'" in " ".join(done.stderr.replace("│", " ").split())


def test_the_situation_tells_figures_tries_and_failures(propose: Propose) -> None:
    from autokernel_agent.proposers import Try
    from autokernel_agent.proposers.briefing import situation_text

    speedup = Speedup(0.5, 0.4, 0.6, 0.99)
    tries = (
        Try(FASTER, "wider", "PASS", "REVERT", None, speedup),
        Try(FASTER, "wrong", "FAIL", "REVERT", "off by 3 ulp", None),
    )
    text = situation_text(Situation(PATH, "softmax", KERNEL, REPORT, tries, ("it hung",)))
    for words in (
        "time_us: 1000",
        "pct_roof: 40",
        "0.900x the speed of eager",
        "1. REVERT 0.500x [0.400, 0.600] the speed before it: wider",
        "2. FAIL: wrong: off by 3 ulp",
        "- it hung",
        '+CONFIG = {"width": 4, "unroll": 1}',
    ):
        assert words in text
