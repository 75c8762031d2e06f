"""Takes memory until there is no more. Killed by smoke: raised OSError: .*Cannot allocate memory"""

import mmap

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    hoard = []
    while True:
        hoard.append(mmap.mmap(-1, 2**30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
