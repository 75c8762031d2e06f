"""The machine that figures were measured with: its processor, the versions of packages, and what
it lacks."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pytest_autokernel.compile import CompileError, find_compiler


def cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def package_version(package: str) -> str | None:
    """None for a package that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def lack(backend: str, device: str) -> str | None:
    """What this machine lacks to run kernels of a backend. Looked for on this side: a kernel that
    says so itself has failed."""
    if backend == "cuda" and device == "cpu":
        return "no CUDA GPU here, without which CUDA C++ is not run"
    if backend == "cpp":
        try:
            find_compiler()
        except CompileError as error:
            return str(error)
    return None
