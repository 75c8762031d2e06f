"""A kernel under compute-sanitizer, which is played by a program that does as each test says."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pytest_autokernel import handover, instrumented, operands, sanitizer
from pytest_autokernel.candidate import parse
from pytest_autokernel.channel import view
from pytest_autokernel.instrumented import NoFindings
from pytest_autokernel.judge import Judge
from pytest_autokernel.op import LAYOUTS, Case, Layout
from pytest_autokernel.sandbox import Confinement
from pytest_autokernel.verdict import Outcome, Verdict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the launcher is Linux's")

# Like the real one it opens its log before it starts the process that it looks into, which so
# inherits the log, and what it is told comes before that process' own command line.
TOOL = """#!{python}
import os, subprocess, sys, time
log = open(sys.argv[sys.argv.index("--log-file") + 1], "w")
os.set_inheritable(log.fileno(), True)
command = sys.argv[sys.argv.index({python!r}):]
def run():
    return subprocess.run(command, close_fds=False).returncode
def say(text):
    log.write("========= " + text + "\\n")
    log.flush()
say("COMPUTE-SANITIZER")
"""
CLEAN = "run(); say('ERROR SUMMARY: 0 errors')"
RIGHT = """
import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    {first}
    return torch.softmax(x.float(), dim).to(x.dtype)
"""
CASES = [Case("a", {"rows": 2, "cols": 3}, "fp32"), Case("b", {"rows": 5, "cols": 4}, "fp32")]
Judged = Callable[..., Outcome]


@pytest.fixture
def judged(judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judged]:
    """Judge a kernel, which does `first` in each call, under a tool that does as `tool` says."""
    if judge.confinement is not None and not judge.confinement.namespaces:
        pytest.skip("no user namespaces here")
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    op = judge.op("softmax")

    def judged(tool: str, first: str = "pass") -> Outcome:
        program.write_text(TOOL.format(python=sys.executable) + tool)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        kernel = parse(tmp_path / "k.py", RIGHT.format(first=first))
        return instrumented.judged(judge, kernel, "cpu", op, CASES, "memcheck")

    before = inhabitants(judge)
    yield judged
    assert inhabitants(judge) <= before
    assert not list(judge.folder.glob("worker-*"))


def inhabitants(judge: Judge) -> set[int]:
    """The processes of this judge's launchers and of what they became: other tests' judges have
    theirs beside them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        launched = b"compute-sanitizer" in words or b"pytest_autokernel.launcher" in words
        if launched and os.fsencode(judge.folder) in environment:
            found.add(int(path.name))
    return found


def test_a_pass_is_the_tools_word_and_the_comparisons(judged: Judged) -> None:
    outcome = judged(CLEAN)
    assert outcome.verdict is Verdict.PASS, outcome.reason
    assert outcome.completed == len(CASES)


def test_a_fault_fails_in_the_tools_words(judged: Judged) -> None:
    outcome = judged("""run(); say('Invalid __global__ write of size 4 bytes')
say('    at softmax+0x90 in k.py:9'); say(''); say('ERROR SUMMARY: 1 error')""")
    assert outcome.verdict is Verdict.FAIL
    assert outcome.reason == (
        "memcheck: Invalid __global__ write of size 4 bytes; at softmax+0x90 in k.py:9 "
        "(in one of 2 cases)"
    )


def test_a_fault_that_ends_the_process_is_told_all_the_same(judged: Judged) -> None:
    tool = "run(); say('Invalid __global__ read of size 2 bytes'); say('ERROR SUMMARY: 1 error')"
    outcome = judged(tool, "import os; os._exit(9)")
    assert outcome.verdict is Verdict.FAIL
    assert outcome.reason == "memcheck: Invalid __global__ read of size 2 bytes"


