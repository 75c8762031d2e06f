"""The repository about itself: which way imports run, and that what belongs together is there."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_autokernel import candidate
from pytest_autokernel.ops import load_op, op_files
from tests.conftest import ROOT

JUDGE, AGENT = ROOT / "pytest_autokernel", ROOT / "agent"
OURS = {"pytest_autokernel", "agent", "autokernel_agent", "ci", "reference", "kernels", "tests"}
FOLDERS = ("pytest_autokernel", "agent", "ci", "reference", "kernels", "benchmarks", "tests")
SOURCES = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))]
REFERENCES = sorted(ROOT.glob("reference/[!_]*.py"))
KERNELS = sorted(ROOT.glob("kernels/*/*.py"))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.y*ml"))

# What knows of pytest's items and reports. All else in the package is the judge, which does not.
PYTEST_SIDE = {
    f"pytest_autokernel.{name}"
    for name in (
        *("plugin", "standing", "fixtures", "collection", "suite", "examination"),
        *("report", "replay"),
    )
}
PURE = ("op", "decide", "gpu")  # of our own they import nothing


def name(path: Path) -> str:
    """A source file as one names it in a message."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, only_at_run_time: bool = False) -> set[str]:
    """The modules that a file imports, anywhere in it; relative ones with leading dots.

    `from package import name` is `package.name`, as far as a file of that name is ours.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if only_at_run_time:
        tree = _WithoutTypeChecking().visit(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            files = {alias.name for alias in node.names if is_file(f"{module}.{alias.name}")}
            found |= {f"{module}.{file}" for file in files}
            if len(files) < len(node.names):
                found.add(module)
    return found


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def is_file(module: str) -> bool:
    return (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()


def ours(path: Path) -> set[str]:
    return {module for module in imports(path) if module.split(".")[0] in OURS}


def reached(module: str) -> set[str]:
    """All of our modules that `module` imports at run time, and those that these import."""
    found, to_do = set(), [f"pytest_autokernel.{module}"]
    while to_do:
        now = to_do.pop()
        found.add(now)
        path = ROOT / Path(*now.split(".")).with_suffix(".py")
        if path.exists():
            to_do += (imports(path, only_at_run_time=True) & _modules()) - found
    return found


def _modules() -> set[str]:
    return {f"pytest_autokernel.{path.stem}" for path in JUDGE.glob("*.py")}


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_imports_nothing_of_ours(module: str) -> None:
    assert ours(JUDGE / f"{module}.py") == set()


@pytest.mark.parametrize("module", ["decide", "plan", "verdict"])
def test_what_decides_has_no_torch_clock_disk_or_chance(module: str) -> None:
    world = {"torch", "time", "datetime", "os", "pathlib", "random", "subprocess", "numpy"}
    assert {found.split(".")[0] for found in imports(JUDGE / f"{module}.py")}.isdisjoint(world)


@pytest.mark.parametrize("path", REFERENCES, ids=name)
def test_a_reference_imports_what_an_op_is_and_no_more_of_ours(path: Path) -> None:
    assert ours(path) == {"pytest_autokernel.op"}


@pytest.mark.parametrize("path", REFERENCES, ids=name)
def test_a_reference_imports_torch_at_once_and_other_libraries_when_they_are_called(
    path: Path,
) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = {
        ast.unparse(node).split()[1].split(".")[0]
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert found - sys.stdlib_module_names <= {"torch", "pytest_autokernel"}


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_a_kernel_imports_the_compiler_at_most(path: Path) -> None:
    assert ours(path) <= {"pytest_autokernel.compile", "pytest_autokernel.cuda"}


@pytest.mark.parametrize("path", sorted(JUDGE.glob("*.py")), ids=name)
def test_the_package_imports_itself_alone(path: Path) -> None:
    assert {module.split(".")[0] for module in ours(path)} <= {"pytest_autokernel"}
    assert not any(module.startswith(".") for module in imports(path))


def test_the_judge_knows_nothing_of_pytests_side() -> None:
    for path in JUDGE.glob("*.py"):
        found = imports(path)
        if f"pytest_autokernel.{path.stem}" not in PYTEST_SIDE:
            assert found.isdisjoint(PYTEST_SIDE), path.name
            assert path.stem == "settings" or "pytest" not in found, path.name


def test_no_candidates_process_knows_the_answers_and_the_one_that_does_runs_none() -> None:
    answers = {f"pytest_autokernel.{name}" for name in ("oracle", "comparison", "judge")}
    assert reached("worker").isdisjoint(answers)
    runs = {"pytest_autokernel.worker", "pytest_autokernel.candidate"}
    assert "pytest_autokernel.oracle" in reached("comparison")
    assert reached("comparison").isdisjoint(runs)


@pytest.mark.parametrize("path", sorted(AGENT.rglob("*.py")), ids=name)
def test_the_agent_reaches_the_judge_through_pytest_alone(path: Path) -> None:
    """Installed it has another name, so that it cannot name itself either. Where an op is
    defined is no part of the judge."""
    assert ours(path) <= {f"pytest_autokernel.{name}" for name in (*PURE, "ops")}


@pytest.mark.parametrize("path", REFERENCES, ids=name)
def test_every_op_has_its_starters(path: Path) -> None:
    for backend in ("triton", "cuda", "cpp"):
        assert (ROOT / "kernels" / backend / path.name).is_file()


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_a_kernel_has_the_name_of_its_op_and_lies_with_its_backend(path: Path) -> None:
    kernel = candidate.read(path)
    assert (kernel.backend, kernel.op) == (path.parent.name, path.stem)
    op = load_op(kernel.op, op_files(ROOT))
    assert kernel.supports <= set(op.extensions)


def test_kernels_and_references_are_no_packages() -> None:
    assert not [path for path in SOURCES if path.name == "__init__.py" and "kernels" in path.parts]
    assert not (ROOT / "reference" / "__init__.py").exists()


@pytest.mark.parametrize("path", [p for p in SOURCES if "tests" not in p.parts], ids=name)
def test_no_file_is_too_long_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def comments(path: Path) -> Iterator[tuple[int, str]]:
    with io.BytesIO(path.read_bytes()) as source:
        for token in tokenize.tokenize(source.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_lint_exemption_names_its_rule_and_its_reason(path: Path) -> None:
    for line, text in comments(path):
        if re.match(r"#\s*(noqa|ruff:)", text):
            reasoned = re.match(r"# noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w+ \w+", text)
            assert reasoned, f"{name(path)}:{line}: {text}"


def test_every_exemption_of_whole_files_has_its_reason_above_it() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    exempt = tomllib.loads(text)["tool"]["ruff"]["lint"]["per-file-ignores"]
    lines = text.splitlines()
    for pattern in exempt:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f'"{pattern}" =')]
        assert lines[at - 1].startswith("# "), pattern


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Every step and every called workflow of a workflow."""
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        yield job
        yield from job.get("steps", [])


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w-]+):", text, re.MULTILINE))


