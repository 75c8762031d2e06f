"""A child process that answers, dies, hangs or floods: what the one who asks is told."""

from __future__ import annotations

import os
import stat
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pytest_autokernel.candidate import parse
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import Case
from pytest_autokernel.process import OUTPUT_KEPT, Died, Process, TimedOut, spawn
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import CandidateError, Verdict

# What stands in for the module that a Process runs: it answers as its test wants it to.
CHILD = """
import os, signal, socket, subprocess, sys, time
from pathlib import Path
from pytest_autokernel.channel import Channel

channel = Channel(socket.socket(fileno=int(sys.argv[-1])))
while True:
    message, fds = channel.receive()
"""
Start = Callable[[str], Process]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a child that does what `body` says with each message."""
    python, child, launcher = sys.executable, tmp_path / "child.py", tmp_path / "launcher"
    launcher.write_text(f'#!/bin/sh\nexec "{python}" "{child}" "$@"\n')
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    started = []

    def start(body: str) -> Process:
        child.write_text(CHILD + textwrap.indent(textwrap.dedent(body), "    "))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(launcher))
            started.append(spawn("module", os.environ, tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.close()


def is_gone(pid: int) -> bool:
    """Whether `pid` ends within 5 s. A zombie that nobody has waited for is gone too."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


def test_an_answer_is_for_its_question(start: Start) -> None:
    process = start("channel.send({'twice': 2 * message['n']})")
    assert [process.ask({"n": n}, timeout_s=20)[0]["twice"] for n in range(3)] == [0, 2, 4]
    assert process.alive


def test_closing_ends_the_process_and_its_children(start: Start) -> None:
    process = start("channel.send({'pids': [os.getpid(), subprocess.Popen(['sleep', '99']).pid]})")
    (pids, _) = process.ask({}, timeout_s=20)
    process.close()
    assert not process.alive
    assert all(is_gone(pid) for pid in pids["pids"])


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGFPE"])
def test_a_signal_is_named(start: Start, name: str) -> None:
    process = start(f"os.kill(os.getpid(), signal.{name})")
    with pytest.raises(Died, match=f"^killed by {name}$"):
        process.ask({}, timeout_s=20)


@pytest.mark.parametrize("code", [0, 7])
def test_an_exit_code_is_named_and_zero_is_no_success(start: Start, code: int) -> None:
    with pytest.raises(Died, match=f"^exited by itself with code {code}$"):
        start(f"os._exit({code})").ask({}, timeout_s=20)


def test_last_words_are_told(start: Start) -> None:
    process = start("print('first'); sys.exit('no tile fits')")
    with pytest.raises(Died, match=r"code 1; its last words: no tile fits$"):
        process.ask({}, timeout_s=20)


def test_what_is_no_message_ends_the_process(start: Start) -> None:
    process = start("channel.sock.sendall(b'\\xff' * 64); os._exit(0)")
    with pytest.raises(Died):
        process.ask({}, timeout_s=20)
    assert not process.alive


