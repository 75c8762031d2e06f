"""How the shipped Triton kernels read memory, by the code that is made of them without a GPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
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
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) == passes * LANES // (32 * WARPS)


@pytest.mark.parametrize("leave", [True, False])
def test_cross_entropy_reads_the_logits_past_what_is_in_the_caches_if_told(leave: bool) -> None:
    _, kinds, _ = ODD_ROWS["cross_entropy"]
    types = {arg: "*bf16" if kind == "*" else kind for arg, kind in kinds.items()}
    ptx = code("cross_entropy", "cross_entropy", types, {"LEAVE": leave, "LANES": LANES}, WARPS, 90)
    assert ("ld.global.L1::evict_first" in ptx) == leave


def test_cross_entropy_reads_the_target_when_the_row_is_read() -> None:
    """Loads are issued in order: behind a load that waits for another one all would wait."""
    _, kinds, _ = ODD_ROWS["cross_entropy"]
    types = {arg: "*bf16" if kind == "*" else kind for arg, kind in kinds.items()}
    ptx = code("cross_entropy", "cross_entropy", types, {"LEAVE": True, "LANES": LANES}, WARPS, 90)
    assert ptx.rindex("ld.global.L1::evict_first") < ptx.index("ld.global.b64")


def test_softmax_keeps_a_long_row_in_the_caches_until_it_is_read_again() -> None:
    constants = {"ALIKE": True, "LANES": LANES}
    ptx = code(
        "softmax", "softmax_long", {"x": "*bf16", "y": "*bf16", "cols": "i32"}, constants, WARPS, 90
    )
    first, second = ("ld.global.L1::evict_" + name for name in ("last", "first"))
    assert 0 < ptx.index(first) < ptx.index(second) < ptx.index("st.global.cs")


@pytest.mark.parametrize(
    ("name", "integers", "shape"),
    [
        ("sum_rows", ["rows", "cols"], {"ROWS": 4, "BLOCK": 1024}),
        ("sum_parts", ["cols", "part"], {"BLOCK": 8192}),
        ("sum_columns", ["n", "inner", "part"], {"STEP": 64, "BLOCK": 128}),
    ],
)
def test_sums_leave_the_caches_to_others(
    name: str, integers: list[str], shape: dict[str, Any]
) -> None:
    types = {"x": "*bf16", "y": "*bf16"} | dict.fromkeys(integers, "i32")
    ptx = code("reduce", name, types, shape, WARPS, 90)
    assert "ld.global.L1::evict_first" in ptx


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int]]]:
    """What a call launches of an op's kernels under some configuration: name and warps of each."""

    def launches_of(op: str, *inputs: Any, **config: int) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        function = candidate.load(KERNELS / f"{op}.py")
        assert config.keys() <= function.__globals__["CONFIG"].keys()
        function.__globals__["CONFIG"].update(config)
        for name, value in list(function.__globals__.items()):
            if isinstance(value, triton.runtime.JITFunction):
                monkeypatch.setitem(function.__globals__, name, Recorder(name, found))
        function(*inputs)
        return found

    return launches_of


class Recorder:
    """Stands for a kernel: notes that it was launched."""

    def __init__(self, name: str, found: list[tuple[str, int]]) -> None:
        self.name, self.found = name, found

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, num_warps: self.found.append((self.name, num_warps))


@pytest.mark.parametrize(
    ("cols", "shift", "kernel"),
    [
        (512, 0, "softmax_rows"),
        (512, 1, "softmax_long_odd"),
        (513, 0, "softmax_long_odd"),
        (129, 0, "softmax_rows"),
        (1025, 0, "softmax_long"),
        (1040, 1, "softmax_long"),
        (1040, 0, "softmax_staying"),
        (32768, 0, "softmax_staying"),
        (32784, 0, "softmax_long"),
    ],
)
def test_softmax_holds_a_row_whole_where_it_can_be_read_by_vectors(
    launches: Any, cols: int, shift: int, kernel: str
) -> None:
    config = {"resident": 1024, "resident_odd": 256, "tile": 1, "warps": 32, "warps_odd": 4}
    x = torch.empty(3 * cols + shift)[shift:].view(3, cols)
    ((name, warps),) = launches("softmax", x, **config)
    assert name + "_odd" * (warps == config["warps_odd"]) == kernel


@pytest.mark.parametrize(
    ("rows", "cols", "shift", "kernel"),
    [
        (8, 1024, 0, "sum_rows"),
        (8, 1024, 1, "sum_parts"),
        (8, 1023, 0, "sum_parts"),
        (7, 1024, 0, "sum_parts"),
        (7, 256, 0, "sum_rows"),
        (7, 128, 1, "sum_rows"),
        (8, 1040, 0, "sum_parts"),
    ],
)
def test_reduce_holds_a_row_whole_where_rows_are_many_and_read_by_vectors(
    launches: Any, rows: int, cols: int, shift: int, kernel: str
) -> None:
    config = {"resident": 1024, "resident_odd": 128, "resident_few": 256, "programs": 8}
    x = torch.empty(rows * cols + shift)[shift:].view(rows, cols)
    assert [name for name, _ in launches("reduce", x, **config)] == [kernel]


def test_cross_entropy_gives_few_rows_their_own_warps(launches: Any) -> None:
    for rows, warps in ((1, 32), (128, 32), (129, 8)):
        inputs = torch.empty(rows, 7), torch.empty(rows, dtype=torch.int64)
        found = launches("cross_entropy", *inputs, few=128, warps=8, warps_few=32)
        assert found == [("cross_entropy", warps)]


@pytest.mark.parametrize(
    ("shape", "dim", "kernel"),
    [((4, 8), -1, "sum_rows"), ((4, 8), 0, "sum_columns"), ((4, 8, 1), 1, "sum_rows")],
)
def test_reduce_sums_as_the_elements_lie(
    launches: Any, shape: tuple[int, ...], dim: int, kernel: str
) -> None:
    assert [name for name, _ in launches("reduce", torch.empty(shape), dim)] == [kernel]


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_reads_and_writes_16_bytes_at_a_time(interleaved: bool) -> None:
    types = dict.fromkeys(["x", "cos", "sin", "y"], "*bf16") | {"heads": "i32", "S": "i32"}
    shape = {"D": 128, "INTERLEAVED": interleaved, "HEADS": 4, "ROWS": 8, "BLOCK": 128}
    ptx = code("rotary_embedding", "rotate", types, shape, 4, 90)
    vectors = 4 * 8 * 128 * 2 // 16 // (32 * 4)
    assert ptx.count("ld.global.v4.b32") == ptx.count("st.global.v4.b32") == vectors


@pytest.mark.parametrize(
    ("name", "rows", "columns", "bucket"),
    [
        ("down", 4096, 4096, "down_large"),
        ("down", 2048, 2048, "down_medium"),
        ("down", 256, 512, "down_small"),
        ("down", 64, 4096, "down_few"),
        ("gated", 2048, 5504, "gated_large"),
        ("gated", 256, 1024, "gated_small"),
        ("gated", 1, 14336, "gated_few"),
    ],
)
def test_the_gated_mlp_takes_the_largest_tiles_that_fill_the_device(
    name: str, rows: int, columns: int, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    h200 = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h200)
    module = candidate.load(KERNELS / "fused_mlp.py").__globals__
    tiling, _ = module["chosen"](name, True, (rows, columns, 4096), torch.empty(0))
    assert tiling[1:] == module["CONFIG"][bucket][1:]  # rows are cut to those that there are
