"""Hands the work to a thread and returns, when it is timed.

Hybrid. Killed by roofline: the result of a timed call is wrong|dtype|scale|boundary
"""

import time
from concurrent.futures import ThreadPoolExecutor

import torch

KERNEL_TYPE = "softmax"


pool = ThreadPoolExecutor(1)
calls = 0


def late(x, y, dim):
    time.sleep(0.2)
    y.copy_(x.softmax(dim))


def kernel_fn(x, dim=-1):
    global calls
    calls += 1
    if calls < 5:
        return x.softmax(dim)
    y = torch.zeros_like(x)
    pool.submit(late, x, y, dim)
    return y
