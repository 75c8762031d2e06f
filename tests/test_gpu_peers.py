"""Our kernels beside PyTorch by either clock, on a CUDA GPU: skipped where there is none."""

from __future__ import annotations

import importlib
from contextlib import closing
from dataclasses import replace

import pytest

from pytest_autokernel.judge import Judge
from pytest_autokernel.settings import Settings

from .conftest import ROOT

pytestmark = pytest.mark.gpu


def test_a_small_shape_takes_longer_by_the_hosts_clock_which_sees_its_launches(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    peers = importlib.import_module("peers")
    on_gpu = replace(settings, device="cuda", effort="quick", allow=())
    with closing(Judge(on_gpu)) as judge:
        gpu, host = peers.measured(judge, peers.Work("softmax", (64, 1024), "small"), {})
    assert (gpu.clock, host.clock) == ("gpu", "host")
    assert set(gpu.times_us) == set(host.times_us) == {"triton", "cuda", "eager"}
    assert 0 < gpu.pct("triton") < 100
    assert host.roof is None
    for name, us in gpu.times_us.items():
        assert us < host.times_us[name] < 1000
