"""The pytest that stays, for real: what its sessions share, and what they do not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from autokernel_agent.process import Standing

from tests.conftest import ROOT

RIGHT = """
import torch

KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return torch.softmax(x.float(), dim).to(x.dtype)
"""
SLOW = RIGHT.replace("x.float()", "x.double().float()")
# Looks for what an earlier candidate may have left, and leaves some itself.
NOSY = f"""
import os, sys, torch
from pathlib import Path
kept = [os.environ[n] for n in ("HOME", "TMPDIR", "AUTOKERNEL_CACHE_DIR", "TRITON_CACHE_DIR")]
traces = [file for name in kept for file in Path(name).rglob("trace*")]
if traces or "TRACE" in os.environ or "trace" in sys.modules or hasattr(torch, "trace_"):
    raise RuntimeError(f"found {{traces}}")
os.environ["TRACE"] = torch.trace_ = "1"
sys.modules["trace"] = os
for name in kept:
    Path(name).mkdir(parents=True, exist_ok=True)
    Path(name, "trace").touch()
{RIGHT}
"""


CPP = (ROOT / "kernels/cpp/softmax.py").read_text()
SCHEMA = json.loads((ROOT / "pytest_autokernel/report.schema.json").read_text())


STRICT = """
[tool.pytest.ini_options]
testpaths = ["nowhere"]
filterwarnings = ["error"]
"""


class Asked:
    """Sessions on one kernel file."""

    def __init__(self, folder: Path, standing: Standing) -> None:
        self.folder, self.standing = folder, standing

    def __call__(self, text: str, *words: str, baseline: str | None = None) -> dict[str, Any]:
        (self.folder / "kernels/k.py").write_text(text)
        (self.folder / "out.json").unlink(missing_ok=True)
        if baseline is not None:
            (self.folder / "baseline.py").write_text(baseline)
            words = (*words, "--autokernel-baseline", "baseline.py")
        code = self.standing.ask(
            [
                *("--autokernel", "kernels/k.py", f"--rootdir={self.folder}", "-q"),
                *("--autokernel-json", "out.json", "--autokernel-effort", "quick"),
                *("--autokernel-allow=*", "--autokernel-device", "cpu", "--autokernel-cache=none"),
                *("-p", "no:randomly", "-p", "no:cacheprovider", *words),
            ],
            limit_s=120,
        )
        found: dict[str, Any] = json.loads((self.folder / "out.json").read_text())
        assert (found["kernels"][0]["verdict"] == "PASS") == (code == 0)
        return found

    @property
    def children(self) -> list[str]:
        """The processes that the one that stays has started, and not ended."""
        process = self.standing._process
        assert process is not None
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def repository(folder: Path) -> Path:
    (folder / "kernels").mkdir()
    (folder / "pyproject.toml").write_text(STRICT)
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = repository(tmp_path_factory.mktemp("repository"))
    with closing(Standing(folder, folder / "output.txt")) as standing:
        yield Asked(folder, standing)


def test_sessions_share_the_judges_processes_and_nothing_of_a_candidate(asked: Asked) -> None:
    first = asked(NOSY, "-k", "smoke", "--autokernel-seed", "1")
    assert first["kernels"][0]["verdict"] == "PASS", first["kernels"][0]["reason"]
    before = asked.children
    assert len(before) == 2  # the comparison and the nursery, and no worker
    again = asked(f"{NOSY}# another", "-k", "smoke", "--autokernel-seed", "2")
    assert again["kernels"][0]["verdict"] == "PASS", again["kernels"][0]["reason"]
    wrong = asked(RIGHT.replace("torch.softmax", "1.001 * torch.softmax"), "-k", "smoke")
    assert wrong["kernels"][0]["verdict"] == "FAIL"
    assert (first["seed"], again["seed"]) == (1, 2)
    assert asked.children == before


def test_a_screen_judges_the_smoke_stage_and_the_speed_and_keeps_nothing(asked: Asked) -> None:
    found = {
        name: asked(text, "--autokernel-ask", "screen", baseline=baseline)["kernels"][0]
        for name, text, baseline in (("slower", SLOW, RIGHT), ("faster", RIGHT, SLOW))
    }
    for kernel in found.values():
        assert {item["stage"] for item in kernel["items"]} == {"smoke", "roofline"}
        (timing,) = kernel["timings"]
        assert set(timing["comparisons"]) == {"baseline"}
        assert not timing["comparisons"]["baseline"]["confirmed"]
    assert found["slower"]["overall"]["decision"] == "REVERT"
    assert len(found["slower"]["timings"][0]["comparisons"]["baseline"]["blocks"]) == 6
    assert found["faster"]["overall"]["decision"] == "PROMISING"


def test_a_binary_is_all_that_is_found_out_where_it_is_asked_for(asked: Asked) -> None:
    found = asked(RIGHT, "--autokernel-ask", "binary")
    (kernel,) = found["kernels"]
    assert [item["stage"] for item in kernel["items"]] == ["binary"]
    assert kernel["binary"] is None  # it compiles nothing
    jsonschema.validate(found, SCHEMA)
    (cpp,) = asked(CPP, "--autokernel-ask", "binary")["kernels"]
    assert len(cpp["binary"]) == 64


def test_other_settings_get_another_judge(asked: Asked) -> None:
    asked(RIGHT, "-k", "smoke")
    before = asked.children
    asked(RIGHT, "-k", "smoke", "--autokernel-timeout", "50")
    assert set(before).isdisjoint(asked.children)


def test_a_session_that_breaks_down_takes_its_judge_with_it(asked: Asked) -> None:
    asked(RIGHT, "-k", "smoke")
    assert asked.standing.ask(["--no-such-option"], limit_s=60) == pytest.ExitCode.USAGE_ERROR
    assert asked.children == []


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_nothing_is_left_of_one_that_is(how: str, asked: Asked) -> None:
    asked(RIGHT, "-k", "smoke")
    process, children = asked.standing._process, asked.children
    assert process is not None
    if how == "closed":
        asked.standing.close()
    else:
        process.kill()
        process.wait()
    assert all(_gone(int(pid)) for pid in children)
    assert asked(RIGHT, "-k", "smoke")["kernels"][0]["verdict"] == "PASS"


def _gone(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_plugin_whose_package_is_imported_already_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ours is, wherever its installation lists its files."""
    installed = tmp_path / "site/like_ours-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: like-ours\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[pytest11]\nlike_ours = colorsys\n")
    (installed / "RECORD").write_text("pytest_autokernel/__init__.py,,\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    folder = repository(tmp_path)
    with closing(Standing(folder, folder / "output.txt")) as standing:
        found = Asked(folder, standing)(RIGHT, "-k", "smoke")
    assert found["kernels"][0]["verdict"] == "PASS"
