"""The judge, on pytest's side: it hands a case's inputs from the comparison to the candidate
and the results back, and turns what happened into a verdict.

A pass is counted here, from completed and compared calls; it is never reported by anybody.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_autokernel.gpu import Ceilings, Device, GpuSpec, find_spec, load_specs
from pytest_autokernel.op import Case, Op
from pytest_autokernel.ops import SHIPPED, load_op, op_files
from pytest_autokernel.process import Died, Process, TimedOut
from pytest_autokernel.settings import Settings
from pytest_autokernel.subjects import Place, Subject, well_formed
from pytest_autokernel.verdict import CandidateError, JudgeError, Outcome, Verdict

COMPARISON_TIMEOUT_S = 600.0
GPU_WORKING_SET = 2**31  # bytes: far beyond any L2 cache


class Judge:
    """One for a pytest run: the comparison process, the ops, and a folder for workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.files = op_files(settings.rootdir)
        self._ops: dict[str, Op] = {}
        self._ceilings: dict[tuple[str, int, str], Ceilings] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="autokernel-")
        self.folder = Path(self._folder.name)
        (self.folder / "comparison").mkdir()
        self.comparison = Process(
            "pytest_autokernel.comparison",
            _comparison_environment(),
            self.folder / "comparison",
            trusted=True,
        )
        import torch  # noqa: F401 - the ops need it, and here it is loaded while the process above does

        self.gpu = self._gpu()
        self.spec = self._spec()

    def close(self) -> None:
        self.comparison.close()
        self._folder.cleanup()

    def op(self, name: str) -> Op:
        """Raises OpError for an unknown op."""
        if name not in self._ops:
            self._ops[name] = load_op(name, self.files)
        return self._ops[name]

    def check(
        self, subject: Subject, op: Op, case: Case, relation: str | None = None, repeats: int = 1
    ) -> Outcome:
        """Judge one case: the result, or a relation of several, or `repeats` equal results."""
        completed, worst = 0, 0.0
        with self.made(op, case, subject, relation) as (calls, options):
            for number, (metas, fds) in enumerate(calls):
                for repeat in range(repeats):
                    try:
                        message = {"do": "run", "inputs": metas, "options": options}
                        reply, out = subject.ask(message, tuple(fds))
                        reply = well_formed(reply, out)
                    except CandidateError as error:
                        return Outcome(error.verdict, case, completed, reason=error.reason)
                    answer = self.compare(reply, out, number, repeat=repeat > 0)
                    completed += 1
                    worst = max(worst, answer["worst"])
                    if not answer["ok"]:
                        return Outcome(Verdict.FAIL, case, completed, worst, answer["reason"])
            expected = len(calls) * repeats
        if completed != expected or not completed:
            raise JudgeError(f"{completed} calls were compared where {expected} were due")
        return Outcome(Verdict.PASS, case, completed, worst)

    @contextlib.contextmanager
    def made(
        self, op: Op, case: Case, subject: Subject, relation: str | None = None
    ) -> Iterator[tuple[list[tuple[list[dict[str, Any]], list[int]]], dict[str, Any]]]:
        """A case's calls, each as metas and descriptors of its inputs, and their options."""
        request = {
            "do": "make",
            "op": op.name,
            "file": str(self.files[op.name]),
            "case": case.to_json(),
            "device": subject.device,
            "relation": relation,
            "extra_units": int(subject.interpreted and case.dtype == "bf16"),
        }
        made, fds = self.ask(request)
        try:
            rest, calls = list(fds), []
            for metas in made["calls"]:
                calls.append((metas, rest[: len(metas)]))
                rest = rest[len(metas) :]
            yield calls, made["options"]
        finally:
            for fd in fds:
                os.close(fd)

    def compare(
        self, reply: dict[str, Any], out: Sequence[int], number: int = 0, repeat: bool = False
    ) -> dict[str, Any]:
        """The comparison's answer about one result, whose descriptors it closes."""
        try:
            return self.ask(
                {"do": "compare", "call": number, "repeat": repeat, **reply}, tuple(out)
            )[0]
        finally:
            for fd in out:
                os.close(fd)

    def ceilings(self, device: Place, nbytes: int, dtype: str, again: bool = False) -> Ceilings:
        """What the device reaches; on the CPU, whose caches are large beside a case, on a working
        set of the same size. Measured once per run, with nothing else running; `again` measures
        once more and keeps the better of each figure, since a busy machine shows less than it has.
        """
        working_set = nbytes if device == "cpu" else GPU_WORKING_SET
        key = (device, working_set, dtype)
        if again or key not in self._ceilings:
            cpus = list(self.settings.cpus)
            message = {"device": device, "nbytes": working_set, "dtype": dtype, "cpus": cpus}
            reached, _ = self.ask({"do": "ceilings", **message})
            new = Ceilings(
                reached["copy_gb_s"], reached["read_gb_s"], {dtype: reached["tflops"]}, "measured"
            )
            old = self._ceilings.get(key, new)
            self._ceilings[key] = Ceilings(
                copy_gb_s=max(old.copy_gb_s, new.copy_gb_s),
                read_gb_s=max(old.read_gb_s, new.read_gb_s),
                tflops={dtype: max(old.tflops[dtype], new.tflops[dtype])},
                source="measured",
            )
        return self._ceilings[key]

    def ask(
        self, message: dict[str, Any], fds: tuple[int, ...] = ()
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        """A request to the comparison process."""
        try:
            return self.comparison.ask(message, fds, COMPARISON_TIMEOUT_S)
        except (Died, TimedOut) as error:
            raise JudgeError(f"the comparison process failed: {error}") from error

    def _gpu(self) -> Device | None:
        found = self.ask({"do": "device"})[0]["device"]
        if found is None and self.settings.device == "cuda":
            raise JudgeError("--autokernel-device=cuda: no CUDA device was found; use cpu or auto")
        return None if found is None or self.settings.device == "cpu" else Device(**found)

    def _spec(self) -> GpuSpec | None:
        if self.gpu is None:
            return None
        folders = (SHIPPED / "gpu_specs", self.settings.rootdir / "gpu_specs")
        return find_spec(self.gpu, load_specs(folders))


def derived_seed(seed: int, *words: str) -> int:
    """A seed for one purpose, from the run's: the same for the same words, alike for no others."""
    text = "/".join([str(seed), *words])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())


def _comparison_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTHON"))}
