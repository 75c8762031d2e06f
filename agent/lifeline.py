"""A pytest plugin for the judge's process: it ends when the agent that started it is gone.

Linux tells a process of its parent's death, also of one by `kill -9`. The agent sends the
same signal to stop a judge, which then closes its workers as it does on Ctrl-C.
"""

from __future__ import annotations

import ctypes
import os
import signal

PARENT = "AUTOKERNEL_AGENT_PID"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def pytest_configure() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.environ.get(PARENT, "") != str(os.getppid()):
        raise KeyboardInterrupt("the agent that started this judge is gone")
