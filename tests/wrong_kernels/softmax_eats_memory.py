"""Allocates until there is no more. Killed by smoke: raised MemoryError"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    hoard, size = [], 2**30
    while True:
        hoard.append(bytearray(size))
        size *= 2
