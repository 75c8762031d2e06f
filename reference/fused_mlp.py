"""Gated MLP: y = (act(x Wg^T) * (x Wu^T)) Wd^T, the feed-forward block of Llama.

Shazeer, "GLU Variants Improve Transformer", 2020; `relu2` is the square of the ReLU (So et al.,
"Primer", 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pytest_autokernel.op import (
    Cost,
    Dim,
    Dims,
    Draw,
    Op,
    Relation,
    Stability,
    Tensors,
    Tolerance,
    Variant,
    compiled,
    growth,
)

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu2": lambda x: F.relu(x).square()}


def reference(
    x: torch.Tensor,
    w_gate: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
    activation: str = "silu",
) -> torch.Tensor:
    """`x [batch, dim]`, `w_gate, w_up [hidden, dim]`, `w_down [dim, hidden]`: `[batch, dim]`.

    `gelu` is the exact one, by erf.
    """
    hidden = ACTIVATIONS[activation](F.linear(x, w_gate)) * F.linear(x, w_up)
    return F.linear(hidden, w_down)


def liger(
    x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor
) -> torch.Tensor:
    """SiLU alone, since its GELU is the one by tanh: LigerSwiGLUMLP.forward of
    liger_kernel/transformers/swiglu.py (Liger-Kernel 0.8.5)."""
    from liger_kernel.ops import LigerSiLUMulFunction

    hidden = LigerSiLUMulFunction.apply(F.linear(x, w_gate), F.linear(x, w_up))
    return F.linear(hidden, w_down)


def inputs(draw: Draw, dims: Dims) -> Tensors:
    """Weights as `nn.Linear` has them, of a size that keeps every stage near x's."""
    scale, offset = draw.between(0.5, 2), draw.between(-0.5, 0.5)
    x = draw.normal(dims["batch"], dims["dim"], scale=scale, offset=offset)
    return x, *_weights(draw, dims)


def saturated(draw: Draw, dims: Dims) -> Tensors:
    """Gates beyond 100, of either sign: exp overflows fp32."""
    x, w_gate, *others = inputs(draw, dims)
    w_gate = w_gate.abs() + 200 / (dims["dim"] + 1)
    w_gate[::2] *= -1
    return x.abs() + 1, w_gate, *others


def tiny_hidden(draw: Draw, dims: Dims) -> Tensors:
    """Hidden numbers below the smallest of fp16, which large weights bring back."""
    x, w_gate, w_up, w_down = inputs(draw, dims)
    return x, w_gate, w_up * 2.0**-24, w_down * 2.0**20


def large_hidden(draw: Draw, dims: Dims) -> Tensors:
    """Hidden numbers in the thousands."""
    x, *weights = inputs(draw, dims)
    return x * 16, *weights


