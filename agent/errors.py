"""The two ways in which a run ends without a result. Their messages are for the user."""

from __future__ import annotations


class Refused(Exception):
    """What was asked cannot be done: the message says what was expected, what came, what to do."""


class JudgeFailed(Exception):
    """The judge itself broke down; nothing is known about the kernel."""
