"""What every op in `reference/` must hold, whoever adds it: right, fair and hard to fool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pytest_autokernel import operands, oracle
from pytest_autokernel.op import Case, Dtype, Op, Tensors
from pytest_autokernel.ops import load_op, op_files
from tests.naive_kernels import NAIVE
from tests.published_sizes import EDGES, SIZES
from tests.right_kernels import RIGHT, TOTALS

FILES = op_files(Path("nowhere"))
OPS = {name: load_op(name, FILES) for name in FILES}

# The shapes that a kernel gets, from the dims of its op.
SHAPES: dict[str, Callable[..., list[tuple[int, ...]]]] = {
    "matmul": lambda M, N, K: [(M, K), (K, N)],
    "softmax": lambda rows, cols: [(rows, cols)],
    "layernorm": lambda batch, dim: [(batch, dim), (dim,), (dim,)],
    "rmsnorm": lambda M, N: [(M, N), (N,)],
    "flash_attention": lambda batch, heads, seq_len, head_dim: (
        [(batch, heads, seq_len, head_dim)] * 3
    ),
    "fused_mlp": lambda batch, dim, hidden: (
        [(batch, dim), (hidden, dim), (hidden, dim), (dim, hidden)]
    ),
    "cross_entropy": lambda batch, vocab: [(batch, vocab), (batch,)],
    "rotary_embedding": lambda batch, heads, seq_len, head_dim: [
        (batch, heads, seq_len, head_dim),
        (seq_len, head_dim // 2),
        (seq_len, head_dim // 2),
    ],
    "reduce": lambda M, N: [(M, N)],
}

EXTENSIONS = {
    "matmul": {"batched"},
    "softmax": {"dim", "nd"},
    "layernorm": {"nd"},
    "rmsnorm": {"nd"},
    "flash_attention": {"gqa", "cross", "head_dim"},
    "fused_mlp": {"gelu", "relu2"},
    "cross_entropy": {"ignore_index", "nd"},
    "rotary_embedding": {"half_split"},
    "reduce": {"dim", "nd"},
}


def small(op: Op, dtype: Dtype, variant: str = "core", fill: str = "normal", seed: int = 1) -> Case:
    """The smallest named size, with 32 at most in each batch dim and 512 in the others."""
    smallest = min(op.sizes.values(), key=lambda dims: op.cost(dims, 1).bytes)
    dims = {d.name: min(smallest[d.name], 32 if d.batch else 512) for d in op.dims}
    return Case("small", dims, dtype, variant, fill, seed=seed)


def made(op: Op, case: Case) -> Tensors:
    return operands.make_inputs(op, case, "cpu")[0]


def baseline(op: Op, case: Case, inputs: Tensors) -> torch.Tensor:
    return next(iter(op.baselines.values()))(*inputs, **op.variants[case.variant].options)


def expected(op: Op, case: Case, inputs: Tensors) -> torch.Tensor:
    """The exact result, in float64."""
    return op.reference(*widened(inputs), **op.variants[case.variant].options)


def widened(inputs: Tensors) -> Tensors:
    return tuple(t.double() if t.is_floating_point() else t for t in inputs)


def lowered(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` rounded to the next precision below its own; integers stay."""
    if tensor.dtype == torch.float32:
        return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    if tensor.dtype == torch.float16:
        return tensor.to(torch.bfloat16).to(tensor.dtype)
    if tensor.dtype == torch.bfloat16:
        return tensor.clamp(-448, 448).to(torch.float8_e4m3fn).to(tensor.dtype)
    return tensor


def each(parts: Callable[[Op, Dtype], Iterable[str]] | None = None) -> pytest.MarkDecorator:
    """Parametrise over op and dtype, and over what `parts` names for them."""
    found = []
    for op in OPS.values():
        for dtype in op.dtypes:
            for rest in [()] if parts is None else [(part,) for part in parts(op, dtype)]:
                found.append(pytest.param(op, dtype, *rest, id="-".join((op.name, *rest, dtype))))
    return pytest.mark.parametrize(["op", "dtype"] + ["part"] * (parts is not None), found)


