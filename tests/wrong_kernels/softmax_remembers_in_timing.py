"""Keeps a result by address, and looks at the first elements to see whether it is still good.

Hybrid. Killed by roofline: the result of a timed call is wrong|dtype|scale|boundary
"""

KERNEL_TYPE = "softmax"


known = {}


def kernel_fn(x, dim=-1):
    key = x.data_ptr(), tuple(x.flatten()[:8].tolist())
    if key not in known:
        known[key] = x.softmax(dim)
    return known[key]
