"""How the shipped Triton kernels read memory, by the code that is made of them without a GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = Path(__file__).parent.parent / "kernels" / "triton"
DTYPES = {"fp32": 4, "bf16": 2}


def code(
    op: str, name: str, types: Mapping[str, str], constants: Mapping[str, Any], warps: int, sm: int
) -> str:
    """The PTX of a kernel whose pointers are aligned and whose integers are odd."""
    spec = importlib.util.spec_from_file_location(f"triton_{op}", KERNELS / f"{op}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, name)
    names = kernel.arg_names
    signature = {arg: types.get(arg, "constexpr") for arg in names}
    aligned = [(index,) for index, arg in enumerate(names) if signature[arg].startswith("*")]
    source = ASTSource(
        kernel, signature, dict(constants), {at: [["tt.divisibility", 16]] for at in aligned}
    )
    target = GPUTarget("cuda", sm, 32)
    ptx: str = triton.compile(source, target=target, options={"num_warps": warps}).asm["ptx"]
    return ptx


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize(
    ("op", "name", "types", "constants", "passes"),
    [
        (
            "softmax",
            "softmax_long",
            {"x": "*{}", "y": "*{}", "cols": "i32"},
            {"ALIKE": True, "LANES": 1024},
            2,
        ),
        (
            "cross_entropy",
            "cross_entropy",
            {
                "logits": "*{}",
                "targets": "*i64",
                "losses": "*fp32",
                "y": "*{}",
                "rows": "i32",
                "cols": "i32",
            },
            {"LANES": 1024},
            1,
        ),
        (
            "reduce",
            "sum_parts",
            {"x": "*{}", "y": "*{}", "cols": "i32", "part": "i32"},
            {"BLOCK": 0},
            1,
        ),
    ],
    ids=["softmax", "cross_entropy", "reduce"],
)
def test_rows_of_an_odd_length_are_read_by_16_bytes(
    op: str,
    name: str,
    types: dict[str, str],
    constants: dict[str, Any],
    passes: int,
    dtype: str,
    sm: int,
) -> None:
    lanes, warps = 1024, 8
    if "BLOCK" in constants:
        constants = {"BLOCK": lanes * 16 // DTYPES[dtype]}
    types = {arg: kind.format(dtype) for arg, kind in types.items()}
    ptx = code(op, name, types, constants, warps, sm)
    assert ptx.count("ld.global.v4.b32") == passes * lanes // (32 * warps)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_reads_and_writes_16_bytes_at_a_time(interleaved: bool) -> None:
    types = dict.fromkeys(["x", "cos", "sin", "y"], "*bf16") | {"heads": "i32", "S": "i32"}
    shape = {"D": 128, "INTERLEAVED": interleaved, "HEADS": 4, "ROWS": 8, "BLOCK": 128}
    ptx = code("rotary_embedding", "rotate", types, shape, 4, 90)
    vectors = 4 * 8 * 128 * 2 // 16 // (32 * 4)
    assert ptx.count("ld.global.v4.b32") == ptx.count("st.global.v4.b32") == vectors
