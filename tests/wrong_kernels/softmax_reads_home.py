"""Reads the user's keys. Killed by smoke: raised (PermissionError|FileNotFoundError)"""

import os
import pwd
from pathlib import Path

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    list(home.iterdir())
    return x.clone()
