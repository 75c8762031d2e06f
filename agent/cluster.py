"""Workers in a Ray cluster: one for each of its GPUs, or for each machine where it has none.

Needs the `ray` package, which is an extra, and autokernel of the same version on all machines. They
share no files: each worker is sent those of the commit that a run starts from. Whoever can reach a
Ray cluster can run anything on it; keeping others out is its owner's business (RAY_AUTH_MODE).
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import signal
import socket
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .errors import JudgeFailed, Refused
from .report import Report
from .worker import VISIBLE, Local, Worker, WorkerLost

HIRING_S = 600.0  # for a machine to come, and to start Python


class Host:
    """Runs in the cluster: a worker as there are on this machine, with the files that it is sent.
    Ray gives it its GPU, by CUDA_VISIBLE_DEVICES."""

    def __init__(self, files: bytes, secrets: Collection[str]) -> None:
        for name in secrets:
            os.environ.pop(name, None)
        self._folder = Path(tempfile.mkdtemp(prefix="autokernel-"))
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            archive.extractall(self._folder, filter="tar")
        self._local = Local(self._folder / "worktree", self._folder / "scratch")

    def about(self) -> tuple[str, str]:
        """The version of autokernel, and where this is."""
        gpu = os.environ.get(VISIBLE)
        where = [socket.gethostname(), *([f"GPU {gpu}"] if gpu else [])]
        return version("pytest-autokernel"), ", ".join(where)

    def ask(self, kernel: str, question: str, *words: object) -> Report:
        answer: Report = getattr(self._local.judge(kernel), question)(*words)
        return answer

    def close(self) -> None:
        self._local.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Remote:
    """A worker in the cluster. Raises WorkerLost if it cannot be had."""

    where = "the cluster"  # until it has told

    def __init__(self, ray: Any, resources: dict[str, Any], files: Any, secrets: list[str]) -> None:
        self._ray = ray
        # At a time: a binary, all else, and the end.
        host = ray.remote(Host).options(max_concurrency=3, **resources)
        self._host = host.remote(files, secrets)

    def judge(self, kernel: str) -> RemoteJudge:
        return RemoteJudge(self, kernel)

    def ask(self, method: str, *words: object, limit_s: float | None = None) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(getattr(self._host, method).remote(*words), timeout=limit_s)
        except errors.RayTaskError as error:
            raise error.cause from error
        except (errors.RayError, ConnectionError) as error:
            raise WorkerLost(f"a worker in the cluster was lost: {error}") from error

    def close(self) -> None:
        with suppress(WorkerLost):
            self.ask("close", limit_s=10)
        self._ray.kill(self._host)


class RemoteJudge:
    """A judge (judge.py) whose questions a worker in the cluster answers."""

    def __init__(self, remote: Remote, kernel: str) -> None:
        self._remote, self._kernel = remote, kernel

    def _ask(self, *words: object) -> Report:
        answer: Report = self._remote.ask("ask", self._kernel, *words)
        return answer

    def binary(self, text: str) -> Report:
        return self._ask("binary", text)

    def screen(self, text: str, incumbent: str, seed: int) -> Report:
        return self._ask("screen", text, incumbent, seed)

    def judge(self, text: str, incumbent: str, seed: int) -> Report:
        return self._ask("judge", text, incumbent, seed)

    def compare(self, text: str, baseline: str | None, seed: int) -> Report:
        return self._ask("compare", text, baseline, seed)


@contextmanager
def connected(
    wanted: str, worktree: Path, secrets: Collection[str]
) -> Iterator[Sequence[Callable[[], Worker]]]:
    """How to hire each of the cluster's workers: of `ray`, the one that RAY_ADDRESS names or that
    this machine is part of, else one of this machine alone; of `ray://HOST:PORT`, that of a Ray
    client server."""
    ray = _ray()
    try:
        _connect(ray, wanted)
        count, resources = _places(ray)
        files = ray.put(_packed(worktree))

        def hire() -> Worker:
            remote = Remote(ray, resources, files, sorted(secrets))
            try:
                theirs, remote.where = remote.ask("about", limit_s=HIRING_S)
            except WorkerLost as lost:
                raise JudgeFailed(f"no worker could be had of the cluster: {lost}") from lost
            if theirs != (ours := version("pytest-autokernel")):
                raise Refused(
                    f"{remote.where} has autokernel {theirs}, this machine {ours}: expected one"
                )
            return remote

        yield [hire] * count
    finally:
        ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise Refused(
            "--workers ray needs the package ray: pip install 'pytest-autokernel[ray]'"
        ) from error


def _connect(ray: Any, wanted: str) -> None:
    """Raises Refused where there is no such cluster, or it does not let us in."""
    before = signal.getsignal(signal.SIGTERM)
    alone = {} if wanted != "ray" or "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
    try:
        ray.init(
            address=wanted if wanted != "ray" else None,
            logging_level="ERROR",
            log_to_driver=False,
            **alone,
        )
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise Refused(
            f"--workers {wanted}: no Ray cluster could be reached: {error}: if it asks for a "
            "token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray would end us without a last word


def _places(ray: Any) -> tuple[int, dict[str, Any]]:
    """How many workers there is room for, and what each is to have for itself. Raises Refused where
    GPUs differ: what is faster on one may be slower on another."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kinds = {name for machine in machines for name in machine if name.startswith("accelerator_")}
    if len(kinds) > 1:
        raise Refused(f"the cluster's GPUs differ: {', '.join(sorted(kinds))}: expected one kind")
    if gpus := int(sum(machine.get("GPU", 0) for machine in machines)):
        return gpus, {"num_gpus": 1, "num_cpus": 0}
    cpus = min(machine.get("CPU", 1) for machine in machines)
    return len(machines), {"num_cpus": cpus, "scheduling_strategy": "SPREAD"}


def _packed(worktree: Path) -> bytes:
    """All files of a work tree, but git's."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(worktree, "worktree", filter=lambda f: None if f.name == "worktree/.git" else f)
    return packed.getvalue()
