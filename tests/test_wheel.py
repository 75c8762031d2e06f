"""The wheel, installed beside nobody's sources, in a repository of somebody else's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

# All that a wheel is made of: sources that lie elsewhere would be missed here.
PARTS = ("pyproject.toml", "README.md", "LICENSE", "pytest_autokernel", "agent")
DATA = ("reference", "kernels", "gpu_specs")
KERNEL = """
KERNEL_TYPE = "softmax"


def kernel_fn(x, dim=-1):
    return x.softmax(dim)
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def succeed(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, since setuptools builds inside the tree."""
    tree = tmp_path_factory.mktemp("tree")
    for part in (*PARTS, *DATA):
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tree / part)
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist")
    succeed(*build, cwd=tree)
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and from this environment all but this
    project: neither its sources nor its entry points are seen there."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    purelib = Path(sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})["purelib"])
    own = re.compile(r"pytest_autokernel|autokernel_agent|__.*__|.*\.pth$")
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if not own.match(entry.name):
                purelib.joinpath(entry.name).symlink_to(entry)
    pip = (sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"))
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    succeed(*pip, "install", *quiet, wheel, cwd=home)
    return home / "bin"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Somebody else's repository, whose folders have the names of ours."""
    for folder in (*DATA, "agent"):
        (tmp_path / folder).mkdir()
    (tmp_path / "kernels" / "mine.py").write_text(KERNEL)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\nfilterwarnings = ['error']\n"
    )
    return tmp_path


def test_two_names_are_installed_and_no_others(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        tops = {entry.split("/")[0] for entry in files.namelist()}
    info = "-".join([*wheel.stem.split("-")[:2]]) + ".dist-info"
    assert tops == {"pytest_autokernel", "autokernel_agent", info}


def test_all_that_a_user_needs_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        inside = set(files.namelist())
    kinds = (".py", ".yaml", ".json", ".md", ".typed", ".html", ".css", ".js")
    for top, place in (
        ("pytest_autokernel", "pytest_autokernel"),
        ("agent", "autokernel_agent"),
        *((folder, f"pytest_autokernel/shipped/{folder}") for folder in DATA),
    ):
        for file in (ROOT / top).rglob("*"):
            if file.suffix in kinds and "__pycache__" not in file.parts:
                assert f"{place}/{file.relative_to(ROOT / top).as_posix()}" in inside


def test_nothing_called_like_our_folders_can_be_imported_because_of_us(
    installed: Path, foreign: Path
) -> None:
    code = f"""
import importlib.util, pytest_autokernel
print(pytest_autokernel.__file__)
for name in {(*DATA, "agent", "ci", "tests", "benchmarks")}:
    found = importlib.util.find_spec(name)
    print(*(found.submodule_search_locations or [found.origin]) if found else "")
"""
    own, *others = succeed(installed / "python", "-I", "-c", code, cwd=foreign).splitlines()
    home = str(installed.parent)
    assert own.startswith(home)
    assert not [line for line in others if line.startswith((home, str(ROOT)))]


def test_kernels_are_judged_in_a_foreign_repository(installed: Path, foreign: Path) -> None:
    told = succeed(
        *(installed / "python", "-m", "pytest", "--autokernel", "-p", "no:cacheprovider"),
        *("--autokernel-effort=quick", "--autokernel-device=cpu", "-k", "smoke"),
        *("--autokernel-allow=aten._softmax", "--autokernel-cache=none"),
        cwd=foreign,
    )
    assert "3 passed" in told
    assert "kernels/mine.py" in told


def test_the_command_line_is_there(installed: Path, foreign: Path) -> None:
    told = succeed(installed / "autokernel", "--help", cwd=foreign)
    for command in ("optimize", "log", "show", "report"):
        assert command in told
    missing = run(installed / "autokernel", "optimize", "no/such/kernel.py", cwd=foreign)
    assert missing.returncode != 0
    assert "Traceback" not in missing.stderr + missing.stdout
