"""The tests that every kernel file gets. pytest collects this module once per kernel file;
the kernel file itself is never imported here (collection.py says how)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pytest_autokernel import examination
from pytest_autokernel.collection import KernelModule
from pytest_autokernel.op import Case
from pytest_autokernel.plan import Check, Tool
from pytest_autokernel.replay import REPLAY, feed

__all__ = [
    "binary",
    "determinism",
    "edge_cases",
    "numerical_stability",
    "roofline",
    "sanitizer",
    "shape_sweep",
    "smoke",
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.definition.getparent(KernelModule)
    assert module is not None
    if "check" in metafunc.fixturenames:
        checks = [c for c in module.checks if c.stage == metafunc.definition.originalname]
        metafunc.parametrize("check", checks, ids=[c.id for c in checks])
    if "tool" in metafunc.fixturenames:
        metafunc.parametrize("tool", module.tools)
    if "case" in metafunc.fixturenames:
        cases = module.timed
        metafunc.parametrize("case", cases, ids=[c.id for c in cases])


@pytest.fixture(scope="module")
def kernel(request: pytest.FixtureRequest) -> Iterator[examination.Examination]:
    """The kernel file in its worker, for all of its items."""
    module = request.node
    assert isinstance(module, KernelModule)
    with examination.of_file(module) as under_examination:
        yield under_examination


def binary(kernel: examination.Examination, request: pytest.FixtureRequest) -> None:
    kernel.compile(request.node)


def smoke(kernel: examination.Examination, check: Check, request: pytest.FixtureRequest) -> None:
    kernel.judge(check, request.node)


shape_sweep = numerical_stability = determinism = edge_cases = smoke


def sanitizer(kernel: examination.Examination, tool: Tool, request: pytest.FixtureRequest) -> None:
    kernel.sanitize(tool, request.node)


@pytest.mark.benchmark(timer=REPLAY, group="roofline")
@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # nor is it, on a failure
def roofline(
    kernel: examination.Examination,
    case: Case,
    request: pytest.FixtureRequest,
    benchmark: BenchmarkFixture,
) -> None:
    timing = kernel.time(case, request.node)
    if timing.samples_us:
        feed(benchmark, timing, request.node.nodeid)
    kernel.accept(timing)