def test_a_wrong_result_fails_though_the_tool_finds_nothing(judged: Judged) -> None:
    outcome = judged(CLEAN, "return torch.zeros_like(x)")
    assert outcome.verdict is Verdict.FAIL
    assert "got 0" in str(outcome.reason)


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("run()", "memcheck came to no end: it said nothing"),
        ("sys.exit(3)", "exited by itself with code 3"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("say('Device not supported.'); sys.exit(1)", "no end: Device not supported."),
        (f"say('Internal Sanitizer Error: lost a launch'); {CLEAN}", "lost a launch"),
        (f"{CLEAN}; say('ERROR SUMMARY: 0 errors')", "0 errors; ERROR SUMMARY: 0 errors"),
    ],
)
def test_a_tool_that_is_broken_says_nothing_of_the_kernel(
    judged: Judged, tool: str, words: str
) -> None:
    with pytest.raises(NoFindings) as caught:
        judged(tool)
    assert words in str(caught.value)


@pytest.mark.parametrize("first", ["pass", "import os; os._exit(0)"])
def test_a_clean_log_is_no_pass_unless_every_call_was_completed(judged: Judged, first: str) -> None:
    outcome = judged(CLEAN if first != "pass" else CLEAN.removeprefix("run(); "), first)
    assert (outcome.verdict, outcome.completed) == (Verdict.CRASH, 0)


def test_a_program_that_cannot_be_run_says_nothing_of_the_kernel(judged: Judged) -> None:
    with pytest.raises(NoFindings, match="the kernel's process"):
        judged("raise SyntaxError")


FORGERS = {
    "prints": "print('========= ERROR SUMMARY: 0 errors', flush=True)",
    "writes into all that is open": """
    import os
    for fd in range(256):
        try:
            os.write(fd, b"========= ERROR SUMMARY: 0 errors\\n") if fd != CHANNEL else None
        except OSError:
            pass""",
    "looks for the log": """
    from pathlib import Path
    for log in Path(__file__).parents[1].glob("*/log"):
        log.write_text("========= ERROR SUMMARY: 0 errors")""",
}
CHANNEL = "int(__import__('sys').argv[1])"


@pytest.mark.parametrize("how", FORGERS)
def test_a_kernel_cannot_say_the_tools_words(judged: Judged, how: str) -> None:
    first = FORGERS[how].replace("CHANNEL", CHANNEL)
    with pytest.raises(NoFindings, match="memcheck came to no end: it said nothing"):
        judged("run()", first)


def test_a_hang_is_ended_and_says_nothing(
    judged: Judged, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "settings", replace(judge.settings, timeout_s=0.2))
    with pytest.raises(NoFindings, match="gave no answer within 2 s"):
        judged(CLEAN, "import time; time.sleep(600)")


def test_a_tool_that_does_not_end_is_ended(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instrumented, "END_S", 1.0)
    began = time.monotonic()
    with pytest.raises(NoFindings, match="it said nothing"):
        judged("run(); time.sleep(600)")
    assert time.monotonic() - began < 30


def test_what_a_kernel_leaves_running_is_ended(judged: Judged) -> None:
    outcome = judged(
        CLEAN,
        "import subprocess; subprocess.Popen(['sleep', '599.25'], start_new_session=True)",
    )
    assert outcome.verdict is Verdict.PASS, outcome.reason
    running = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if is_readable(p)]
    assert not any(b"599.25" in words for words in running)


def is_readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


REACHES = """
    import os, socket
    from pathlib import Path
    def refused(action, *arguments):
        try:
            action(*arguments)
        except OSError:
            return True
    def connect(port):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with socket.create_server(("127.0.0.1", 0)) as own:
        connect(own.getsockname()[1])
    assert refused(connect, {port})
    assert refused(socket.socket, socket.AF_UNIX, socket.SOCK_STREAM)
    assert refused(Path({outside!r}).read_text)
    assert refused(Path({outside!r}).write_text, "x")
    assert refused(os.listdir, Path.home().parents[1])
    assert refused(os.kill, {pid}, 0)
    assert refused(os.kill, os.getppid(), 0)
    assert refused(os.listdir, f"/proc/{{os.getppid()}}/fd")
    assert Path("/proc/self/comm").read_text() and Path("/proc/meminfo").read_text()
    Path("/proc/self/comm").write_text("named")"""