def stabilities(op: Op, dtype: Dtype) -> list[str]:
    return [name for name, stability in op.stability.items() if dtype in stability.dtypes]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are faster on one thread, and tests that run beside these keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_op_has_its_examples_here() -> None:
    names = set(OPS)
    assert names == set(SHAPES) == set(SIZES) == set(EDGES) == set(EXTENSIONS) == set(RIGHT)
    assert {name: set(op.stability) for name, op in OPS.items()} == {
        name: set(naive) for name, naive in NAIVE.items()
    }


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_sizes_and_edges_are_the_published_ones_and_more(op: Op) -> None:
    sizes = {name: tuple(dims.values()) for name, dims in op.sizes.items()}
    assert sizes | SIZES[op.name] == sizes
    assert {tuple(dims.values()) for dims in op.edges.values()} > EDGES[op.name]


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_dims_are_named_alike_everywhere(op: Op) -> None:
    names = [dim.name for dim in op.dims]
    assert all(list(dims) == names for dims in [*op.sizes.values(), *op.edges.values()])
    assert any(dim.batch for dim in op.dims)
    assert set(op.timed) <= set(op.sizes)


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_extensions_are_those_of_the_contract(op: Op) -> None:
    assert set(op.extensions) == EXTENSIONS[op.name]
    assert next(iter(op.variants)) == "core"
    assert op.claimed(frozenset()) == {n: v for n, v in op.variants.items() if not v.extension}


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_every_case_costs_something(op: Op) -> None:
    for dims in op.sizes.values():
        cost = op.cost(dims, 2)
        assert cost.flops > 0
        assert cost.bytes > 0
        assert op.cost(dims, 4).bytes > cost.bytes


@each(lambda op, dtype: op.variants)
def test_inputs_have_the_documented_shapes(op: Op, dtype: Dtype, part: str) -> None:
    case = small(op, dtype, part)
    inputs = made(op, case)
    if part == "core":
        assert [tuple(t.shape) for t in inputs] == SHAPES[op.name](**case.dims)
    floating = [t for t in inputs if t.is_floating_point()]
    assert {t.dtype for t in floating} == {operands.TORCH_DTYPES[dtype]}
    assert all(t.isfinite().all() for t in floating)


@each(lambda op, dtype: op.variants)
def test_the_reference_is_what_pytorch_computes(op: Op, dtype: Dtype, part: str) -> None:
    case = small(op, dtype, part)
    inputs = made(op, case)
    exact = expected(op, case, inputs)
    torch.testing.assert_close(
        exact, baseline(op, case, widened(inputs)), rtol=1e-9, atol=1e-12, equal_nan=True
    )
    judged = oracle.compare(baseline(op, case, inputs), op, case, inputs)
    assert judged.ok, judged.reason


@each(lambda op, dtype: [name for name, dims in op.edges.items() if op.cost(dims, 1).bytes < 2**16])
def test_edges_have_a_reference(op: Op, dtype: Dtype, part: str) -> None:
    case = Case(part, op.edges[part], dtype)
    inputs = made(op, case)
    assert expected(op, case, inputs).shape == baseline(op, case, inputs).shape


@each(lambda op, dtype: TOTALS)
def test_right_algorithms_are_accepted(op: Op, dtype: Dtype, part: str) -> None:
    for fill in ("normal", *stabilities(op, dtype)):
        case = small(op, dtype, fill=fill)
        inputs = made(op, case)
        judged = oracle.compare(RIGHT[op.name](*inputs, total=TOTALS[part]), op, case, inputs)
        assert judged.ok, (fill, judged.reason)


@each()
def test_the_next_lower_precision_is_refused(op: Op, dtype: Dtype) -> None:
    """Of five draws, because one number alone (a mean loss) may come out right by luck."""
    refused = 0
    for seed in range(5):
        case = small(op, dtype, seed=seed)
        inputs = made(op, case)
        low = tuple(lowered(t) for t in inputs)
        got = lowered(RIGHT[op.name](*low, total=TOTALS["tree"]))
        refused += not oracle.compare(got, op, case, inputs).ok
    assert refused == 5 or (got.numel() == 1 and refused >= 2)


@each(stabilities)
def test_a_naive_kernel_is_wrong_where_the_reference_is_finite(
    op: Op, dtype: Dtype, part: str
) -> None:
    case = small(op, dtype, fill=part)
    inputs = made(op, case)
    assert expected(op, case, inputs).isfinite().all()
    assert oracle.compare(baseline(op, case, inputs), op, case, inputs).ok
    assert not oracle.compare(NAIVE[op.name][part](*inputs), op, case, inputs).ok


@each(lambda op, dtype: [name for name in stabilities(op, dtype) if op.stability[name].exact])
def test_exact_cases_are_exact_in_any_order(op: Op, dtype: Dtype, part: str) -> None:
    case = small(op, dtype, fill=part)
    inputs = made(op, case)
    rounded = expected(op, case, inputs).to(operands.TORCH_DTYPES[dtype])
    assert all(torch.equal(RIGHT[op.name](*inputs, total=t), rounded) for t in TOTALS.values())


