"""A judge that follows a script, as a function and as a program that stands in for pytest.

The speed of a kernel is a function of its CONFIG, so that a run with a seed always gives the
same experiments. As a program it answers the command lines with which the agent calls pytest, the
one that stays too; `FAKE` in the environment makes it misbehave.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

KERNEL = '''\
"""A kernel for tests."""

KERNEL_TYPE = "softmax"

# width pays up to 4; unroll=4 is wrong in the full judgement.
CONFIG = {"width": 1, "unroll": 1}
SPACE = {
    "width": [1, 2, 4, 8],
    "unroll": [1, 2, 4],
    "rules": ["width * unroll <= 16"],
}


def kernel_fn(x, dim=-1):
    return x.softmax(dim)
'''

SPEEDS = {"width": {1: 1.0, 2: 1.5, 4: 2.0, 8: 1.9}, "unroll": {1: 1.0, 2: 1.004, 4: 1.5}}
TO_AGENT = {
    "kill-agent": signal.SIGKILL,
    "interrupt-agent": signal.SIGINT,
    "terminate-agent": signal.SIGTERM,
}


def config_of(text: str) -> dict[str, Any]:
    """The CONFIG of a kernel file."""
    line = next(line for line in text.splitlines() if line.startswith("CONFIG = "))
    found: dict[str, Any] = ast.literal_eval(line.removeprefix("CONFIG = "))
    return found


def time_us(text: str) -> float:
    config = config_of(text)
    return 1000 / (SPEEDS["width"][config["width"]] * SPEEDS["unroll"][config["unroll"]])


def comparison(other_us: float, ours_us: float) -> dict[str, Any]:
    ratio = other_us / ours_us
    decision = "KEEP" if ratio > 1.02 else "REVERT" if ratio < 0.998 else "UNDECIDED"
    return {
        "ratio": ratio,
        "low": ratio * 0.99,
        "high": ratio * 1.01,
        "confidence": 0.99,
        "decision": decision,
        "confirmed": decision == "KEEP",
        "blocks": [[[other_us] * 3, [ours_us] * 3]] * 2,
    }


def item(stage: str, verdict: str = "PASS", reason: str | None = None) -> dict[str, Any]:
    return {
        "id": f"kernels/softmax.py::{stage}[large-fp32]",
        "stage": stage,
        "case": "large-fp32",
        "verdict": verdict,
        "seconds": 0.1,
        "completed": 1,
        "worst": None,
        "reason": reason,
    }


def report(
    text: str, baseline: str | None, seed: int, full: bool, screen: bool = False
) -> dict[str, Any]:
    """What the judge would say: of a few cases or of all, and as a screen, which keeps nothing."""
    items, timings = [item("smoke")], []
    wrong = full and config_of(text)["unroll"] == 4
    if wrong:
        items += [item("edge_cases", "FAIL", "softmax 1x1 fp32: off by 3 ulp\nin lane 0")]
    else:
        items += [item("roofline")]
        comparisons = {"eager": comparison(900.0, time_us(text))}
        if baseline is not None:
            found = comparison(time_us(baseline), time_us(text))
            if screen and found["decision"] == "KEEP":
                found |= {"decision": "PROMISING", "confirmed": False}
            comparisons["baseline"] = found
        timings = [
            {
                "case": "large-fp32",
                "time_us": time_us(text),
                "tflops": 0.25,
                "gb_s": 12.5,
                "pct_roof": 40.0,
                "peak_mb": None,
                "l2": "warm",
                "comparisons": comparisons,
            }
        ]
    whole = timings[0]["comparisons"].get("baseline") if timings else None
    failed = next((i for i in items if i["verdict"] != "PASS"), None)
    kernel = {
        "path": "kernels/softmax.py",
        "op": "softmax",
        "backend": "torch",
        "device": "cpu",
        "sha256": "",
        "verdict": failed["verdict"] if failed else "PASS",
        "reason": failed["reason"] if failed else None,
        "items": items,
        "timings": timings,
        "overall": whole,
    }
    return {
        "schema": 1,
        "version": "0",
        "seed": seed,
        "effort": "normal" if full else "quick",
        "environment": {"device": "test", "torch": "0", "triton": None, "python": "0"},
        "kernels": [kernel],
    }


def binary(text: str) -> dict[str, Any]:
    """What the judge would say of a kernel's binary, which is the same for an unroll of 1 and 2."""
    found = report(text, None, 1, full=True)
    (kernel,) = found["kernels"]
    config = config_of(text)
    digest = f"{config['width']} {max(config['unroll'], 2)}"
    right = {"verdict": "PASS", "reason": None, "items": [item("binary")], "binary": digest}
    kernel.update(**right, timings=[], overall=None)
    return found


def misbehave(how: str, calls: int) -> None:
    """`FAKE` is `WHAT:CALL`, the call that goes wrong; without a number each does."""
    what, _, call = how.partition(":")
    if call and int(call) != calls:
        return
    if what in TO_AGENT:
        os.kill(os.getppid(), TO_AGENT[what])
        time.sleep(0 if what == "kill-agent" else 600)  # the others end this process too
    if what == "exit-4":
        os.write(2, b"INTERNALERROR> no such option\n")
        sys.exit(4)
    if what == "no-report":
        sys.exit(1)
    if what == "hang":
        time.sleep(600)
    if what == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)


def stay(fd: int) -> None:
    """Answer requests until the agent is gone."""
    with socket.socket(fileno=fd) as asked, asked.makefile("rw") as lines:
        for line in lines:
            code = 0
            try:
                main(json.loads(line)["args"])
            except SystemExit as end:
                code = int(end.code or 0)
            lines.write(json.dumps({"code": code}) + "\n")
            lines.flush()


def main(argv: list[str]) -> None:
    if "--autokernel-standing" in argv:
        stay(int(argv[argv.index("--autokernel-standing") + 1]))
        return
    options = dict(itertools.pairwise(argv))
    log = Path(os.environ["FAKE_LOG"])
    with log.open("a") as file:
        call = {"argv": argv, "cwd": str(Path.cwd()), "pid": os.getpid()}
        call["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        file.write(json.dumps({**call, "variables": sorted(os.environ)}) + "\n")
        file.flush()
        number = log.read_bytes()[: file.tell()].count(b"\n")  # others may have called since
    misbehave(os.environ.get("FAKE", ""), number)
    file_of = options.get("--autokernel-baseline")
    found = report(
        Path(options["--autokernel"]).read_text(),
        Path(file_of).read_text() if file_of else None,
        int(options.get("--autokernel-seed", 0)),
        full=options["--autokernel-effort"] == "normal",
        screen=options.get("--autokernel-ask") == "screen",
    )
    if options.get("--autokernel-ask") == "binary":
        found = binary(Path(options["--autokernel"]).read_text())
    if os.environ.get("FAKE") == "garbage":
        found = {"schema": 1, "kernels": [{"verdict": "PASS"}]}
    if os.environ.get("FAKE") == "schema":
        found["schema"] = 2
    if os.environ.get("FAKE") == "fail":
        found["kernels"][0].update(verdict="FAIL", reason="off by one")
    Path(options["--autokernel-json"]).write_text(json.dumps(found))
    passed = found["kernels"][0]["verdict"] == "PASS"
    sys.exit(passed if os.environ.get("FAKE") == "contradiction" else not passed)


if __name__ == "__main__":
    main(sys.argv[1:])
