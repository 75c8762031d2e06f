"""Returns one of two buffers of its own in turn. Hybrid. Killed by determinism: earlier result"""

KERNEL_TYPE = "reduce"
buffers = {}


def kernel_fn(x, dim=-1):
    pair = buffers.setdefault((len(x), x.dtype), [x.new_zeros(len(x)) for _ in "ab"])
    pair.reverse()
    return pair[0].copy_(x.float().sum(-1))
