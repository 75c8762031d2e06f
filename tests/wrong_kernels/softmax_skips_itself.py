"""Asks pytest to skip. Killed by smoke: raised Skipped|imports pytest"""

import pytest

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    pytest.skip("nothing to see")
