"""The GPU, what its data sheet says of it, and how near a kernel comes to that: the roofline.

Pure but for `describe_device`, which asks torch. A spec is one YAML file of a `gpu_specs/`
folder, in the form of schema.json there. Recognising a GPU is exact (name as the driver reports
it, architecture, memory, multiprocessors), so that no device is ever taken for another: a MIG
slice or a laptop's namesake has no spec rather than a wrong one.

Not covered: measuring what a device reaches (ceilings.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jsonschema
import yaml

# A vendor's GB of memory is 2^30 bytes for HBM and up to 7 % less for GDDR with ECC, and the
# driver keeps a little: from 0.93 * 10^9 bytes (A10G: 0.99, T4: 0.99) to 2^30.
LEAST_BYTES_PER_GB, MOST_BYTES_PER_GB = 0.93e9, 2**30


class GpuSpecError(Exception):
    """A spec file that is not of the schema's form."""


@dataclass(frozen=True)
class Device:
    """A GPU as the driver describes it; `capability` is "9.0" for CUDA, "gfx942" for ROCm.

    `l2_bytes` is what the driver says: on an MI300X that is one die's 4 MiB of 32. `shared_bytes`
    is what one block may have of shared memory when it asks for it; None where torch does not say.
    """

    name: str
    capability: str
    memory_bytes: int
    sms: int
    l2_bytes: int
    uuid: str = ""
    shared_bytes: int | None = None


@dataclass(frozen=True)
class GpuSpec:
    """What a vendor's documents say of a GPU; the fields are schema.json's."""

    name: str
    device_names: tuple[str, ...]
    capability: str
    memory_gb: float
    sms: int
    l2_mb: float
    bandwidth_gb_s: float
    tflops: Mapping[str, float]
    sources: tuple[Mapping[str, Any], ...]
    power_w: float | None = None
    measured: bool = False

    def fits(self, device: Device) -> bool:
        """Whether this is the spec of that very device."""
        least, most = self.memory_gb * LEAST_BYTES_PER_GB, self.memory_gb * MOST_BYTES_PER_GB
        return (
            device.name in self.device_names
            and device.capability == self.capability
            and device.sms == self.sms
            and least <= device.memory_bytes <= most
        )

    def ceilings(self) -> Ceilings:
        """The roof of the data sheet: reading and copying reach the same bandwidth there."""
        bandwidth = self.bandwidth_gb_s
        return Ceilings(
            bandwidth, bandwidth, self.tflops, "measured" if self.measured else "data sheet"
        )


@dataclass(frozen=True)
class Ceilings:
    """The most that a device does: GB/s moved (read and written) by a copy and by reading alone,
    and TFLOP/s by the dtype of the operands."""

    copy_gb_s: float
    read_gb_s: float
    tflops: Mapping[str, float]
    source: Literal["data sheet", "measured"]


@dataclass(frozen=True)
class Roofline:
    """What a kernel reached: GB/s and TFLOP/s by the op's least cost, `pct` of the best possible
    speed, and which of the two ceilings, `roof_gb_s` and `roof_tflops`, bounds that."""

    gb_s: float
    tflops: float
    pct: float
    bound: Literal["memory", "compute"]
    roof_gb_s: float
    roof_tflops: float


def load_specs(folders: Sequence[Path]) -> dict[str, GpuSpec]:
    """The specs of these folders by file name without suffix, a later folder's before and instead
    of an earlier one's. The first folder holds the schema. Raises GpuSpecError."""
    schema = json.loads((folders[0] / "schema.json").read_text())
    check = jsonschema.Draft202012Validator(schema)
    specs: dict[str, GpuSpec] = {}
    for file in (file for folder in reversed(folders) for file in sorted(folder.glob("*.yaml"))):
        if file.stem not in specs:
            specs[file.stem] = _parse(file, check)
    return specs


def _parse(file: Path, check: jsonschema.Draft202012Validator) -> GpuSpec:
    try:
        data = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise GpuSpecError(f"{file}: expected YAML: {error}") from error
    for fault in check.iter_errors(data):
        raise GpuSpecError(f"{file}: {fault.json_path}: {fault.message}; see gpu_specs/schema.json")
    lists = {key: tuple(data[key]) for key in ("device_names", "sources")}
    return GpuSpec(**{**data, **lists})


