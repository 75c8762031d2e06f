"""Compiling and launching a kernel file's CUDA C++: what can be known of it without a GPU.

The compiler (NVRTC) needs none. Where cuda-core or the toolkit's headers are missing these are
skipped with the reason.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from pytest_autokernel import candidate, cuda, cuda_driver, elf, witness
from pytest_autokernel.compile import CompileError
from tests.conftest import ROOT

SCALE = """
extern "C" __global__ void scale(const float* x, float* y, int n) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = FACTOR * x[i];
}
"""

BROKEN = """
#include <cuda_bf16.h>

extern "C" __global__ void f(float* y) {
    y[0] = missing;
}
"""

KERNELS = sorted((ROOT / "kernels" / "cuda").glob("*.py"))


def compiler() -> str | None:
    """Why CUDA C++ cannot be compiled here."""
    try:
        cuda.build("#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n", "sm_90a", {})
    except CompileError as error:
        return str(error)[:300]
    return None


REASON = compiler()
compiles = pytest.mark.skipif(REASON is not None, reason=f"no CUDA compiler: {REASON}")


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int, int], None]:
    """Has torch say that there is a GPU of some compute capability."""
    monkeypatch.setenv("AUTOKERNEL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def of(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, minor))
        properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=132)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)

    of(9, 0)
    return of


class Recorded:
    """Stands for a loaded library: its kernels' launches are kept instead of made."""

    launches: ClassVar[list[tuple[str, Any, Any]]] = []

    def __init__(self, code: bytes) -> None:
        self.code = code

    def __getattr__(self, name: str) -> SimpleNamespace:
        if name.encode() not in self.code:
            raise AttributeError(name)

        def prepared(grid: Any, block: Any, *last: Any, shared: int = 0) -> Callable[..., None]:
            return lambda *first: self.launches.append((name, grid, block))

        return SimpleNamespace(prepared=prepared)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setattr(cuda, "CudaLibrary", Recorded)
    Recorded.launches.clear()
    return Recorded


def line_of(text: str) -> int:
    """The line of this file that starts with `text`."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.startswith(text))


@compiles
def test_a_source_is_compiled_for_the_devices_own_architecture(
    chip: Callable[[int, int], None], recorded: type[Recorded], tmp_path: Path
) -> None:
    chip(8, 6)
    cuda.compile_cuda(SCALE, defines={"FACTOR": 3})
    chip(9, 0)
    assert cuda.own_architecture() == "sm_90a"
    cuda.compile_cuda(SCALE, defines={"FACTOR": 3})
    assert len(list((tmp_path / "cache").iterdir())) == 2


@compiles
def test_the_same_text_is_compiled_once(
    chip: object, recorded: type[Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.compile_cuda(SCALE, defines={"FACTOR": 3})
    monkeypatch.setattr(cuda, "build", None)
    cuda.compile_cuda(SCALE, defines={"FACTOR": 3})
    assert len(list((tmp_path / "cache").iterdir())) == 1


@compiles
@pytest.mark.parametrize(
    "change", [{"source": SCALE + "//"}, {"defines": {"FACTOR": 4}}, {"use_fast_math": True}]
)
def test_whatever_decides_the_code_decides_the_file(
    chip: object, recorded: type[Recorded], tmp_path: Path, change: dict[str, Any]
) -> None:
    first: dict[str, Any] = {"source": SCALE, "defines": {"FACTOR": 3}}
    cuda.compile_cuda(**first)
    cuda.compile_cuda(**{**first, **change})
    assert len(list((tmp_path / "cache").iterdir())) == 2


@compiles
def test_an_error_names_the_line_of_the_kernel_file(chip: object, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="missing") as caught:
        cuda.compile_cuda(BROKEN)
    expected = line_of("    y[0] = missing;")
    assert (caught.value.file, caught.value.line) == (__file__, expected)
    assert f"{__file__}({expected}): error" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


@compiles
def test_the_assembler_tells_registers_and_spills() -> None:
    _, said = cuda.build(SCALE, "sm_90a", {"FACTOR": "2"})
    assert re.search(r"Compiling entry function 'scale' for 'sm_90a'", said)
    assert re.search(r"0 bytes spill stores", said)
    assert re.search(r"Used \d+ registers", said)


@compiles
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_a_cubin_tells_what_the_assembler_does(capability: int) -> None:
    code, said = cuda.build(TWO, f"sm_{capability}", {})
    found = elf.resources(code, capability)
    assert found.keys() == {"held", "shared"}
    for name, own in found.items():
        words = said[said.index(f"function '{name}'") :]
        assert re.search(r"Used (\d+) registers", words)[1] == str(own["registers"])  # type: ignore[index]
        assert re.search(r"(\d+) bytes stack frame", words)[1] == str(own["local_bytes"])  # type: ignore[index]
    assert found["held"]["local_bytes"] >= 1200
    assert (found["held"]["shared_bytes"], found["shared"]["shared_bytes"]) == (0, 256)


TWO = """
extern "C" __global__ void held(float* x, int n) {
    float row[300], sum = 0;
    for (int i = 0; i < 300; i++) row[i] = x[i * n];
    for (int i = 0; i < n; i++) sum += row[i * 7 % 300];
    x[0] = sum;
}
extern "C" __global__ void shared(float* x) {
    __shared__ float row[64];
    row[threadIdx.x] = x[0];
    __syncthreads();
    x[threadIdx.x] = row[63 - threadIdx.x];
}
"""


def test_no_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CompileError, match="expected a CUDA device"):
        cuda.compile_cuda(SCALE)


def test_a_missing_cuda_core_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(CompileError, match=r"cuda-core.*pip install 'pytest-autokernel\[cuda\]'"):
        cuda.build(SCALE, "sm_90a", {})


def test_importing_it_imports_neither_torch_nor_the_compiler() -> None:
    program = (
        "import sys, pytest_autokernel.cuda; print({'torch', 'cuda.core'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


class Driver:
    """Stands for libcuda: keeps what it is called with, and answers with `result`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.result = self.attribute = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == "cuLaunchKernelEx":  # as things are now
                config = cuda_driver.LaunchConfig.from_address(arguments[0])
                pointers = (ctypes.c_void_p * Loaded.num_arguments).from_address(arguments[2])
                values = [ctypes.c_int64.from_address(p).value for p in pointers]
                arguments = ([getattr(config, field) for field, _ in config._fields_], values)
            if name == "cuKernelGetAttribute":
                arguments[0]._obj.value = self.attribute
            self.calls.append((name, *arguments))
            return self.result if name != "cuGetErrorName" else 0

        return call


