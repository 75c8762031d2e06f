"""Makes finite scores of all.

Hybrid. Killed by shape_sweep[spoiled]: NaN
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


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    return attention(
        Q,
        K,
        V,
        causal,
        sm_scale,
        change=lambda s: s.nan_to_num(nan=-1e30, posinf=1e38, neginf=-1e38),
    )
