"""What is seen of a call while it runs, and what the judge makes of it."""

from __future__ import annotations

import _thread
import ctypes
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from pytest_autokernel import audit, policy
from pytest_autokernel.audit import State, Watch


def seen(call: Callable[[], object]) -> list[str]:
    with Watch(__file__) as watch:
        call()
    return list(watch.operators)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: torch.ones(2, 3) @ torch.ones(3, 2), ["aten.ones", "aten.mm"]),
        (lambda: torch.ones(4).softmax(0), ["aten.ones", "aten._softmax"]),
        (lambda: torch.ops.aten.mul(torch.ones(2), 2), ["aten.ones", "aten.mul"]),
        (lambda: torch.ones(2, 3).t().view(-1, 2)[1:].unsqueeze(0), ["aten.ones"]),
        (lambda: torch.zeros(2, 3).half().contiguous(), ["aten.zeros", "aten._to_copy"]),
        (lambda: torch.empty(2, 3), []),
    ],
)
def test_operators_are_seen_and_views_are_not_told(
    call: Callable[[], object], names: list[str]
) -> None:
    assert seen(call) == names


def test_a_profiler_sees_what_a_kernel_hides_from_the_watch() -> None:
    def hidden() -> torch.Tensor:
        with _disable_current_modes():
            return torch.ones(4).softmax(0)[1:].contiguous().to(torch.half)

    with Watch(__file__) as watch:
        _, names = audit.dispatched(hidden)
    assert not watch.operators
    assert "aten._softmax" in names
    assert not policy.refusal([(n, None) for n in names if n != "aten._softmax"], (), (), "k.py")


def test_an_operator_comes_with_its_line() -> None:
    with Watch(__file__) as watch:
        torch.ones(1).exp()
    line = test_an_operator_comes_with_its_line.__code__.co_firstlineno + 2
    assert list(watch.operators.items()) == [("aten.ones", line), ("aten.exp", line)]


def test_what_a_kernel_allocates_is_poisoned() -> None:
    with Watch(__file__):
        made = [
            torch.empty(3, 5),
            torch.empty_like(torch.ones(4, 4).t()),
            torch.ones(2).new_empty(7, dtype=torch.bfloat16),
            torch.empty_strided((2, 2), (5, 1), dtype=torch.float16),
        ]
    assert all(bool(tensor.isnan().all()) for tensor in made)
    assert [tensor.stride() for tensor in made] == [(5, 1), (1, 4), (1,), (5, 1)]
    assert int(torch.empty(0).numel()) == 0


@pytest.mark.parametrize("byte", [-1, -audit.GUARD, 12, 12 + audit.GUARD - 1])
def test_a_write_beside_what_was_allocated_is_found(byte: int) -> None:
    with Watch(__file__) as watch:
        made = torch.empty(3)
        ctypes.memset(made.data_ptr() + byte, 0, 1)
    assert watch.outside() == f"1 bytes {'before' if byte < 0 else 'after'} a tensor that the " + (
        "kernel allocated"
    )


