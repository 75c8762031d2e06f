"""The judge, on pytest's side: it hands a case's inputs from the comparison to the candidate
and the results back, and turns what happened into a verdict.

A pass is counted here, from completed and compared calls; it is never reported by anybody.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_autokernel import policy
from pytest_autokernel.channel import close
from pytest_autokernel.hardware import Hardware
from pytest_autokernel.op import Case, Op
from pytest_autokernel.ops import load_op, op_files
from pytest_autokernel.plan import Kind
from pytest_autokernel.process import Cell, Died, Nursery, Process, TimedOut, spawn
from pytest_autokernel.sandbox import Confinement, probe
from pytest_autokernel.settings import Settings
from pytest_autokernel.subjects import Answer, Subject, nursery_environment
from pytest_autokernel.verdict import CandidateError, JudgeError, Outcome, Verdict

COMPARISON_TIMEOUT_S = 600.0
MOST_CACHED = 256  # texts whose compiled code is kept from run to run


@dataclass(frozen=True)
class HandedOver:
    """What the worker is told of a call's inputs, and the descriptors that go with it."""

    message: dict[str, Any]
    fds: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One exchange with the worker and the comparison of its result. `repeat` says what it
    means where the result has other bits than the first; `refill` is the seed of contents that
    the tensors are to have by then."""

    call: int
    message: dict[str, Any]
    repeat: str = ""
    refill: int | None = None


def _steps(kind: Kind, case: Case, calls: int, repeats: int) -> list[Step]:
    run = {"do": "run"}
    if kind == "repeat":
        again = {**run, "hold": True, "again": True, "noise": True}
        return [
            Step(0, {**run, "hold": True}),
            *[Step(0, again, "not deterministic")] * (repeats - 1),
            Step(0, {"do": "held"}, "an earlier result changed while later calls ran"),
        ]
    if kind == "renewed":
        again = {**run, "hold": True, "again": True}
        seeds = [derived_seed(case.seed, "renewed", str(n)) for n in range(2)]
        return [Step(0, {**run, "hold": True}), *(Step(0, again, refill=seed) for seed in seeds)]
    return [Step(number, run) for number in range(calls)]


class Judge:
    """One for a pytest run: the comparison process, the ops, and a folder for workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.confinement = _confinement(settings)
        self.files = op_files(settings.rootdir)
        self._ops: dict[str, Op] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="autokernel-")
        self.folder = Path(self._folder.name)
        (self.folder / "comparison").mkdir()
        self.comparison = self._comparison()
        self._nurseries: dict[bool, Nursery] = {}
        import torch  # noqa: F401 - the ops need it, and here it is loaded while the process above does

        if settings.cache:
            _prune(settings.cache)
        self.hardware = Hardware(settings, settings.cache or self.folder, self._reply)

    def close(self) -> None:
        for nursery in self._nurseries.values():
            nursery.close()
        self.comparison.close()
        self._folder.cleanup()

    def op(self, name: str) -> Op:
        """Raises OpError for an unknown op."""
        if name not in self._ops:
            self._ops[name] = load_op(name, self.files)
        return self._ops[name]

    def check(
        self,
        subject: Subject,
        op: Op,
        case: Case,
        kind: Kind = "compare",
        relation: str | None = None,
        repeats: int = 1,
    ) -> Outcome:
        """Judge one case: its result; a relation of several; `repeats` equal results; or the
        results for other contents of the same tensors."""
        completed, worst = 0, 0.0
        operators: set[str] = set()
        with self.made(op, case, subject, relation) as (calls, options):
            steps = _steps(kind, case, len(calls), repeats)
            for step in steps:
                try:
                    answer = self._take(step, subject, calls[step.call], options)
                except CandidateError as error:
                    return Outcome(error.verdict, case, completed, reason=error.reason)
                fault = answer.fault(op, subject.file, self.settings.allow)
                found = self.compare(answer, step.call, step.repeat)
                completed += 1
                worst = max(worst, found["worst"])
                operators |= {name for name, _ in answer.operators}
                if reason := found["reason"] or fault:
                    return Outcome(Verdict.FAIL, case, completed, worst, reason)
        if completed != len(steps) or not completed:
            raise JudgeError(f"{completed} calls were compared where {len(steps)} were due")
        used = tuple(policy.hybrid(operators, op.library))
        return Outcome(Verdict.PASS, case, completed, worst, hybrid=used)

    def _take(
        self, step: Step, subject: Subject, call: HandedOver, options: dict[str, Any]
    ) -> Answer:
        """One step on the worker's side. Raises CandidateError."""
        if step.refill is not None:
            self.ask({"do": "refill", "seed": step.refill})
        message = {**step.message, **call.message, "options": options}
        return Answer.of(*subject.ask(message, call.fds))

    @contextlib.contextmanager
    def made(
        self, op: Op, case: Case, subject: Subject, relation: str | None = None
    ) -> Iterator[tuple[list[HandedOver], dict[str, Any]]]:
        """A case's calls, as what the worker is told of their inputs, and their options."""
        request = {
            "do": "make",
            "op": op.name,
            "file": str(self.files[op.name]),
            "case": case.to_json(),
            "device": subject.device,
            "share": not subject.exact,
            "relation": relation,
            "extra_units": int(subject.interpreted and case.dtype == "bf16"),
        }
        made, fds = self.ask(request)
        try:
            rest, calls = list(fds), []
            for message in made["calls"]:
                count = len(message["inputs"]) if rest else 0
                calls.append(HandedOver(message, tuple(rest[:count])))
                rest = rest[count:]
            yield calls, made["options"]
        finally:
            close(fds)
            subject.release()

    def _reply(self, message: dict[str, Any]) -> dict[str, Any]:
        return self.ask(message)[0]

    def compare(
        self, answer: Answer, number: int = 0, repeat: str = "", timed: bool = False
    ) -> dict[str, Any]:
        """The comparison's answer about one result, whose descriptors it closes."""
        about = {"call": number, "repeat": repeat, "timed": timed}
        try:
            request = {"do": "compare", **about, **answer.message()}
            return self.ask(request, answer.fds)[0]
        finally:
            close(answer.fds)

    def compiled(self, sha256: str) -> Path:
        """Where the processes of one text keep what they compile. No other text's process can
        write there: a candidate can spoil its own cache only."""
        folder = (self.settings.cache or self.folder) / sha256
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        return folder

    def cell(self, folder: Path, cache: Path, gpu: bool) -> Cell | None:
        """What a worker is confined to, unless the user has said that it is not to be."""
        if self.confinement is None:
            return None
        named = [os.environ.get("CUDA_HOME"), *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
        libraries = [path for name in named if name and (path := Path(name)).is_absolute()]
        readable = (Path(__file__).parent, *libraries)
        return Cell(self.confinement, folder, readable, (cache,), gpu)

    def nursery(self, interpreted: bool) -> Nursery:
        """Where workers come from: Triton has to know from its import on whether it interprets."""
        if interpreted not in self._nurseries:
            self._nurseries[interpreted] = Nursery(nursery_environment(interpreted), self.folder)
        return self._nurseries[interpreted]

    @property
    def others_memory(self) -> float:
        """The share of the GPU's memory that processes other than the comparison hold."""
        return float(self._reply({"do": "memory"})["others"])

    def _comparison(self) -> Process:
        folder = self.folder / "comparison"
        return spawn("pytest_autokernel.comparison", _comparison_environment(), folder)

    def ask(
        self, message: dict[str, Any], fds: tuple[int, ...] = ()
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        """A request to the comparison process. One that dies is no answer, and leaves another."""
        try:
            reply, out = self.comparison.ask(message, fds, COMPARISON_TIMEOUT_S)
        except (Died, TimedOut) as error:
            self.comparison.close()
            self.comparison = self._comparison()
            raise JudgeError(f"the comparison process failed: {error}") from error
        if "failed" in reply:
            raise JudgeError(reply["failed"])
        return reply, out


def _confinement(settings: Settings) -> Confinement | None:
    if settings.sandbox == "off":
        return None
    system = probe()
    if settings.sandbox == "require" and system.missing:
        raise JudgeError(
            f"--autokernel-sandbox=require: this system has {'; '.join(system.missing)}; "
            "use auto to judge all the same"
        )
    return system


def _prune(cache: Path) -> None:
    """Forget what was compiled for texts that were not judged for long."""
    if not cache.is_dir():
        return
    texts = (f for f in cache.iterdir() if len(f.name) == len(hashlib.sha256().hexdigest()))
    used = sorted(texts, key=lambda f: f.stat().st_mtime)
    for folder in used[:-MOST_CACHED]:
        shutil.rmtree(folder, ignore_errors=True)


def derived_seed(seed: int, *words: str) -> int:
    """A seed for one purpose, from the run's: the same for the same words, alike for no others."""
    text = "/".join([str(seed), *words])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())


def _comparison_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTHON"))}
