"""What compute-sanitizer's logs come to, by samples of its manual; and where it is looked for."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pytest_autokernel import sanitizer
from pytest_autokernel.plan import TOOLS

TITLE = "========= COMPUTE-SANITIZER\n"
CLEAN = TITLE + "========= ERROR SUMMARY: 0 errors\n"
RACE_CLEAN = TITLE + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
OUTSIDE = (
    TITLE
    + """\
========= Invalid __global__ write of size 4 bytes
=========     at softmax+0x90 in softmax.py:39
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x87654320 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7cc43a800000 of size 1,024 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: main [0xae66] in memcheck_demo
=========
========= Invalid __global__ write of size 4 bytes
=========     at softmax+0x90 in softmax.py:39
=========
========= ERROR SUMMARY: 2 errors
"""
)
RACE = (
    TITLE
    + """\
========= Error: Race reported between Write access at racy(float *)+0xf0 in race.cu:40
=========     and Read access at racy(float *)+0x280 in race.cu:46 [4 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
)


@pytest.mark.parametrize("log", [CLEAN, RACE_CLEAN])
def test_a_summary_of_nothing_and_no_other_word_is_clean(log: str) -> None:
    found = sanitizer.read(log)
    assert found.clean
    assert not found.faulty


@pytest.mark.parametrize(
    "log",
    [
        "",
        TITLE,
        CLEAN * 2,
        CLEAN + "========= ERROR SUMMARY: 0 errors\n",
        CLEAN + "and more",
        CLEAN.replace("0 errors", "10 errors"),
        TITLE + "and more\n" + CLEAN,
        TITLE
        + "========= Warning: Detected overflow of tracked cuda::barrier structures\n"
        + CLEAN,
        TITLE + "========= Device not supported. Please refer to the documentation\n" + CLEAN,
        TITLE + "========= Internal Sanitizer Error: the launch was not tracked\n" + CLEAN,
        "========= ERROR SUMMARY: 0 errors were not printed\n",
        OUTSIDE,
        RACE,
    ],
)
def test_anything_else_is_not(log: str) -> None:
    assert not sanitizer.read(log).clean


def test_a_fault_is_told_by_its_first_error_without_the_hosts_frames() -> None:
    found = sanitizer.read(OUTSIDE)
    assert found.faulty
    assert found.words == (
        "Invalid __global__ write of size 4 bytes; at softmax+0x90 in softmax.py:39; "
        "by thread (0,0,0) in block (0,0,0); Address 0x87654320 is out of bounds; "
        "and is 1 bytes after the nearest allocation at 0x7cc43a800000 of size 1,024 bytes"
    )
    race = sanitizer.read(RACE)
    assert race.faulty
    assert race.words.startswith("Error: Race reported between Write access at racy(float *)+0xf0")
    assert race.words.endswith("[4 hazards]")


@pytest.mark.parametrize(
    "words",
    [
        "Error: Target application terminated before first instrumented API call",
        "Error: process didn't terminate successfully",
        "Device not supported. Please refer to the documentation",
        "Internal Sanitizer Error: the launch was not tracked",
    ],
)
def test_what_the_tool_says_of_itself_is_no_fault_of_a_kernels(words: str) -> None:
    found = sanitizer.read(TITLE + f"========= {words}\n========= ERROR SUMMARY: 1 error\n")
    assert not found.faulty
    assert not found.clean
    assert found.words == words


def test_an_error_beside_the_tools_own_words_is_a_fault() -> None:
    ended = "========= Error: process didn't terminate successfully\n"
    found = sanitizer.read(TITLE + ended + OUTSIDE.removeprefix(TITLE))
    assert found.faulty
    assert found.words.startswith("Invalid __global__ write")


def test_it_is_looked_for_on_the_path_first_and_then_with_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path("/usr/local/cuda/bin/compute-sanitizer")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert sanitizer.find() == (usual if usual.exists() else None)
    for folder in (tmp_path / "cuda" / "bin", tmp_path / "path"):
        folder.mkdir(parents=True)
        program = folder / "compute-sanitizer"
        program.touch()
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        assert sanitizer.find() == program


def test_each_tool_has_its_options() -> None:
    assert set(sanitizer.FOR_TOOL) == set(TOOLS)
    for tool in TOOLS:
        words = sanitizer.command(Path("/x/compute-sanitizer"), tool, Path("/log"))
        assert words[:5] == ["/x/compute-sanitizer", "--tool", tool, "--log-file", "/log"]
