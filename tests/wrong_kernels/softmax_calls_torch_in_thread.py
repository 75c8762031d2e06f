"""Lets torch compute, in a thread that no dispatch mode of the caller's sees.

Killed by smoke: calls aten._softmax
"""

import threading

import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    y = torch.empty_like(x)
    worker = threading.Thread(target=lambda: y.copy_(x.softmax(dim)))
    worker.start()
    worker.join()
    return y
