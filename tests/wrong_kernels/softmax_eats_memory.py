"""Allocates until there is no more. Killed by smoke: raised MemoryError"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    hoard = []
    while True:
        hoard.append(bytearray(2**26))
