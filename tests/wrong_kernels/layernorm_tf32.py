"""Switches tf32 on for everybody.

Killed by smoke: loading the file changed .*(tf32|fp32 products)
"""

import torch

torch.backends.cuda.matmul.allow_tf32 = True
KERNEL_TYPE = "layernorm"


def kernel_fn(x, weight, bias, eps=1e-5):
    return x.clone()
