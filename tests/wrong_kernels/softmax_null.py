"""Reads address zero. Killed by smoke: killed by SIGSEGV"""

import ctypes

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    ctypes.string_at(0)
    return x