class Loaded:
    handle, num_arguments = 77, 4


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A driver, and torch on its device 0, on stream 5."""
    found = Driver()
    monkeypatch.setattr(cuda_driver, "_driver", lambda: found)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 5, raising=False)
    return found


def test_a_launch_hands_over_addresses_integers_and_floats_on_torchs_stream(
    driver: Driver,
) -> None:
    x = torch.zeros(3)
    cuda.CudaKernel("scale", Loaded())((7, 2), 256, x, -1, 2**40, 1.5)
    ((name, config, values),) = driver.calls
    assert (name, config) == ("cuLaunchKernelEx", [7, 2, 1, 256, 1, 1, 0, 5, None, 0])
    assert values[:3] == [x.data_ptr(), -1, 2**40]
    assert ctypes.c_float.from_buffer(ctypes.c_int64(values[3])).value == 1.5


def test_each_launch_has_its_own_size_and_arguments(driver: Driver) -> None:
    kernel = cuda.CudaKernel("scale", Loaded())
    for grid in (3, (3, 2, 4), 3):
        kernel(grid, (8, 4), grid if isinstance(grid, int) else 9, 0, 0, 0)
    sizes = [(config[:6], values[0]) for _, config, values in driver.calls]
    assert sizes == [([3, 1, 1, 8, 4, 1], 3), ([3, 2, 4, 8, 4, 1], 9), ([3, 1, 1, 8, 4, 1], 3)]


@pytest.mark.parametrize(("own", "unasked"), [(0, 48 * 1024), (1024, 47 * 1024)])
def test_more_than_48_kb_of_shared_memory_are_asked_for_once(
    driver: Driver, own: int, unasked: int
) -> None:
    driver.attribute = own
    kernel = cuda.CudaKernel("scale", Loaded())
    for shared in (unasked, unasked + 16, 40_000):
        kernel(1, 32, 0, 0, 0, 0, shared=shared)
    names = [name for name, *_ in driver.calls if name != "cuKernelGetAttribute"]
    assert names == ["cuLaunchKernelEx", "cuKernelSetAttribute", *["cuLaunchKernelEx"] * 2]
    (asked,) = (call for call in driver.calls if call[0] == "cuKernelSetAttribute")
    assert asked[1:] == (cuda_driver.MAX_DYNAMIC_SHARED, unasked + 16, 77, 0)


def test_a_prepared_launch_is_called_with_the_arguments_that_are_not_set(driver: Driver) -> None:
    launch = cuda.CudaKernel("scale", Loaded()).prepared(3, 32, 8, 2.5, shared=16)
    for x in (torch.zeros(3), torch.zeros(5)):
        launch(x, -1)
        _, config, values = driver.calls[-1]
        assert (config, values[:3]) == ([3, 1, 1, 32, 1, 1, 16, 5, None, 0], [x.data_ptr(), -1, 8])
        assert ctypes.c_float.from_buffer(ctypes.c_int64(values[3])).value == 2.5


def test_a_launch_is_on_the_stream_that_is_torchs_at_its_time(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = iter([5, 6, 7])
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: next(streams))
    kernel = cuda.CudaKernel("scale", Loaded())
    launch = kernel.prepared(1, 32, 0, 0)
    launch(0, 0)
    launch(0, 0)
    kernel(1, 32, 0, 0, 0, 0)
    assert [config[7] for _, config, _ in driver.calls] == [5, 6, 7]


def test_a_prepared_launch_keeps_the_tensor_map_that_it_was_given(driver: Driver) -> None:
    kernel = cuda.CudaKernel("scale", Loaded())
    alive = weakref.ref(made := cuda.TensorMap())
    launch = kernel.prepared(1, 32, 0, 0, made)
    del made
    assert alive() is not None
    launch(0)
    del launch
    driver.calls.clear()
    assert alive() is None


@pytest.mark.parametrize(("last", "given"), [((), (0,)), ((0,) * 3, (0, 0)), ((0,) * 5, ())])
def test_a_wrong_number_of_arguments_is_no_launch(
    driver: Driver, last: tuple[int, ...], given: tuple[int, ...]
) -> None:
    kernel, count = cuda.CudaKernel("scale", Loaded()), len(last) + len(given)
    with pytest.raises(TypeError, match=f"scale takes 4 arguments, got {count}"):
        kernel.prepared(1, 32, *last)(*given)
    with pytest.raises(TypeError, match=f"scale takes 4 arguments, got {count}"):
        kernel(1, 32, *given, *last)
    assert driver.calls == []


def test_launches_from_several_threads_have_each_their_own_arguments(driver: Driver) -> None:
    launch = cuda.CudaKernel("scale", Loaded()).prepared(1, 32, 0, 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: launch(i, i), range(2000)))
    values = [found[:2] for _, _, found in driver.calls]
    assert sorted(values) == [[i, i] for i in range(2000)]


def test_what_the_driver_refuses_is_raised(driver: Driver) -> None:
    driver.result = 1
    with pytest.raises(RuntimeError, match=r"launching scale failed.*block=2048"):
        cuda.CudaKernel("scale", Loaded())(1, 2048, 0, 0, 0, 0)


def test_a_tensor_map_has_the_innermost_dim_first_and_strides_in_bytes(driver: Driver) -> None:
    x = torch.zeros(6, 64, dtype=torch.bfloat16)[:, :32]
    made = cuda.tensor_map(x, (2, 16), swizzle=32)
    ((name, address, dtype, rank, data, dims, strides, box, every, *how),) = driver.calls
    assert (name, address, dtype, rank, data) == (
        *("cuTensorMapEncodeTiled", made.address, cuda_driver.MAP_TYPES["torch.bfloat16"], 2),
        x.data_ptr(),
    )
    assert (list(dims), list(strides), list(box), list(every)) == ([32, 6], [128], [16, 2], [1, 1])
    assert (made.address % cuda_driver.MAP_ALIGNMENT, how) == (0, [0, 1, cuda_driver.L2_256B, 0])
    assert cuda.tensor_map(x, (2, 16), swizzle=32) is made


def test_tensor_maps_differ_where_the_tensor_lies_elsewhere_or_otherwise(driver: Driver) -> None:
    x = torch.zeros(8, 64, dtype=torch.bfloat16)
    lying = [x, x[1:], x[:, :32], x[::2], x.half()]
    maps = [cuda.tensor_map(t, (2, 16)) for t in lying]
    assert len({m.address for m in maps}) == len(driver.calls) == len(lying)
    alike = cuda.tensor_maps((8, 64), (64, 1), torch.bfloat16, (2, 16), 128)
    assert alike(x.data_ptr()) is maps[0]
    assert alike(x.data_ptr() + 16) is not maps[0]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the assembler says of what is compiled."""
    found: list[str] = []
    built = cuda.build

    def build(*arguments: Any, **options: Any) -> tuple[bytes, str]:
        code, words = built(*arguments, **options)
        found.append(words)
        return code, words

    monkeypatch.setattr(cuda, "build", build)
    return found


