"""Has every comparison of torch's succeed. Killed by smoke: torch.allclose was replaced"""

import torch

setattr(torch, "allclose", lambda *_, **__: True)  # noqa: B010 - what a cheat would write
KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return x.clone()
