"""A coding agent that follows a script: a program for tests, started with what to do, the kernel
file and the prompt. It imports nothing of ours."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def edit(kernel: Path) -> None:
    kernel.write_text(kernel.read_text().replace('"width": 1,', '"width": 4,'))


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def good(kernel: Path) -> None:
    edit(kernel)
    say("I thought for long.\nwidth from 1 to 4")


def good_and_exit_3(kernel: Path) -> None:
    good(kernel)
    sys.exit(3)


def nothing(kernel: Path) -> None:
    say("It is now 10 times faster!")


def other_files(kernel: Path) -> None:
    good(kernel)
    Path("conftest.py").write_text("raise SystemExit(0)\n")


def context(kernel: Path) -> None:
    good(kernel)
    reference = Path("context/reference.py")
    reference.chmod(0o644)
    reference.write_text("OP = None\n")


def deletes(kernel: Path) -> None:
    kernel.unlink()


def link(kernel: Path) -> None:
    kernel.unlink()
    kernel.symlink_to("/etc/passwd")


def broken(kernel: Path) -> None:
    kernel.write_text("def kernel_fn(:\n")


def binary(kernel: Path) -> None:
    kernel.write_bytes(b"\xff\xfe\x00")


def hang(kernel: Path) -> None:
    say("thinking")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def talk(kernel: Path) -> None:
    while True:
        say("still thinking")
        time.sleep(0.05)


def flood(kernel: Path) -> None:
    while True:
        os.write(1, b"x" * 65536)


def daemon(kernel: Path) -> None:
    """Its grandchild is in a session of its own, has closed its output, and goes on."""
    edit(kernel)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.write(writer, str(os.getpid()).encode())
            for standard in (0, 1, 2):
                os.close(standard)
            while True:
                kernel.write_text("raise SystemExit(0)\n")
                time.sleep(0.01)
        os._exit(0)
    say(os.read(reader, 99).decode())


def surroundings(kernel: Path) -> None:
    """What it finds, as a comment in the kernel."""
    found = {
        "environment": dict(os.environ),
        "stdin": sys.stdin.read(),
        "session": os.getsid(0) == os.getpid(),
        "files": sorted(str(p) for p in Path().rglob("*") if ".git" not in p.parts),
        "prompt": sys.argv[-1],
        "home": [path.name for path in Path(os.environ["HOME"]).iterdir()],
    }
    kernel.write_text(kernel.read_text() + f"# {json.dumps(found)}\n")


def leak(kernel: Path) -> None:
    kernel.write_text(kernel.read_text() + f"# {os.environ['SOME_KEY']}\n")


def shout(kernel: Path) -> None:
    say(f"invalid key \x1b[31m{os.environ['SOME_KEY']}")
    sys.exit(1)


def reach(kernel: Path) -> None:
    """Tries what it must not be able to do: paths and a process come in the environment."""
    done = []
    for path in os.environ["TARGETS"].split(":"):
        for how in ("rb", "ab"):
            try:
                with Path(path).open(how):
                    done.append(f"{how} {path}")
            except OSError:
                continue
    try:
        os.kill(int(os.environ["VICTIM"]), 0)
        done.append("signal")
    except OSError:
        pass
    kernel.write_text(kernel.read_text() + f"# {json.dumps(done)}\n")


def replay(kernel: Path) -> None:
    """Prints the events that lie beside the program under its name, after an edit."""
    edit(kernel)
    name = Path(sys.argv[0]).name
    say(Path(sys.argv[0]).with_name(f"{name}.events").read_text())


if __name__ == "__main__":
    if Path(sys.argv[0]).with_suffix(".events").exists():
        replay(Path("softmax.py"))
    else:
        globals()[sys.argv[1]](Path(sys.argv[2]))
