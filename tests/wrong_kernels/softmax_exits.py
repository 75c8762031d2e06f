"""Ends its process with the exit code of success. Killed by smoke: exited by itself with code 0"""

import os

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    os._exit(0)