def find_spec(device: Device, specs: Mapping[str, GpuSpec]) -> GpuSpec | None:
    """The device's spec, by the order of `specs`; None for a device that has none."""
    return next((spec for spec in specs.values() if spec.fits(device)), None)


def no_spec(device: Device) -> str:
    """What to say of a device without a spec."""
    return (
        f"no spec for GPU {device.name!r} (capability={device.capability}, sms={device.sms}, "
        f"memory={device.memory_bytes / 2**30:.1f} GiB): add gpu_specs/{stem(device)}.yaml"
    )


def roofline(
    cost_flops: float,
    cost_bytes: float,
    roof: Literal["copy", "read", "math"],
    dtype: str,
    time_us: float,
    ceilings: Ceilings,
    tf32: bool = False,
) -> Roofline:
    """A time against the best possible one: `max(bytes / bandwidth, flops / peak)` (Williams,
    Waterman and Patterson 2009).

    `roof` is the op's: reading has a ceiling of its own. fp32 counts against the peak without
    tensor cores, unless `tf32` is allowed. A dtype that the device has no units for (bf16 on a
    V100) is computed in fp32.
    """
    bandwidth = ceilings.read_gb_s if roof == "read" else ceilings.copy_gb_s
    units = "tf32" if tf32 and dtype == "fp32" else dtype
    peak = ceilings.tflops.get(units) or ceilings.tflops.get("fp32")
    if not peak:
        known = ", ".join(ceilings.tflops)
        raise ValueError(f"no peak for dtype={dtype}: the {ceilings.source} has {known}")
    memory_us, compute_us = cost_bytes / bandwidth / 1e3, cost_flops / peak / 1e6
    return Roofline(
        gb_s=cost_bytes / time_us / 1e3,
        tflops=cost_flops / time_us / 1e6,
        pct=100 * max(memory_us, compute_us) / time_us,
        bound="memory" if memory_us >= compute_us else "compute",
        roof_gb_s=bandwidth,
        roof_tflops=peak,
    )


def beyond_roof(found: Roofline, ceilings: Ceilings) -> str | None:
    """Why a result cannot be true, or None. A measured ceiling may be beaten, a data sheet not."""
    if found.pct <= 100 or ceilings.source == "measured":
        return None
    return (
        f"{found.pct:.0f} % of the data sheet's roof ({found.bound}): expected at most 100 %; the "
        "kernel left work out, its data lay in a cache, or the op's cost or the spec is wrong"
    )


def to_yaml(device: Device, ceilings: Iterable[Ceilings]) -> str:
    """A spec to contribute for a device without one, from what was measured on it."""
    best = list(ceilings)
    spec = {
        "name": device.name,
        "device_names": [device.name],
        "capability": device.capability,
        "memory_gb": -(-device.memory_bytes // 2**30),
        "sms": device.sms,
        "l2_mb": round(device.l2_bytes / 2**20, 1),
        "bandwidth_gb_s": round(max(max(c.copy_gb_s, c.read_gb_s) for c in best)),
        "tflops": {dtype: round(peak, 1) for c in best for dtype, peak in c.tflops.items()},
        "measured": True,
        "sources": [{"document": "measured by pytest-autokernel", "figures": ["all"]}],
    }
    return f"# gpu_specs/{stem(device)}.yaml\n" + yaml.safe_dump(spec, sort_keys=False)


def stem(device: Device) -> str:
    """What the file of a device's spec is called."""
    words = device.name.lower().replace("nvidia", "").replace("geforce", "").replace("amd", "")
    return "-".join("".join(c if c.isalnum() else " " for c in words).split())


def describe_device() -> dict[str, Any] | None:
    """`Device` as a dictionary, for the current CUDA or ROCm device; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties()
    cuda = f"{found.major}.{found.minor}"
    capability = found.gcnArchName.split(":")[0] if torch.version.hip else cuda
    memory, sms = found.total_memory, found.multi_processor_count
    uuid = f"GPU-{found.uuid}"
    shared = getattr(found, "shared_memory_per_block_optin", None)  # not on ROCm
    return asdict(Device(found.name, capability, memory, sms, found.L2_cache_size, uuid, shared))