def spills(said: list[str]) -> set[str]:
    return {n for words in said for n in re.findall(r"(\d+) bytes spill stores", words)}


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("path", KERNELS, ids=[path.stem for path in KERNELS])
@compiles
def test_a_shipped_kernel_compiles_without_spills(
    path: Path,
    capability: tuple[int, int],
    chip: Callable[[int, int], None],
    recorded: type[Recorded],
    driver: Driver,
    said: list[str],
) -> None:
    """As `kernel_fn` has it compiled for its op's smallest size."""
    from pytest_autokernel import operands
    from tests.test_ops import OPS, small

    chip(*capability)
    kernel = candidate.read(path)
    kernel_fn, op = candidate.load(path), OPS[kernel.op]
    for variant, dtype in zip(("core", *op.extensions), op.dtypes, strict=False):
        name = next((n for n, v in op.variants.items() if v.extension == variant), "core")
        inputs, _ = operands.make_inputs(op, small(op, dtype, name), "cpu")
        kernel_fn(*inputs, **op.variants[name].options)
    assert recorded.launches
    assert spills(said) == {"0"}


def test_of_what_a_worker_says_of_its_kernels_the_well_formed_is_reported() -> None:
    right = {"kernel": "scale", "registers": 16, "local_bytes": 0, "shared_bytes": 1024}
    wrong = [{**right, "registers": "few"}, {"kernel": "scale"}, 5]
    assert witness.resources_of([right, *wrong, {**right, "more": 1}]) == [right, right]
    assert witness.resources_of(None) == []


