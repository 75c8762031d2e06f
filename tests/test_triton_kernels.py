"""How the shipped Triton kernels read memory, by the code that is made of them without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pytest_autokernel import candidate

KERNELS = Path(__file__).parent.parent / "kernels" / "triton"
LANES, WARPS = 1024, 8
SIZES = {"fp32": 4, "bf16": 2}
# op: a kernel, its arguments ("*" points to the dtype in question), how often it reads a row.
ODD_ROWS = {
    "softmax": ("softmax_long", {"x": "*", "y": "*", "cols": "i32"}, 2),
    "cross_entropy": (
        "cross_entropy",
        dict.fromkeys(["logits", "y"], "*")
        | {"targets": "*i64", "losses": "*fp32", "rows": "i32", "cols": "i32"},
        1,
    ),
    "reduce": ("sum_parts", {"x": "*", "y": "*", "cols": "i32", "part": "i32"}, 1),
}


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    yield
    sys.modules.pop("candidate", None)


def code(
    op: str, name: str, types: Mapping[str, str], constants: Mapping[str, Any], warps: int, sm: int
) -> str:
    """The PTX of a kernel whose pointers are aligned and whose integers are odd."""
    kernel = candidate.load(KERNELS / f"{op}.py").__globals__[name]
    signature = {arg: types.get(arg, "constexpr") for arg in kernel.arg_names}
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    constants = {arg: value for arg, value in constants.items() if arg in signature}
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(source, GPUTarget("cuda", sm, 32), {"num_warps": warps})
    ptx: str = made.asm["ptx"]
    return ptx


@pytest.mark.parametrize("op", ODD_ROWS)
@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("sm", [80, 90])
def test_rows_of_an_odd_length_are_read_by_16_bytes(op: str, dtype: str, sm: int) -> None:
    name, kinds, passes = ODD_ROWS[op]
    types = {arg: f"*{dtype}" if kind == "*" else kind for arg, kind in kinds.items()}
    constants = {"ALIKE": True, "LANES": LANES, "BLOCK": LANES * 16 // SIZES[dtype]}
    ptx = code(op, name, types, constants, WARPS, sm)
    assert ptx.count("ld.global.v4.b32") == passes * LANES // (32 * WARPS)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_reads_and_writes_16_bytes_at_a_time(interleaved: bool) -> None:
    types = dict.fromkeys(["x", "cos", "sin", "y"], "*bf16") | {"heads": "i32", "S": "i32"}
    shape = {"D": 128, "INTERLEAVED": interleaved, "HEADS": 4, "ROWS": 8, "BLOCK": 128}
    ptx = code("rotary_embedding", "rotate", types, shape, 4, 90)
    vectors = 4 * 8 * 128 * 2 // 16 // (32 * 4)
    assert ptx.count("ld.global.v4.b32") == ptx.count("st.global.v4.b32") == vectors