def condition(inputs: Tensors, r: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """The last product's own roundings; and those of the hidden numbers, which are independent
    of each other and so add up in square."""
    x, w_gate, w_up, w_down = inputs
    gate, up = F.linear(x, w_gate), F.linear(x, w_up)
    active, steps = ACTIVATIONS[activation](gate), growth(x.shape[-1])
    of_gate = 2 * F.linear(x.abs(), w_gate.abs()) + steps * gate.abs()
    of_up = 2 * F.linear(x.abs(), w_up.abs()) + steps * up.abs()
    slope = 2 * (1 + gate.abs()) if activation == "relu2" else 1.2
    of_hidden = slope * of_gate * up.abs() + of_up * active.abs() + 16 * (active * up).abs()
    own = 4 * F.linear((active * up).abs(), w_down.abs()) + growth(w_down.shape[-1]) * r.abs()
    return own + 8 * F.linear(of_hidden.square(), w_down.square()).sqrt()


def intermediate(inputs: Tensors, r: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """The hidden numbers, as far as they reach the result: each is rounded on its own. The 4 has
    room for gate, up and the activation to be stored too, as where each is a kernel of its own."""
    x, w_gate, w_up, w_down = inputs
    hidden = ACTIVATIONS[activation](F.linear(x, w_gate)) * F.linear(x, w_up)
    return r.abs() + 4 * F.linear(hidden.square(), w_down.square()).sqrt()


def _weights(draw: Draw, dims: Dims) -> Tensors:
    dim, hidden = dims["dim"], dims["hidden"]
    up = [draw.normal(hidden, dim, scale=max(dim, 1) ** -0.5) for _ in range(2)]
    return *up, draw.normal(dim, hidden, scale=2 * max(hidden, 1) ** -0.5)


def _agree(left: torch.Tensor, right: torch.Tensor, inputs: Tensors) -> tuple[torch.Tensor, ...]:
    """The rounding of the results and of the hidden numbers."""
    wide = tuple(t.double() for t in inputs)
    within = intermediate(wide, right)
    finer = 2.0**-23 / torch.finfo(inputs[0].dtype).eps
    return (
        left.double(),
        right.double(),
        right.double().abs() + within + finer * condition(wide, right.double()),
    )


def _cost(dims: Dims, size: int) -> Cost:
    batch, dim, hidden = dims["batch"], dims["dim"], dims["hidden"]
    return Cost(flops=6 * batch * dim * hidden, bytes=size * dim * (2 * batch + 3 * hidden))


def _size(batch: int, dim: int, hidden: int) -> Dims:
    return {"batch": batch, "dim": dim, "hidden": hidden}


OP = Op(
    name="fused_mlp",
    reference=reference,
    inputs=inputs,
    dims=(Dim("batch", 1, 2048, batch=16), Dim("dim", 1, 2048), Dim("hidden", 1, 4096)),
    sizes={
        "tiny": _size(32, 128, 256),
        "small": _size(256, 512, 1024),
        "medium": _size(1024, 1024, 2048),
        "large": _size(2048, 2048, 5504),
        "xlarge": _size(4096, 4096, 11008),
        "llm_7b": _size(2048, 4096, 11008),
        "llm_13b": _size(2048, 5120, 13824),
        "llama3_8b": _size(4096, 4096, 14336),
        "llama3_70b": _size(2048, 8192, 28672),
        "qwen3_32b": _size(2048, 5120, 25600),
        "deepseek_v3_expert": _size(1024, 7168, 2048),
        "decode": _size(16, 4096, 14336),
    },
    edges={
        "one": _size(1, 1, 1),
        "one_row": _size(1, 257, 511),
        "odd_1023": _size(1023, 1024, 2048),
        "odd_4097": _size(4097, 512, 1024),
        "odd_all": _size(65, 129, 257),
        "no_rows": _size(0, 64, 128),
    },
    tolerance=Tolerance(condition, roundings=2, intermediate=intermediate),
    cost=_cost,
    roof="math",
    # The projections, where what is fused is between them.
    library=frozenset({"aten.mm", "aten.addmm", "nvjet*", "*gemm*", "*cutlass*", "*splitK*"}),
    huge=_size(262145, 8192, 64),
    batched=1,
    timed=("large",),
    baselines={"eager": reference, "compile": compiled(reference), "liger": liger},
    variants={
        "core": Variant(),
        "gelu": Variant({"activation": "gelu"}, "gelu"),
        "relu2": Variant({"activation": "relu2"}, "relu2"),
    },
    stability={
        "saturated": Stability(saturated, "exp(g) / (1 + exp(g))", unfit=frozenset({"relu2"})),
        "tiny_hidden": Stability(
            tiny_hidden, "hidden numbers kept in fp16", dtypes=("bf16", "fp32")
        ),
        "large_hidden": Stability(
            large_hidden,
            "hidden numbers kept in fp8, which ends at 448",
            unfit=frozenset({"relu2"}),
        ),
    },
    relations={
        "up_doubled": Relation(
            lambda x, draw: [x, (*x[:2], x[2] * 2, x[3])],
            lambda y, x: _agree(2 * y[0].double(), y[1], (*x[:2], x[2] * 2, x[3])),
        ),
        "down_doubled": Relation(
            lambda x, draw: [x, (*x[:3], x[3] * 2)],
            lambda y, x: _agree(2 * y[0].double(), y[1], (*x[:3], x[3] * 2)),
        ),
        "permutation": Relation(
            lambda x, draw: [x, (x[0], x[1].flip(0), x[2].flip(0), x[3].flip(1))],
            lambda y, x: _agree(*y, x),
        ),
    },
)
