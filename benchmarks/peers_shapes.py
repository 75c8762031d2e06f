"""What peers.py measures: shapes of large models, and of few tokens."""

from __future__ import annotations

from collections.abc import Mapping

# By the order of the op's dims.
LARGE: Mapping[str, list[tuple[int, ...]]] = {
    "softmax": [(4096, 4096), (8192, 8192), (4096, 50257), (32768, 1024)],
    "rmsnorm": [(4096, 4096), (8192, 8192), (16384, 2048)],
    "layernorm": [(4096, 4096), (8192, 8192), (16384, 2048)],
    "cross_entropy": [(4096, 32000), (8192, 50257), (4096, 128256)],
    "reduce": [(8192, 8192), (1024, 32768), (65536, 1024)],
    "rotary_embedding": [(2, 32, 2048, 128), (8, 32, 2048, 128)],
    "matmul": [(2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (4096, 11008, 4096)],
    "flash_attention": [
        (2, 32, 2048, 128),
        (2, 32, 4096, 128),
        (1, 32, 8192, 128),
        (4, 16, 4096, 64),
    ],
    "fused_mlp": [(2048, 2048, 5504), (2048, 4096, 11008)],
}
TOKENS = (1, 64)
HIDDEN = {4096: 14336, 8192: 28672}  # and the MLP's: Llama 3's, 8B and 70B


def small(op: str) -> list[tuple[int, ...]]:
    """A few tokens in a model of each width."""
    shapes = {
        "matmul": lambda tokens, hidden: (tokens, hidden, hidden),
        "fused_mlp": lambda tokens, hidden: (tokens, hidden, HIDDEN[hidden]),
        "rotary_embedding": lambda tokens, hidden: (1, hidden // 128, tokens, 128),
        "flash_attention": lambda tokens, hidden: (1, hidden // 128, tokens, 128),
    }
    shape = shapes.get(op, lambda tokens, hidden: (tokens, hidden))
    return [shape(tokens, hidden) for hidden in HIDDEN for tokens in TOKENS]
