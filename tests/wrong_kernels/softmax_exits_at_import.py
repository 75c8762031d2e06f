"""Ends whichever process imports it. Killed by smoke: exited by itself with code 0"""

import os

KERNEL_TYPE = "softmax"
os._exit(0)


def kernel_fn(x, dim=-1):
    return x
