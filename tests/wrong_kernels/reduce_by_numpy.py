"""Lets numpy sum. Killed by smoke: imports numpy"""

import numpy as np
import torch

KERNEL_TYPE = "reduce"


def kernel_fn(x, dim=-1):
    return torch.from_numpy(np.asarray(x.double()).sum(dim)).to(x.dtype)
