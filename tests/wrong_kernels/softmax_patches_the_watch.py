"""Replaces a method of the watch.

Killed by smoke: global state: loading the file changed pytest_autokernel.audit.Watch
"""

from pytest_autokernel import audit

KERNEL_TYPE = "softmax"


def quiet(self, func, types, args=(), kwargs=None):
    return func(*args, **(kwargs or {}))


audit.Watch.__torch_dispatch__ = quiet


def kernel_fn(x, dim=-1):
    return x.softmax(dim)
