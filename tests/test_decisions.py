"""The decision procedure's error rates, as benchmarks/decisions.py plays them."""

from __future__ import annotations

import importlib.util
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "decisions.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_decisions", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class TestTheErrorRates:
    @pytest.mark.parametrize("noise", range(5))
    def test_of_equal_kernels_are_tiny(self, bench: ModuleType, noise: int) -> None:
        for procedure in (bench.AGENT_PLAYED, bench.GATE_PLAYED):
            played = bench.play(procedure, bench.SIMULATED[noise], 1.0, 60, seed=1)
            assert not {"KEEP", "FASTER", "SLOWER"} & set(played)

    @pytest.mark.parametrize("noise", range(4))
    def test_of_a_slowdown_of_2_percent_are_tiny(self, bench: ModuleType, noise: int) -> None:
        played = bench.play(bench.GATE_PLAYED, bench.SIMULATED[noise], 1 / 1.02, 40, seed=2)
        assert played["SLOWER"] >= 39

    @pytest.mark.parametrize("noise", range(5))
    def test_of_a_gain_of_5_percent_are_tiny(self, bench: ModuleType, noise: int) -> None:
        played = bench.play(bench.AGENT_PLAYED, bench.SIMULATED[noise], 1.05, 40, seed=3)
        assert played["KEEP"] >= 39

    def test_on_recorded_samples_are_tiny_too(self, bench: ModuleType) -> None:
        for noise in bench.RECORDED:
            equal = bench.play(bench.GATE_PLAYED, noise, 1.0, 20, seed=5)
            slower = bench.play(bench.GATE_PLAYED, noise, 1 / 1.02, 20, seed=5)
            assert not {"FASTER", "SLOWER"} & set(equal)
            assert slower["SLOWER"] == 20

    def test_reverts_what_is_slower(self, bench: ModuleType) -> None:
        played = bench.play(bench.AGENT_PLAYED, bench.SIMULATED[2], 0.98, 40, seed=4)
        assert played["REVERT"] == 40
        assert played["blocks"] < 40 * 12

    @pytest.mark.parametrize("noise", range(5))
    def test_of_a_screen_that_ends_a_gain_of_5_percent_are_tiny(
        self, bench: ModuleType, noise: int
    ) -> None:
        played = bench.play(bench.SCREEN_PLAYED, bench.NOISES[noise], 1.05, 40, seed=5)
        assert played["PROMISING"] >= 39


def test_the_benchmark_prints_its_tables(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "NOISES", (bench.RECORDED[0], bench.SIMULATED[0]))
    monkeypatch.setattr(bench, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(sys, "argv", ["decisions.py", "--trials", "2"])
    bench.main()
    table = capsys.readouterr().out
    for name in ("matmul 8192, 1.6 ms", "rmsnorm, 19 us, h200"):
        assert re.search(rf"\| {name} *\| 1.050", table)
    assert "FASTER %" in table