@pytest.mark.parametrize("byte", [0, 11])
def test_a_write_into_what_was_allocated_is_none_of_that(byte: int) -> None:
    with Watch(__file__) as watch:
        made = torch.empty(3)
        ctypes.memset(made.data_ptr() + byte, 0, 1)
    assert watch.outside() is None


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker installs, for one test."""
    monkeypatch.setattr(torch.Tensor, "numpy", torch.Tensor.numpy)
    monkeypatch.setattr(threading.Thread, "run", threading.Thread.run)
    monkeypatch.setattr(_thread, "start_new_thread", _thread.start_new_thread)
    audit.install()


@pytest.mark.usefixtures("installed")
def test_what_is_computed_in_another_thread_is_seen_too() -> None:
    def by_threading() -> None:
        thread = threading.Thread(target=lambda: torch.ones(3).exp())
        thread.start()
        thread.join()

    def by_thread() -> None:
        done = []
        _thread.start_new_thread(lambda: done.append(torch.ones(3).exp()), ())
        while not done:
            time.sleep(0.001)

    assert seen(by_threading) == ["aten.ones", "aten.exp"]
    assert seen(by_thread) == ["aten.ones", "aten.exp"]


@pytest.mark.usefixtures("installed")
def test_a_way_out_to_numpy_is_seen() -> None:
    assert seen(lambda: torch.ones(3).numpy().sum()) == ["aten.ones", "numpy"]


def changes_made_by(change: Callable[[], object]) -> list[str]:
    before = State("cpu")
    change()
    return before.changes(State("cpu"))


def test_nothing_changes_by_itself() -> None:
    assert changes_made_by(lambda: torch.ones(3).sum()) == []


def test_changes_of_the_global_state_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    generator = torch.get_rng_state()
    assert changes_made_by(lambda: torch.set_num_threads(threads + 1)) == [
        f"torch's threads: {threads} -> {threads + 1}"
    ]
    torch.set_num_threads(threads)
    assert changes_made_by(lambda: torch.rand(1)) == ["torch's random generator"]
    torch.set_rng_state(generator)
    assert changes_made_by(lambda: monkeypatch.setattr(torch, "allclose", lambda *_: True)) == [
        "torch.allclose was replaced"
    ]
    assert changes_made_by(lambda: monkeypatch.setattr(time, "perf_counter", lambda: 0.0)) == [
        "time.perf_counter was replaced"
    ]


def test_a_refusal_names_the_operator_its_line_and_the_way_to_allow_it() -> None:
    called = [("aten.empty", 3), ("aten.clone", 4), ("aten.mm", 7)]
    assert policy.refusal(called[:2], (), (), "k.py") is None
    words = policy.refusal(called, (), (), "k.py") or ""
    assert words.startswith("calls aten.mm at k.py:7: ")
    assert "--autokernel-allow aten.mm" in words
    assert policy.refusal(called, ("aten.mm",), (), "k.py") is None
    assert policy.refusal(called, (), ("aten.m*",), "k.py") is None
    assert policy.hybrid(["aten.mm", "aten.clone", "aten.mean"], ("aten.mean",)) == ["aten.mm"]
    own = policy.refusal([("mine.softmax", 9)], (), (), "k.py") or ""
    assert "call its function itself" in own
    assert "--autokernel-allow mine.softmax" in own


def test_a_kernel_imports_the_standard_library_torch_and_triton_alone() -> None:
    imports = {"math", "ctypes", "torch", "triton", "pytest_autokernel", "numpy", "flash_attn"}
    assert policy.foreign_imports(imports, ()) == ["flash_attn", "numpy"]
    assert policy.foreign_imports(imports, ("numpy", "flash_*")) == []


TEXT = """
@triton.jit
def rows(x, y): ...

SOURCE = '''
template <class T> __global__ void __launch_bounds__(256) columns(const T* x) {}
extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(128)
parts(const float* x) {}
'''
"""


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("rows", False),
        ("void columns<float>(float const*)", False),
        ("parts", False),
        ("__cluster_dims__", True),
        ("Memcpy DtoD (Device -> Device)", False),
        ("Memset (Device)", False),
        (
            "void at::native::vectorized_kernel<4, at::native::FillFunctor<float>>",
            False,
        ),
        (
            "void at::native::unrolled_kernel<at::native::direct_copy_kernel_cuda>",
            False,
        ),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", True),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>(Params)", True),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>", True),
        ("triton_red_fused__softmax_0", True),
    ],
)
def test_a_launched_kernel_is_the_files_own_or_moves_data(name: str, foreign: bool) -> None:
    found = policy.foreign_launches([name], TEXT, library=(), allowed=())
    assert found == ([name] if foreign else [])
    assert policy.foreign_launches([name], TEXT, library=(), allowed=("*",)) == []


def test_an_op_that_may_call_torch_may_launch_what_torch_does() -> None:
    mean, product = "void at::native::reduce_kernel<512, 1, at::native::MeanOps>", "nvjet_sm90_tst"
    both = [mean, product]
    assert policy.foreign_launches(both, TEXT, ("aten.mean",), ()) == [product]
    assert policy.foreign_launches(both, TEXT, ("aten.mm", "nvjet*"), ()) == []
