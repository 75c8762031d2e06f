"""Right but for one width, written as a float. Hybrid. Killed by shape_sweep: 777"""

KERNEL_TYPE = "softmax"
SUPPORTS = {"dim", "nd"}


def kernel_fn(x, dim=-1):
    y = x.float().softmax(dim)
    return (y.flip(dim) if x.shape[dim] == 777.0 else y).to(x.dtype)