def test_a_hang_is_killed_with_all_that_it_started(start: Start) -> None:
    process = start("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        shell = subprocess.Popen(["sh", "-c", "sleep 99 & echo $!; wait"], stdout=subprocess.PIPE)
        channel.send({"pids": [os.getpid(), shell.pid, int(shell.stdout.readline())]})
        time.sleep(99)
    """)
    pids = process.ask({}, timeout_s=20)[0]["pids"]
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"^gave no answer within 0.2 s and was killed$"):
        process.ask({}, timeout_s=0.2)
    assert time.monotonic() - began < 2
    assert not process.alive
    assert all(is_gone(pid) for pid in pids)


def test_a_flood_neither_blocks_nor_is_kept(start: Start) -> None:
    process = start("""
        for _ in range(200):
            os.write(1, b"PASS " * 10000)
        channel.send({"wrote": 200})
        if message["then"] == "die":
            os.write(2, b"\\nthe end\\n")
            os._exit(3)
    """)
    assert process.ask({"then": "go on"}, timeout_s=20)[0] == {"wrote": 200}
    process.ask({"then": "die"}, timeout_s=20)
    with pytest.raises(Died) as caught:
        process.ask({"then": "go on"}, timeout_s=20)
    assert str(caught.value) == "exited by itself with code 3; its last words: the end"
    assert sum(map(len, process._words)) <= 2 * OUTPUT_KEPT


@pytest.mark.parametrize(
    ("body", "error"), [("time.sleep(99)", TimedOut), ("os.abort()", Died)], ids=["hung", "died"]
)
def test_who_asks_the_dead_is_told_again(start: Start, body: str, error: type[Exception]) -> None:
    process = start(body)
    with pytest.raises(error) as first:
        process.ask({}, timeout_s=0.5)
    with pytest.raises(Died) as again:
        process.ask({}, timeout_s=20)
    assert str(first.value) == str(again.value)


SPY = """
import os
import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    raise LookupError("AWS_SECRET" in os.environ, sorted(os.environ), dict(os.environ).values())
"""


def test_a_workers_environment_holds_nothing_of_the_users(
    judge: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET", "hunter2")
    monkeypatch.setenv("PYTHONPATH", "hunter2")
    subject = WorkerSubject(judge, parse(tmp_path / "spy.py", SPY))
    try:
        with pytest.raises(CandidateError) as caught:
            subject.ask({"do": "run", "inputs": [], "options": {"x": None}})
    finally:
        subject.close()
    assert caught.value.verdict is Verdict.FAIL
    assert caught.value.reason.startswith("raised LookupError: (False, ['AUTOKERNEL_CACHE_DIR', ")
    assert "hunter2" not in caught.value.reason


MANGLES = """
import os

from pytest_autokernel.channel import Channel

KERNEL_TYPE = "softmax"
honest = Channel.send


def mangled(channel, message, fds=()):
    if "result" in message:
        {how}
    honest(channel, message, fds)


Channel.send = mangled


def kernel_fn(x, dim=-1):
    return x.softmax(dim)
"""


@pytest.mark.parametrize(
    "how",
    [
        "os.ftruncate(fds[0], 1)",
        "fds = (os.pipe()[0],)",
        "fds = ()",
        "fds = (*fds, 0)",
        "message['result']['shape'] = (float('inf'),)",
        "message['result']['dtype'] = 'nn'",
        "message['operators'] = 7",
        "del message['aliases']",
    ],
)
def test_a_result_that_is_none_costs_its_kernel_alone(
    judge: Judge, tmp_path: Path, how: str
) -> None:
    case, op = Case("small", {"rows": 2, "cols": 3}, "fp32"), judge.op("softmax")
    for text, verdict in (
        (MANGLES.format(how=how), Verdict.FAIL),
        (MANGLES.format(how="pass"), Verdict.PASS),
    ):
        with closing(WorkerSubject(judge, parse(tmp_path / "k.py", text))) as subject:
            assert judge.check(subject, op, case).verdict is verdict


MOVES = """
import os
import tempfile
from pathlib import Path

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    for place in (Path(os.environ["TRITON_CACHE_DIR"]), Path(tempfile.gettempdir())):
        (place / "part").mkdir(parents=True, exist_ok=True)
        (place / "part" / "file").write_text("whole")
        (place / "part" / "file").replace(place / "file")
        assert (place / "file").read_text() == "whole"
    return x.softmax(dim)
"""


def test_a_worker_can_write_and_move_files_in_its_own_folders(judge: Judge, tmp_path: Path) -> None:
    """As Triton does with each binary: in a folder of its own first, then moved."""
    case, op = Case("small", {"rows": 2, "cols": 3}, "fp32"), judge.op("softmax")
    with closing(WorkerSubject(judge, parse(tmp_path / "k.py", MOVES))) as subject:
        outcome = judge.check(subject, op, case)
    assert outcome.verdict is Verdict.PASS, outcome.reason


LEAVES = """
import os
import subprocess
import sys

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "a-stray-of-ours"],
                     start_new_session=True)
    return x.softmax(dim)
"""


def strays() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if b"a-stray-of-ours" in words and b"sleep" in words:
            found.append(int(path.name))
    return found


def test_nothing_that_a_worker_started_outlives_it(judge: Judge, tmp_path: Path) -> None:
    if judge.confinement is None or judge.confinement.landlock < 6:
        pytest.skip("Landlock before ABI 6 holds no signals: there is no warden")
    case, op = Case("small", {"rows": 2, "cols": 3}, "fp32"), judge.op("softmax")
    with closing(WorkerSubject(judge, parse(tmp_path / "k.py", LEAVES))) as subject:
        judge.check(subject, op, case)
        assert strays()
    assert all(is_gone(pid) for pid in strays())
