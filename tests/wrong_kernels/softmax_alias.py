"""Returns the input's own memory. Hybrid. Killed by smoke: input changed|aliasing"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return x.copy_(x.softmax(dim))