def words(script: str) -> list[str]:
    """The words of a shell script, but for its comments."""
    return re.sub(r"(^|\s)#.*", "", script).split()


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_a_workflow_pins_its_actions_and_says_which_version_that_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for step in steps(path):
        used = step.get("uses", "./")
        if used.startswith("./"):
            assert (ROOT / used).exists()
        else:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used), used
            assert re.search(rf"{re.escape(used)} # v\d", text), used


SCRIPTS = [
    *((path, step["run"]) for path in WORKFLOWS for step in steps(path) if "run" in step),
    (ROOT / ".ci" / "run", (ROOT / ".ci" / "run").read_text(encoding="utf-8")),
]


@pytest.mark.parametrize(("path", "script"), SCRIPTS, ids=[name(path) for path, _ in SCRIPTS])
def test_a_script_names_files_and_targets_that_exist(path: Path, script: str) -> None:
    for line in script.splitlines():
        if (said := words(line))[:1] == ["make"]:
            assert {w for w in said[1:] if re.fullmatch(r"[\w-]+", w)} <= make_targets(), line
    for word in words(script):
        module = re.fullmatch(r"((?:ci|agent|pytest_autokernel)(?:\.\w+)+)", word)
        if module:
            assert is_file(module[1]), word
        if re.fullmatch(r"[\w-]+(/[\w.-]+)*\.(py|sh|toml|txt)", word):
            assert (ROOT / word).is_file(), word
        if word.split("/")[0] in FOLDERS and re.fullmatch(r"[\w./-]+/[\w./-]+", word):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_a_workflow_is_given_no_more_than_it_says_and_ends(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "permissions" in workflow
    for job in workflow["jobs"].values():
        assert "uses" in job or "timeout-minutes" in job
    for step in steps(path):
        cached = step.get("with", {}).get("cache-dependency-path", "")
        assert all((ROOT / file).is_file() for file in cached.split())


PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("file", PAGES)
def test_a_reader_finds_what_to_read(file: str) -> None:
    page = ROOT / file
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) > 5
    for picture in re.findall(r'(?:src|srcset)="([^"]+)"', text):
        assert (page.parent / picture).exists(), picture
    for link, _, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(#([^)\s]+))?\)", text):
        found = page.parent / link if link else page
        assert found.exists(), link
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), anchor


def anchors(text: str) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_tables_of_peers_are_drawn_where_the_page_says() -> None:
    """`benchmarks/peers.py draw --into` finds its place there, and in no other page."""
    marked = [f for f in PAGES if "<!-- peers:" in (ROOT / f).read_text(encoding="utf-8")]
    assert marked == ["docs/measurements.md"]
    text = (ROOT / marked[0]).read_text(encoding="utf-8")
    assert f"peers.py draw peers.json --into {marked[0]} --plot docs/peers" in text


@pytest.mark.parametrize("path", [p for p in SOURCES if "tests" not in p.parts], ids=name)
def test_every_exemption_from_the_types_has_its_reason_above_it(path: Path) -> None:
    said = dict(comments(path))
    for line, text in said.items():
        if re.match(r"#\s*type:\s*ignore", text):
            assert re.fullmatch(r"# type: ignore\[[\w,-]+\]", text), f"{name(path)}:{line}"
            assert line - 1 in said, f"{name(path)}:{line}: no reason above it"
