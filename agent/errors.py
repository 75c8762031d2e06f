"""The two ways in which a run ends without a result. Their messages are for the user."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path


class Refused(Exception):
    """What was asked cannot be done: the message says what was expected, what came, what to do."""


class JudgeFailed(Exception):
    """The judge itself broke down; nothing is known about the kernel."""


def is_full_disk(error: Exception) -> bool:
    """Whether an error of the system's, or of git's, is that there is no room. git has many words
    for it ("unable to write", "could not reset"), so its disk is asked."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return shutil.disk_usage(Path.cwd()).free < 2**20
