"""Raises. Killed by smoke: raised ValueError: no such tile"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    raise ValueError("no such tile")
