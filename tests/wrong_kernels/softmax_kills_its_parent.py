"""Kills the process that it comes from.

Killed by smoke: raised (PermissionError|ProcessLookupError)
"""

import os
import signal

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    os.kill(os.getppid(), signal.SIGKILL)
    return x.clone()