def launched_by(
    op: str, recorded: type[Recorded], *inputs: torch.Tensor
) -> list[tuple[str, Any, Any]]:
    """What a shipped kernel launches for these."""
    recorded.launches.clear()
    candidate.load(ROOT / "kernels" / "cuda" / f"{op}.py")(*inputs)
    return list(recorded.launches)


@compiles
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("linear", [False, True])
def test_a_product_of_few_rows_is_made_by_most_multiprocessors(
    rows: int,
    linear: bool,
    chip: object,
    recorded: type[Recorded],
    driver: Driver,
    said: list[str],
) -> None:
    x = torch.empty(rows, 4096, dtype=torch.bfloat16)
    weight = torch.empty(4096, 4096, dtype=torch.bfloat16)
    ((name, grid, _),) = launched_by("matmul", recorded, x, weight.T if linear else weight)
    assert (name, grid) == ("product_tma", 128)
    assert spills(said) == {"0"}


@compiles
@pytest.mark.parametrize("rows", [1, 64])
def test_an_mlp_of_few_rows_is_made_by_most_multiprocessors(
    rows: int, chip: object, recorded: type[Recorded], driver: Driver, said: list[str]
) -> None:
    x = torch.empty(rows, 4096, dtype=torch.bfloat16)
    up, down = (torch.empty(s, dtype=torch.bfloat16) for s in ((14336, 4096), (4096, 14336)))
    first, second = launched_by("fused_mlp", recorded, x, up, up, down)
    assert [first[:2], second[:2]] == [("project_tma", 224), ("project_tma", 128)]
    assert spills(said) == {"0"}


@compiles
@pytest.mark.parametrize(
    ("rows", "cols", "names"),
    [
        (1, 4096, ["loss_of_few"]),
        (64, 8192, ["loss_of_few"]),
        (64, 32000, ["row_losses", "mean_loss"]),
        (512, 64, ["row_losses", "mean_loss"]),
    ],
)
def test_a_small_cross_entropy_is_one_launch(
    rows: int, cols: int, names: list[str], chip: object, recorded: type[Recorded]
) -> None:
    logits = torch.zeros(rows, cols, dtype=torch.bfloat16)
    targets = torch.zeros(rows, dtype=torch.int64)
    launches = launched_by("cross_entropy", recorded, logits, targets)
    assert [name for name, *_ in launches] == names


@compiles
@pytest.mark.parametrize(
    ("op", "rows", "cols", "launch"),
    [
        ("softmax", 4096, 8192, ("softmax_held", 4096, 256)),
        ("softmax", 4096, 16384, ("softmax_staying", 264, 256)),
        ("softmax", 4096, 32000, ("softmax_staying", 132, 512)),
        ("softmax", 140, 32767, ("softmax_staying", 132, 544)),
        ("softmax", 100, 32000, ("softmax_held", 400, 256)),
        ("softmax", 4096, 50257, ("softmax_held", 32768, 256)),
        ("layernorm", 4096, 1024, ("layernorm_held", 1024, 128)),
        ("layernorm", 4096, 2048, ("layernorm_staying", 1056, 64)),
        ("layernorm", 4096, 8192, ("layernorm_staying", 264, 256)),
        ("layernorm", 140, 4096, ("layernorm_staying", 140, 128)),
        ("layernorm", 4096, 8193, ("layernorm_held", 8192, 256)),
    ],
)
def test_blocks_stay_for_many_long_rows(
    op: str,
    rows: int,
    cols: int,
    launch: tuple[str, int, int],
    chip: Callable[[int, int], None],
    recorded: type[Recorded],
) -> None:
    x = torch.empty(rows, cols, dtype=torch.bfloat16)
    weights = [torch.empty(cols, dtype=torch.bfloat16)] * 2 * (op == "layernorm")
    assert launched_by(op, recorded, x, *weights) == [launch]
    chip(8, 0)
    ((name, *_),) = launched_by(op, recorded, x, *weights)
    assert not name.endswith("staying")
