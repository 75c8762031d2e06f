"""Returns at once and has a thread fill the result. Hybrid. Killed by smoke: NaN|global state"""

import threading
import time

import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    y = torch.empty_like(x)

    def fill():
        time.sleep(0.05)
        y.copy_(x.float().softmax(dim).to(x.dtype))

    threading.Thread(target=fill).start()
    return y
