"""Raises SystemExit(0). Killed by smoke: raised SystemExit"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    raise SystemExit(0)
