"""The playbook's rewrites: where they apply, that what they leave is a right kernel file, and that
it compiles. Each is judged as a user's kernel is, by Triton's interpreter or the C++ compiler."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent.proposers import literals
from autokernel_agent.proposers.rewrites import REWRITES, rewritten
from autokernel_agent.proposers.rewrites.source import Source
from autokernel_agent.proposers.space import Space

from pytest_autokernel import candidate, plan
from pytest_autokernel.collection import seeded
from pytest_autokernel.examination import Examination
from pytest_autokernel.judge import Judge
from pytest_autokernel.subjects import WorkerSubject
from pytest_autokernel.verdict import Verdict
from tests.conftest import ROOT

STARTERS = ROOT / "tests" / "starters"
ROWS = ["rows per program", "eviction hints", "persistent grid"]
LONG = ["loop a long row", *ROWS]
CPP = ["compiler flags", "unroll pragma"]
# All that applies, in the order of the playbook.
APPLIES = {
    "tests/starters/softmax.py": [*LONG[:2], "exp2", *ROWS[1:]],
    "tests/starters/cross_entropy.py": [*LONG[:2], "exp2", "num_stages on loops", *ROWS[1:]],
    "tests/starters/rmsnorm.py": LONG,
    "tests/starters/reduce.py": LONG,
    "tests/starters/matmul.py": ["grouped tile order", "split-K"],
    "kernels/triton/softmax.py": ["num_stages on loops", *ROWS[1:]],
    "kernels/triton/cross_entropy.py": ["num_stages on loops", "eviction hints"],
    "kernels/triton/rmsnorm.py": ["num_stages on loops", *ROWS[1:]],
    "kernels/triton/layernorm.py": ["num_stages on loops", *ROWS[1:]],
    "kernels/triton/reduce.py": ["num_stages on loops", "eviction hints"],
    "kernels/triton/rotary_embedding.py": ROWS[1:],
    "kernels/triton/matmul.py": [],
    "kernels/triton/flash_attention.py": [],
    "kernels/triton/fused_mlp.py": [],
    **{
        f"kernels/cpp/{op}.py": CPP
        for op in ("softmax", "cross_entropy", "rmsnorm", "layernorm", "matmul", "fused_mlp")
    },
    **{f"kernels/cpp/{op}.py": CPP[:1] for op in ("reduce", "rotary_embedding", "flash_attention")},
}
PAIRS = [(file, name) for file, names in APPLIES.items() for name in names]
# Values with which what a rewrite opens is at work on the small cases of a CPU.
SMALL = {"resident": 64, "step": 512, "tile": 256, "per_sm": 4, "fill": 4, "group": 2}
# What is judged: one file for each way in which a rewrite applies.
JUDGED = [*(path for path in APPLIES if "starters" in path), "kernels/cpp/rmsnorm.py"]


def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def small(text: str, before: str) -> str:
    """With the new choices set for small cases."""
    new = literals.literal(text, "CONFIG").keys() - literals.literal(before, "CONFIG").keys()
    return literals.rewrite(text, "CONFIG", {k: v for k, v in SMALL.items() if k in new})


def all_at_once(file: str) -> tuple[str, list[str]]:
    """A file after every rewrite that applies to it, or to what the earlier ones made of it."""
    text, names = text_of(file), []
    for name in REWRITES:
        changed = rewritten(name, text)
        if changed is not None:
            text = changed
            names.append(name)
    return text, names


@functools.cache
def choices(text: str) -> int:
    """How many settings a kernel has: seconds of work for the largest spaces."""
    kernel = candidate.parse(Path("kernel.py"), text)
    return len(Space.of(kernel.space, kernel.config).valid)


@pytest.mark.parametrize("file", APPLIES)
def test_a_rewrite_applies_where_its_pattern_is_and_nowhere_else(file: str) -> None:
    assert [name for name in REWRITES if rewritten(name, text_of(file))] == APPLIES[file]


def test_every_rewrite_is_proved_on_some_kernel() -> None:
    assert {name for _, name in PAIRS} == set(REWRITES)
    assert {name for file in JUDGED for name in all_at_once(file)[1]} == set(REWRITES)


def test_every_file_that_ships_or_starts_is_looked_at() -> None:
    files = [*(ROOT / "kernels").glob("*/*.py"), *STARTERS.glob("*.py")]
    taken = [path for path in files if path.parent.name in ("triton", "cpp", "starters")]
    assert {str(path.relative_to(ROOT)) for path in taken} == set(APPLIES)


@pytest.mark.parametrize(("file", "name"), PAIRS)
def test_what_is_left_is_a_kernel_file_with_a_wider_space(file: str, name: str) -> None:
    before, after = text_of(file), rewritten(name, text_of(file))
    assert after is not None
    old, new = candidate.parse(Path(file), before), candidate.parse(Path(file), after)
    assert (new.op, new.backend, new.supports) == (old.op, old.backend, old.supports)
    assert old.config.items() <= new.config.items()
    assert old.space.items() <= new.space.items()
    assert new.config.keys() - old.config.keys() == new.space.keys() - old.space.keys()
    assert choices(after) >= choices(before)


@pytest.mark.parametrize(("file", "name"), PAIRS)
def test_what_it_does_not_change_stays_as_it_is(file: str, name: str) -> None:
    """Lines are added and changed; none but those of a launch or a definition is moved."""
    before, after = text_of(file), rewritten(name, text_of(file))
    assert after is not None
    kept = after.splitlines()
    comments = [line for line in before.splitlines() if line.strip().startswith(("#", "//"))]
    assert [line for line in kept if line in comments] == comments
    functions = {n.name for n in ast.parse(before).body if isinstance(n, ast.FunctionDef)}
    assert functions <= {n.name for n in ast.parse(after).body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), PAIRS)
def test_it_does_not_apply_twice(file: str, name: str) -> None:
    once = rewritten(name, text_of(file))
    assert once is not None
    assert rewritten(name, once) is None


@pytest.mark.parametrize("folder", ["odd_kernels", "wrong_kernels"])
def test_no_style_of_kernel_makes_a_rewrite_fail(folder: str) -> None:
    """Whatever applies leaves a file that parses, if it is one."""
    for path in sorted((ROOT / "tests" / folder).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "\nCONFIG = " not in text:
            text = text.replace("\nKERNEL_TYPE", '\nCONFIG = {"a": 1}\nSPACE = {}\nKERNEL_TYPE')
        for name in REWRITES:
            ast.parse(rewritten(name, text) or text)


@pytest.fixture
def quick(judge: Judge) -> Iterator[Judge]:
    before = judge.settings
    judge.settings = replace(before, effort="quick")
    yield judge
    judge.settings = before


@pytest.mark.parametrize("file", JUDGED)
def test_a_kernel_with_all_rewrites_at_once_is_right(
    quick: Judge, tmp_path: Path, file: str
) -> None:
    text, _ = all_at_once(file)
    assert_right(quick, tmp_path, small(text, text_of(file)))


def assert_right(quick: Judge, folder: Path, text: str) -> None:
    path = folder / "kernel.py"
    path.write_text(text)
    kernel = candidate.read(path)
    subject, op = WorkerSubject(quick, kernel), quick.op(kernel.op)
    target = plan.target(subject.target, "quick")
    under = Examination(quick, subject, op, target, {}, "")
    with closing(subject):
        for check in plan.checks(op, kernel.supports, target, "quick"):
            outcome = under.outcome(seeded(check, quick.settings.seed))
            assert outcome.verdict is Verdict.PASS, f"{check.stage}[{check.id}]: {outcome}"


def test_what_is_made_of_the_starters_compiles_for_a_gpu(tmp_path: Path) -> None:
    for path in STARTERS.glob("*.py"):
        (tmp_path / path.name).write_text(all_at_once(str(path.relative_to(ROOT)))[0])
    files = sorted(map(str, tmp_path.glob("*.py")))
    program = [sys.executable, "-m", "tests.offline_compiler", *files]
    launched: dict[str, list[Any]] = json.loads(subprocess.check_output(program, cwd=ROOT))
    named = {stem: [name for name, _ in kernels] for stem, kernels in launched.items()}
    assert named == {
        "softmax": ["softmax_row", "softmax_row_long"],
        "rmsnorm": ["rmsnorm_row", "rmsnorm_row_long"],
        "reduce": ["sum_row", "sum_row_long"],
        "cross_entropy": ["row_loss_long", "mean_loss"],
        "matmul": ["product", "product", "join_parts"],
    }
    assert all(bytes_ <= 232448 for kernels in launched.values() for _, bytes_ in kernels)


class TestPersistentProduct:
    """The starter, with its tiles in a grid of one axis."""

    ONE_AXIS = (
        text_of("tests/starters/matmul.py")
        .replace("= tl.program_id(0)", "= tl.program_id(0) % tl.cdiv(N, BN)")
        .replace("= tl.program_id(1)", "= tl.program_id(0) // tl.cdiv(N, BN)")
        .replace('(triton.cdiv(N, config["n"]), triton', '(triton.cdiv(N, config["n"]) * triton')
        .replace('config["m"]))', 'config["m"]),)')
    )

    def persistent(self, flatten: int) -> str:
        text = rewritten("persistent grid", self.ONE_AXIS)
        assert text is not None
        assert "tl.num_programs(0), flatten=FLATTEN)" in text
        return literals.rewrite(text, "CONFIG", {"flatten": flatten})

    @pytest.mark.parametrize("flatten", [0, 1])
    def test_it_is_right_with_its_loops_as_one_or_two(
        self, quick: Judge, tmp_path: Path, flatten: int
    ) -> None:
        assert_right(quick, tmp_path, self.persistent(flatten))

    def test_it_compiles_with_its_loops_as_one_or_two(self, tmp_path: Path) -> None:
        files = [tmp_path / "two.py", tmp_path / "one.py"]
        for flatten, file in enumerate(files):
            file.write_text(self.persistent(flatten))
        program = [sys.executable, "-m", "tests.offline_compiler", *map(str, files)]
        launched = json.loads(subprocess.check_output(program, cwd=ROOT))
        named = {stem: [name for name, _ in kernels] for stem, kernels in launched.items()}
        assert named == {"one": ["product", "product"], "two": ["product", "product"]}

    def test_rows_have_no_loop_to_flatten(self) -> None:
        text = rewritten("persistent grid", text_of("tests/starters/softmax.py"))
        assert text is not None
        assert "flatten" not in literals.literal(text, "SPACE")


class TestPreconditions:
    """Kernels like the starters but for one thing, on which a rewrite would be wrong."""

    SOFTMAX = text_of("tests/starters/softmax.py")
    RMSNORM = text_of("tests/starters/rmsnorm.py")
    MATMUL = text_of("tests/starters/matmul.py")

    @pytest.mark.parametrize(
        ("name", "text", "old", "new"),
        [
            ("loop a long row", SOFTMAX, "mask=mask, other=-float", "other=-float"),  # no mask
            ("loop a long row", SOFTMAX, ".to(tl.float32)", ""),  # sums in the input's dtype
            ("loop a long row", SOFTMAX, "col < cols", "col <= cols"),
            ("loop a long row", SOFTMAX, "tl.exp(v)", "tl.cumsum(tl.exp(v), 0)"),
            ("loop a long row", SOFTMAX, "BLOCK)\n", "BLOCK) + 1\n"),  # another numbering
            ("rows per program", SOFTMAX, "program_id(0)", "program_id(1)"),
            ("rows per program", SOFTMAX, "(rows,)", "(rows, 2)"),
            ("rows per program", SOFTMAX, "tl.max(v, 0)", "tl.argmax(v, 0)"),
            ("rows per program", RMSNORM, "grid = (rows,)", "grid = lambda meta: (rows,)"),
            ("persistent grid", SOFTMAX, "(rows,)]", "(rows, 1)]"),
            ("persistent grid", SOFTMAX, "    mask", "    if row > 4:\n        return\n    mask"),
            ("grouped tile order", MATMUL, "tl.program_id(0)", "tl.program_id(2)"),
            ("grouped tile order", MATMUL, "(triton.cdiv(N", "(2, triton.cdiv(N"),
            ("split-K", MATMUL, "col[None, :], total", "col[None, :], total * 2 + 1"),  # not linear
            ("split-K", MATMUL, "    tl.store", "    total = tl.maximum(total, 0.0)\n    tl.store"),
            ("split-K", MATMUL, "A.new_empty((M, N))", "torch.empty_like(A)"),  # any strides
            ("split-K", MATMUL, "range(0, K, BK)", "range(BK, K, BK)"),
        ],
    )  # fmt: skip
    def test_it_does_not_apply(self, name: str, text: str, old: str, new: str) -> None:
        assert rewritten(name, text) is not None
        assert old in text
        assert rewritten(name, text.replace(old, new)) is None


class TestSource:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("f(a)", "f(a, k=1)"),
            ("f((a))", "f((a), k=1)"),
            ("f(a,)", "f(a, k=1,)"),
            ("f(\n    (a),  # why\n)", "f(\n    (a), k=1,  # why\n)"),
            ("f(g(a), b=(c + (d)))", "f(g(a), b=(c + (d)), k=1)"),
            ("é = f('ß', (a))", "é = f('ß', (a), k=1)"),
        ],
    )
    def test_an_argument_is_added_whatever_stands_behind_the_last(self, old: str, new: str) -> None:
        source = Source(old)
        calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
        source.argument(calls[0], "k=1")
        assert source.result() == new