@each(lambda op, dtype: op.relations)
def test_relations_hold_for_the_reference_and_not_for_any_kernel(
    op: Op, dtype: Dtype, part: str
) -> None:
    case, relation = small(op, dtype), op.relations[part]
    inputs, draw = operands.make_inputs(op, case, "cpu")
    calls = relation.related(inputs, draw)
    results = [expected(op, case, call).to(operands.TORCH_DTYPES[dtype]) for call in calls]
    judged = oracle.compare_relation(relation, part, results, calls[0])
    assert judged.ok, judged.reason
    results[-1] = results[-1] * 1.1 + 0.1
    assert not oracle.compare_relation(relation, part, results, calls[0]).ok


@each(lambda op, dtype: op.relations)
def test_relations_hold_for_right_kernels(op: Op, dtype: Dtype, part: str) -> None:
    case, relation = small(op, dtype), op.relations[part]
    for seed, total in enumerate(TOTALS.values()):
        inputs, draw = operands.make_inputs(op, replace(case, seed=seed), "cpu")
        calls = relation.related(inputs, draw)
        results = [RIGHT[op.name](*call, total=total) for call in calls]
        judged = oracle.compare_relation(relation, part, results, calls[0])
        assert judged.ok, judged.reason


def test_a_quarter_turn_holds_where_products_are_fused() -> None:
    def fused(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """A product is exact in float64, and so is rounded with the sum alone."""
        a, b, c, s = x[..., ::2], x[..., 1::2], cos, sin
        turned = (a.double() * c - b * s).float(), (b.double() * c + a * s).float()
        return torch.stack(turned, -1).flatten(-2)

    op = OPS["rotary_embedding"]
    relation = op.relations["quarter_turn"]
    for seed in range(20):
        inputs, draw = operands.make_inputs(op, replace(small(op, "fp32"), seed=seed), "cpu")
        results = [fused(*call) for call in relation.related(inputs, draw)]
        judged = oracle.compare_relation(relation, "quarter_turn", results, inputs)
        assert judged.ok, judged.reason


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("length", [111, 767, 4099])
def test_a_running_sum_of_equal_addends_is_right(dtype: Dtype, length: int) -> None:
    op = OPS["reduce"]
    case = Case("equal", {"M": 1, "N": length}, dtype, layout="broadcast")
    for seed in range(30):
        draw = operands.SeededDraw(seed, operands.TORCH_DTYPES[dtype], "cpu")
        x = draw.normal(1, 1, scale=3).expand(1, length)
        judged = oracle.compare(RIGHT["reduce"](x, total=TOTALS["sequential"]), op, case, (x,))
        assert judged.ok, judged.reason


def test_a_running_sum_may_meet_the_maximum_first() -> None:
    """Where the others are just below its last bit: all that a softmax adds to it is lost."""
    op, case = OPS["softmax"], Case("lost", {"rows": 64, "cols": 1024}, "fp32")
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1)) * 0.1
    x[:, 0] = torch.linspace(14, 20, 64)
    judged = oracle.compare(RIGHT["softmax"](x, total=TOTALS["sequential"]), op, case, (x,))
    assert judged.ok, judged.reason


@pytest.mark.parametrize("name", ["rmsnorm", "layernorm"])
def test_a_norm_may_scale_its_squares_by_the_largest_and_meet_that_first(name: str) -> None:
    op, dims = OPS[name], dict(zip((d.name for d in OPS[name].dims), (16, 50257), strict=True))
    case = Case("lost", dims, "fp32", seed=1)
    x, *affine = made(op, case)
    x = x / x.std(-1, keepdim=True) * torch.linspace(0.2, 1, 16)[:, None]
    x[:, 0] = 2000

    def scaled(addends: torch.Tensor) -> torch.Tensor:
        top = addends.amax(-1, keepdim=True)
        return TOTALS["sequential"](addends / top) * top[..., 0]

    judged = oracle.compare(RIGHT[name](x, *affine, total=scaled), op, case, (x, *affine))
    assert judged.ok, judged.reason


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_an_mlp_may_store_what_each_of_its_products_gives(dtype: Dtype) -> None:
    op, case = OPS["fused_mlp"], Case("few", {"batch": 1, "dim": 16, "hidden": 7}, dtype)
    for seed in range(100):
        x, w_gate, w_up, w_down = made(op, replace(case, seed=seed))
        gate, up = (x.float() @ w.float().t() for w in (w_gate, w_up))
        stored_gate, stored_up = gate.to(x.dtype).float(), up.to(x.dtype).float()
        hidden = (stored_gate * stored_gate.sigmoid() * stored_up).to(x.dtype)
        got = (hidden.float() @ w_down.float().t()).to(x.dtype)
        judged = oracle.compare(got, op, case, (x, w_gate, w_up, w_down))
        assert judged.ok, judged.reason
