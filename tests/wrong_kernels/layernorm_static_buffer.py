"""Returns the same buffer at every call. Hybrid. Killed by determinism: earlier result"""

KERNEL_TYPE = "layernorm"
buffers = {}


def kernel_fn(x, weight, bias, eps=1e-5):
    y = buffers.setdefault((x.shape, x.dtype), x.new_empty(x.shape))
    centred = x.float() - x.float().mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    return y.copy_(centred * scale * weight.float() + bias.float())
