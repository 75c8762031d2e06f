"""Looks for the seed in its parent's memory.

Killed by smoke: raised (PermissionError|FileNotFoundError|OSError)
"""

import os
from pathlib import Path

KERNEL_TYPE = "reduce"


def kernel_fn(x, dim=-1):
    with Path(f"/proc/{os.getppid()}/mem").open("rb") as memory:
        memory.read(1)
    return x[..., 0].clone()
