"""Which workers a run has on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from autokernel_agent import worker as workers
from autokernel_agent.errors import Refused
from autokernel_agent.process import Processes, run
from autokernel_agent.staff import hired

from .agent_repository import BARE, opened, user_repository


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in BARE.items():
        monkeypatch.setenv(name, value)
    return user_repository(tmp_path / "repo")


class TestGpus:
    def test_are_those_that_are_visible(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine(monkeypatch, ["H200", "H200"])
        assert workers.gpus() == {"GPU-0": "H200", "GPU-1": "H200"}
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 0")
        assert [*workers.gpus()] == ["1", "0"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert workers.gpus() == {}

    def test_have_a_worker_each_and_the_cpu_has_one(
        self, repo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine(monkeypatch, ["H200", "H200"])
        assert staffed(repo, None) == (2, 1)
        assert staffed(repo, "1") == (1, 1)
        machine(monkeypatch, [])
        assert staffed(repo, None) == (1, 1)
        assert staffed(repo, "4") == (4, 4)  # if somebody insists

    def test_are_not_shared(self, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine(monkeypatch, ["H200", "H200"])
        with pytest.raises(Refused, match="expected one for each of the 2 GPUs here at most"):
            staffed(repo, "3")

    def test_are_named_to_all_that_a_worker_starts(self, tmp_path: Path) -> None:
        processes, output = Processes({workers.VISIBLE: "GPU-1"}), tmp_path / "output"
        run([sys.executable, "-c", PRINT], tmp_path, output, 30, processes)
        assert output.read_text() == "GPU-1\n"

    def test_of_different_kinds_are_not_mixed(
        self, repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        machine(monkeypatch, ["H200", "A100"])
        assert staffed(repo, None) == (1, 1)
        words = "these GPUs differ: H200, A100: name some of one kind by CUDA_VISIBLE_DEVICES"
        assert capsys.readouterr().out == f"{words}; one is used\n"
        assert staffed(repo, "1") == (1, 1)
        with pytest.raises(Refused, match=words):
            staffed(repo, "2")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0")
        assert staffed(repo, None) == (1, 1)
        assert capsys.readouterr().out == ""


PRINT = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"


def staffed(folder: Path, wanted: str | None) -> tuple[int, int]:
    """How many may judge kernels of a GPU, and of the CPU."""
    with opened(folder) as ledger:
        repository, commit = ledger.repository, ledger.repository.head()
        with hired(wanted, repository, commit, ledger.folder, (), print) as found:
            return found.on("cuda"), found.on("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """Have NVML find GPUs of these names."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, found in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(names),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda index: f"GPU-{index}",
        "nvmlDeviceGetName": lambda index: names[index],
    }.items():
        monkeypatch.setattr(f"autokernel_agent.worker.pynvml.{name}", found)
