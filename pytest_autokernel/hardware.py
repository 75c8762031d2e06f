"""The device that kernels are judged on, and what it was measured to reach."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_autokernel.clock import Clock
from pytest_autokernel.gpu import (
    Ceilings,
    Device,
    GpuSpec,
    find_spec,
    load_specs,
    stem,
    to_yaml,
)
from pytest_autokernel.ops import SHIPPED
from pytest_autokernel.settings import Settings
from pytest_autokernel.subjects import Place
from pytest_autokernel.verdict import JudgeError

# What a GPU without a spec is measured by: ceilings.py has the products of these.
KINDS = ("fp64", "fp32", "tf32", "bf16", "fp16")
GPU_WORKING_SET = 2**31  # bytes: far beyond any L2 cache

Ask = Callable[[dict[str, Any]], dict[str, Any]]


class Hardware:
    """What the comparison process, asked by `ask`, sees and measures. `folder` keeps what was
    measured of a GPU without a spec. Raises JudgeError where a GPU is insisted on and none is."""

    def __init__(self, settings: Settings, folder: Path, ask: Ask) -> None:
        self._settings, self._folder, self._ask = settings, folder, ask
        self._ceilings: dict[tuple[str, int, str], Ceilings] = {}
        self.gpu = self._gpu()
        self.measured_spec: str | None = None  # what a GPU without a spec was measured to reach
        self.spec = self._spec()
        self.clock = Clock.of(self.gpu.uuid) if self.gpu else None

    def ceilings(self, device: Place, nbytes: int, dtype: str, again: bool = False) -> Ceilings:
        """What the device reaches; on the CPU, whose caches are large beside a case, on a working
        set of the same size. Measured once per run, with nothing else running; `again` measures
        once more and keeps the better of each figure, since a busy machine shows less than it has.
        """
        working_set = nbytes if device == "cpu" else GPU_WORKING_SET
        key = (device, working_set, dtype)
        if again or key not in self._ceilings:
            cpus = list(self._settings.cpus)
            message = {"device": device, "nbytes": working_set, "dtype": dtype, "cpus": cpus}
            reached = self._ask({"do": "ceilings", **message})
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

    @functools.cached_property
    def floor_us(self) -> float:
        """What two events around nothing read on the GPU."""
        return float(self._ask({"do": "floor", "clear_bytes": self.clear_bytes})["floor_us"])

    @property
    def clear_bytes(self) -> int:
        """What clears a GPU's L2 cache: twice its size; of the driver's figure and the data
        sheet's the larger, since ROCm reports one die's share of it."""
        sheet = self.spec.l2_mb * 2**20 if self.spec else 0
        return 2 * int(max(self.gpu.l2_bytes if self.gpu else 0, sheet))

    @property
    def gpu_memory(self) -> int | None:
        """Bytes."""
        return self.gpu.memory_bytes if self.gpu else None

    def _gpu(self) -> Device | None:
        found = self._ask({"do": "device"})["device"]
        if found is None and self._settings.device == "cuda":
            raise JudgeError("--autokernel-device=cuda: no CUDA device was found; use cpu or auto")
        return None if found is None or self._settings.device == "cpu" else Device(**found)

    def _spec(self) -> GpuSpec | None:
        if self.gpu is None:
            return None
        kept = self._folder / "gpu_specs"
        folders = (SHIPPED / "gpu_specs", kept, self._settings.rootdir / "gpu_specs")
        return find_spec(self.gpu, load_specs(folders)) or self._measured_spec(self.gpu, kept)

    def _measured_spec(self, device: Device, folder: Path) -> GpuSpec | None:
        """The spec of a GPU that nobody described: measured, and kept for the next run."""
        text = to_yaml(device, [self.ceilings("cuda", GPU_WORKING_SET, d) for d in KINDS])
        self.measured_spec = text
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"part.{os.getpid()}"  # another run may measure the same
            part.write_text(text, encoding="utf-8")
            part.replace(folder / f"{stem(device)}.yaml")
        return find_spec(device, load_specs((SHIPPED / "gpu_specs", folder)))
