"""Always fp32. Hybrid. Killed by smoke: dtype: expected float16, got float32"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return x.float().softmax(dim)
