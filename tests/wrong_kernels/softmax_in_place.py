"""Right values, written over the input. Hybrid. Killed by smoke: input changed"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    y = x.softmax(dim)
    x.zero_()
    return y
