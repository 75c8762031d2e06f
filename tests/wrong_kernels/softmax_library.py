"""Has torch compute. Killed by smoke: calls aten._softmax"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return x.softmax(dim)
