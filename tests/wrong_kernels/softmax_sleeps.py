"""Never returns. Killed by smoke: no answer within"""

import time

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    while True:
        time.sleep(3600)
