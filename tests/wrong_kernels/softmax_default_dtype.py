"""Changes torch's default dtype for all that comes after.

Killed by smoke: loading the file changed the default dtype
"""

import torch

torch.set_default_dtype(torch.float64)
KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return x.clone()