def test_a_kernel_reaches_itself_alone(judged: Judged, judge: Judge, tmp_path: Path) -> None:
    if judge.confinement is None or judge.confinement.missing:
        pytest.skip("the sandbox is incomplete here")
    outside = tmp_path / "secret"
    outside.write_text("a token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = judged(CLEAN, REACHES.format(port=port, outside=str(outside), pid=os.getpid()))
    assert outcome.verdict is Verdict.PASS, outcome.reason
    assert outside.read_text() == "a token"


# Loaded into a process before its own code, as the tool's libraries are, with a thread that writes.
INJECTED = """
#include <cstdio>
#include <thread>
#include <unistd.h>
static int started = (std::thread([] {{
    for (;; usleep(10000)) {{
        FILE *file = fopen("{leak}", "a");
        if (file) {{ fputc('x', file); fclose(file); }}
    }}
}}).detach(), 0);
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on this machine")
def test_no_thread_of_the_tools_stays_unconfined(
    judged: Judged, judge: Judge, tmp_path: Path
) -> None:
    if judge.confinement is None or judge.confinement.landlock < 3:
        pytest.skip("Landlock guards files from ABI 3 on")
    source, library, leak = tmp_path / "i.cpp", tmp_path / "bin" / "i.so", tmp_path / "leak"
    source.write_text(INJECTED.format(leak=leak))
    build = ["g++", "-shared", "-fPIC", "-pthread", str(source), "-o", str(library)]
    subprocess.run(build, check=True)
    outcome = judged(
        f"""os.environ["LD_PRELOAD"] = {str(library)!r}
run(); age = time.time() - os.path.getmtime({str(leak)!r})
say('ERROR SUMMARY: 0 errors' if age > 0.9 else f'leaked {{age}} s ago')""",
        "import time; time.sleep(0.5)",
    )
    assert outcome.verdict is Verdict.PASS, outcome.reason
    assert leak.read_text()


def test_without_a_namespace_it_is_not_tried(judged: Judged, judge: Judge) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "confinement", Confinement(landlock=7, filter=True))
        with pytest.raises(NoFindings, match="no user namespace"):
            judged(CLEAN)


def test_without_a_sandbox_it_is_run_as_it_is(
    judged: Judged, judge: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(judge, "confinement", None)
    outcome = judged(CLEAN, f"open({str(tmp_path / 'made')!r}, 'w').close()")
    assert outcome.verdict is Verdict.PASS, outcome.reason
    assert (tmp_path / "made").exists()


def test_without_the_tool_the_reason_says_where_it_was_looked_for(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    kernel = parse(tmp_path / "k.py", RIGHT.format(first="pass"))
    with pytest.raises(NoFindings, match=r"neither on PATH nor in \$CUDA_HOME/bin"):
        instrumented.judged(judge, kernel, "cpu", judge.op("softmax"), CASES, "memcheck")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_input_on_a_gpu_has_just_its_own_size(layout: Layout) -> None:
    tensor = torch.arange(15, dtype=torch.float16).reshape(3, 5)
    meta = operands.lay_out(tensor, layout)
    raw = torch.full((meta.nbytes,), 0xFF, dtype=torch.uint8)
    own = tuple(slice(None if step else 1) for step in meta.stride)
    view(raw, meta)[own].copy_(tensor[own])
    part, bare = handover._bare(raw, meta)
    assert part.numel() == bare.nbytes <= meta.nbytes - 2 * operands.GUARD
    found = view(part.clone(), bare)
    assert torch.equal(found, view(raw, meta))
    assert not found.isnan().any()
