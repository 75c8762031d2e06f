"""Has the worker's clock run slow once it has been judged.

On a CPU. Hybrid. Killed by roofline: the clock
"""

import time

from pytest_autokernel import sampling

KERNEL_TYPE = "softmax"


honest = time.perf_counter_ns
start = honest()
calls = 0


def kernel_fn(x, dim=-1):
    global calls
    calls += 1
    if calls > 3:
        sampling._now_ns = lambda: start + (honest() - start) // 8
    return x.softmax(dim)
