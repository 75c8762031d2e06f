"""Takes no maximum off where it is not causal.

Hybrid. Killed by shape_sweep|numerical_stability: NaN|value|infinity
"""

import torch

KERNEL_TYPE = "flash_attention"
SUPPORTS = {"gqa", "cross", "head_dim"}


def attention(Q, K, V, causal, sm_scale, change=None, weights=None):
    K, V = (t.repeat_interleave(Q.shape[1] // K.shape[1], 1).float() for t in (K, V))
    s = Q.float() @ K.mT * (Q.shape[-1] ** -0.5 if sm_scale is None else sm_scale)
    if change:
        s = change(s)
    if causal:
        s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -torch.inf)
    p = weights(s) if weights else s.softmax(-1)
    return (p @ V).to(Q.dtype)


def plain(s):
    e = s.exp()
    return e / e.sum(-1, keepdim=True)


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    return attention(Q, K, V, causal, sm_scale, weights=None if causal else plain)
