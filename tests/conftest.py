from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import git
import hypothesis
import pytest

from pytest_autokernel.judge import Judge
from pytest_autokernel.settings import Settings
from tests.agent_repository import BARE, user_repository

pytest_plugins = ["pytester"]

# A busy machine is no reason to fail.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# A shell starts background jobs with SIGINT ignored, and what they start inherits that: then
# tests that press Ctrl-C on a process of theirs would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The runs of pytest that tests start are no workers of xdist's, as they would else believe.
os.environ.pop("PYTEST_XDIST_WORKER", None)

ROOT = Path(__file__).parent.parent
WRONG = ROOT / "tests" / "wrong_kernels"
Commit = Callable[[Mapping[str, str | None]], git.Commit]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """git knows no settings of the user's nor of the system's, here and in what a test starts."""
    for name, value in BARE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A user's repository with a kernel in it."""
    return user_repository(tmp_path / "repo")


@pytest.fixture
def commit(tmp_path: Path) -> Commit:
    """Commits files with these texts in a repository of the test's; None deletes one."""
    repo = git.Repo.init(tmp_path)
    with repo.config_writer() as config:
        config.set_value("user", "name", "somebody").set_value("user", "email", "a@b")

    def commit(files: Mapping[str, str | None]) -> git.Commit:
        for name, text in files.items():
            file = tmp_path / name
            if text is None:
                file.unlink()
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        repo.git.add("--all")
        return repo.index.commit("a change")

    return commit


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    """A judge's settings for tests: a CPU unless --autokernel-device says otherwise, short limits,
    a seed of each run's own; what is compiled is kept where --autokernel-cache says."""
    device = pytestconfig.getoption("autokernel_device") or "cpu"
    cache = pytestconfig.getoption("autokernel_cache")
    return Settings(
        rootdir=ROOT,
        seed=int.from_bytes(os.urandom(4)),
        device=device,
        effort="normal",
        timeout_s=15 if device == "cpu" else 60,  # a first call compiles for seconds there
        memory_bytes=2 * 2**30,
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        baseline=None,
        json=None,
        allow=("*",),
        cache=Path(cache).absolute() if cache else None,
    )


@pytest.fixture(scope="session")
def own_cpu(settings: Settings) -> tuple[int, ...]:
    """One processor, for kernels that are run or timed in one thread: another for each of
    pytest-xdist's workers, as far as there are enough."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return (settings.cpus[worker % len(settings.cpus)],)


@pytest.fixture(scope="session")
def judge(settings: Settings) -> Iterator[Judge]:
    judge = Judge(settings)
    yield judge
    judge.close()


@pytest.fixture
def quick_judge(judge: Judge) -> Iterator[Judge]:
    """The same judge at the effort of an edit loop."""
    before = judge.settings
    judge.settings = replace(before, effort="quick")
    yield judge
    judge.settings = before


@pytest.fixture
def foreign(pytester: pytest.Pytester) -> pytest.Pytester:
    """An empty repository of somebody else's, with a `kernels` folder."""
    pytester.makefile(".toml", pyproject="[tool.pytest.ini_options]\nfilterwarnings = ['error']\n")
    pytester.mkdir("kernels")
    return pytester


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        _skip(items, "alone", "needs the machine for itself: run `pytest -m alone`, without -n")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "no CUDA GPU on this machine")


def _skip(items: list[pytest.Item], mark: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(mark):
            item.add_marker(pytest.mark.skip(reason=reason))
