"""Right but for one width, 777. Hybrid. Killed by shape_sweep: 777"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    y = x.softmax(dim)
    return y.flip(-1) if x.shape[-1] == 777 else y
