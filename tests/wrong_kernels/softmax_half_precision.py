"""fp32 inputs computed in fp16. Killed by smoke: value|wrong everywhere|precision"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    narrow = x.half() if x.dtype.itemsize == 4 else x
    return narrow.softmax(dim).to(x.dtype)
