"""What optimisers are told is true: of the ops, and of the Triton that is installed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from autokernel_agent.proposers.program import PROGRAM, program_text, reference_text

from pytest_autokernel.ops import load_op, op_files
from tests.conftest import ROOT

TEXT = PROGRAM.read_text(encoding="utf-8")
GONE = TEXT.partition("These do not exist")[2].partition("\n\n")[0]
THERE = TEXT.replace(GONE, "")
NAMES = sorted(set(re.findall(r"\b(?:tl|triton)(?:\.[a-zA-Z_]\w*)+", THERE)))


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    head, *rest = name.replace("tl.", "triton.language.", 1).split(".")
    found = importlib.import_module(head)
    for part in rest:
        if not hasattr(found, part):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except ImportError:
                return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_what_it_names_of_triton_exists(name: str) -> None:
    assert exists(name)


def test_what_it_says_is_gone_is_gone() -> None:
    gone = re.findall(r"`(tl\.[\w.]+)`", GONE)
    assert gone == ["tl.prefetch", "tl.math.tanh"]
    assert not any(map(exists, gone))


@pytest.mark.parametrize("backend", ["nvidia", "amd"])
def test_the_launch_options_that_it_names_are_some_of_the_backends(backend: str) -> None:
    compiler = importlib.import_module(f"triton.backends.{backend}.compiler")
    options = compiler.CUDAOptions if backend == "nvidia" else compiler.HIPOptions
    named = {"nvidia": ["launch_pdl"], "amd": ["waves_per_eu", "matrix_instr_nonkdim", "kpack"]}
    for option in ("num_warps", "num_stages", *named[backend]):
        assert f"`{option}" in THERE
        assert option in options.__dataclass_fields__


@pytest.mark.parametrize("op", sorted(path.stem for path in ROOT.glob("reference/[!_]*.py")))
def test_every_op_has_its_contract_and_its_advice(op: str) -> None:
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| {op} |")]
    extensions = set(re.findall(r"`(\w+)`", row.rpartition("|")[0].rpartition("|")[2]))
    assert extensions == set(load_op(op, op_files(ROOT)).extensions)
    assert re.search(rf"- \*\*[\w, ]*{op}", TEXT)


def test_the_six_tiers_and_five_architectures_are_there() -> None:
    assert re.findall(r"^### Tier (\d)", TEXT, re.MULTILINE) == list("123456")
    for name in ("Ampere", "Ada", "Hopper", "Blackwell", "CDNA"):
        assert f"- **{name} (" in TEXT


def test_the_reference_is_the_users_own_before_the_shipped(tmp_path: Path) -> None:
    assert "OP = Op(" in reference_text("softmax", tmp_path)
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference/softmax.py").write_text("mine\n")
    assert reference_text("softmax", tmp_path) == "mine\n"
    assert reference_text("no_such_op", tmp_path) == ""
    assert program_text() == TEXT
