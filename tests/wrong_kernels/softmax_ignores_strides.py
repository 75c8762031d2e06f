"""Reads its input as if it were contiguous.

Hybrid. Killed by edge_cases: value|NaN|wrong|rows|dtype|scale|boundary
"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    if x.numel() == 0:
        return x.clone()
    start = x.storage_offset()
    flat = x.as_strided((x.numel(),), (1,), start) if x.dim() == 2 else x.reshape(-1)
    return flat.reshape(x.shape).softmax(dim)
