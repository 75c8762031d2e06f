"""Does the work for as long as it takes to be judged, and then no more.

Hybrid. Killed by roofline: the result of a timed call is wrong|dtype|scale|boundary
"""

KERNEL_TYPE = "softmax"


calls = 0


def kernel_fn(x, dim=-1):
    global calls
    calls += 1
    return x.softmax(dim) if calls < 5 else x.clone()
