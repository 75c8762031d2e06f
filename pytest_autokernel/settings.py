"""The run's configuration, resolved once from pytest's options into a value."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from pytest_autokernel.decide import Question

Device = Literal["auto", "cuda", "cpu"]
Effort = Literal["quick", "normal", "thorough"]
Sandbox = Literal["auto", "require", "off"]
L2 = Literal["cold", "warm"]
Asked = Literal["binary", "screen", "keep", "change"]


@dataclass(frozen=True)
class Settings:
    """What the judge is told. Times in seconds, memory in bytes.

    `seed` is drawn afresh for each run unless given. `baseline` is a kernel file to be compared
    with, or a git revision of each. `allow` are patterns of torch operators, launched kernels and
    imports that make a kernel a hybrid. `cache` keeps compiled code from run to run; without one it
    is kept for this run alone. `l2` is how timed calls find a GPU's cache; a CPU's is always warm.
    `compare` are names of ops' baselines that are timed beside the first. `asked` is what the user
    wants to know from the comparison with the baseline, or `binary`, which makes none."""

    rootdir: Path
    seed: int
    device: Device
    effort: Effort
    timeout_s: float
    memory_bytes: int
    cpus: tuple[int, ...]
    baseline: str | None
    json: Path | None
    allow: tuple[str, ...] = ()
    cache: Path | None = None
    sandbox: Sandbox = "auto"
    l2: L2 = "cold"
    compare: tuple[str, ...] = ()
    asked: Asked | None = None

    @property
    def ask(self) -> Question:
        """By default an edit loop's question at effort quick, and a gate's at the others."""
        if self.asked is None or self.asked == "binary":
            return "keep" if self.effort == "quick" else "change"
        return self.asked

    @staticmethod
    def from_config(config: pytest.Config) -> Settings:
        def option(name: str, default: object = None) -> str:
            given = config.getoption(f"autokernel_{name}")
            return str(
                given if given is not None else config.getini(f"autokernel_{name}") or default
            )

        seed = config.getoption("autokernel_seed")
        json = config.getoption("autokernel_json")
        cpus = tuple(sorted(os.sched_getaffinity(0)))
        asked = option("ask", "")
        threads = int(option("threads", len(cpus)))
        return Settings(
            rootdir=config.rootpath,
            seed=secrets.randbits(48) if seed is None else seed,
            device=_choice("device", option("device", "auto"), get_args(Device)),
            effort=_choice("effort", option("effort", "normal"), get_args(Effort)),
            timeout_s=_positive("timeout", option("timeout", 60)),
            memory_bytes=int(_positive("memory", option("memory", _default_memory_gb())) * 2**30),
            cpus=cpus[:threads],
            baseline=config.getoption("autokernel_baseline"),
            json=_json(json) if json else None,
            allow=_names(option("allow", "")),
            cache=_cache(option("cache", "")),
            sandbox=_choice("sandbox", option("sandbox", "auto"), get_args(Sandbox)),
            l2=_choice("l2", option("l2", "cold"), get_args(L2)),
            compare=_names(option("compare", "")),
            asked=_choice("ask", asked, get_args(Asked)) if asked else None,
        )


def _names(given: str) -> tuple[str, ...]:
    """Separated by commas or spaces."""
    return tuple(given.replace(",", " ").split())


def _default_memory_gb() -> float:
    """Three quarters of the machine's memory."""
    return 0.75 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _cache(named: str) -> Path | None:
    if named == "none":
        return None
    home = os.environ.get("XDG_CACHE_HOME")
    root = Path(home) if home else Path.home() / ".cache"
    folder = Path(named).absolute() if named else root / "pytest-autokernel"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(
            f"autokernel_cache: {folder} cannot be made: {error.strerror}: name another folder, "
            "or none"
        ) from error
    return folder


def _json(named: str) -> Path:
    """Refused before anything is judged, and not after."""
    file = Path(named).absolute()
    if not file.parent.is_dir():
        raise pytest.UsageError(
            f"--autokernel-json: {file} cannot be written: expected a folder {file.parent}"
        )
    return file


def _choice(name: str, value: str, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise pytest.UsageError(
            f"autokernel_{name}: expected one of {', '.join(known)}, got {value!r}"
        )
    return value


def _positive(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not number > 0:
        raise pytest.UsageError(f"autokernel_{name}: expected a positive number, got {value!r}")
    return number
