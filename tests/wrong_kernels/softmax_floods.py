"""Prints megabytes, and is wrong. Killed by smoke: wrong everywhere|value|dtype|scale|boundary"""

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    for _ in range(200):
        print("PASS " * 10000, flush=True)
    return x.clone()
