"""What an op's baselines took, kept from run to run: shown with its age, and read by nothing that
decides. Small JSON files in the cache, where no kernel's process can write."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_autokernel.baselines import LIBRARIES
from pytest_autokernel.judge import Judge
from pytest_autokernel.machine import cpu_name, package_version
from pytest_autokernel.op import Case, Op
from pytest_autokernel.subjects import Place


@dataclass(frozen=True)
class Kept:
    """A median in microseconds, and how long ago it was taken, in seconds."""

    time_us: float
    age_s: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class BaselineTimes:
    """Those of one case on one device, under the versions and the reference file of today."""

    def __init__(self, judge: Judge, op: Op, case: Case, device: Place, l2: str) -> None:
        self.folder = judge.settings.cache / "baselines" if judge.settings.cache else None
        gpu = judge.hardware.gpu if device == "cuda" else None
        self.about = {
            "op": op.name,
            "reference": hashlib.sha256(judge.files[op.name].read_bytes()).hexdigest(),
            "case": [dict(case.dims), case.dtype, case.variant, case.layout, case.fill],
            "l2": l2,
            "device": gpu.name if gpu else cpu_name(),
            "threads": None if gpu else len(judge.settings.cpus),
            "torch": package_version("torch"),
            "triton": package_version("triton"),
        }

    def keep(self, times_us: Mapping[str, float]) -> None:
        """Write down what was measured just now. A cache that cannot be written is none."""
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, time_us in times_us.items():
                key = self._key(name)
                found = {"key": key, "time_us": time_us, "measured": time.time()}
                file = self._file(key)
                part = file.with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps(found), encoding="utf-8")
                part.replace(file)

    def kept(self, names: Collection[str]) -> dict[str, Kept]:
        """Of these baselines those that an earlier run has measured."""
        found = {name: self._read(self._key(name)) for name in names}
        return {name: kept for name, kept in found.items() if kept is not None}

    def _key(self, name: str) -> dict[str, Any]:
        package = LIBRARIES.get(name)
        library = package_version(package) if package else None
        return {**self.about, "baseline": name, "library": library}

    def _file(self, key: dict[str, Any]) -> Path:
        assert self.folder is not None
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def _read(self, key: dict[str, Any]) -> Kept | None:
        """None for a file that is not there, or is not one of ours."""
        if self.folder is None:
            return None
        try:
            found = json.loads(self._file(key).read_text(encoding="utf-8"))
            time_us, age_s = float(found["time_us"]), time.time() - float(found["measured"])
            ours = found["key"] == key
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return Kept(time_us, age_s) if ours and 0 < time_us < 1e12 and 0 <= age_s < 1e10 else None
