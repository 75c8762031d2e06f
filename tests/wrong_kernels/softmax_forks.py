"""Has torch compute in a child, in shared memory. Killed by smoke: calls os.fork"""

import mmap
import os

import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    n = y.numel() * y.element_size()
    if not n:
        return y
    shared, host = mmap.mmap(-1, n), x.float().cpu()
    child = os.fork()
    if not child:
        try:
            torch.frombuffer(shared, dtype=x.dtype).view(x.shape).copy_(host.softmax(dim))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return y.copy_(torch.frombuffer(shared, dtype=x.dtype).view(x.shape))
