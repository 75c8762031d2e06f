"""The SM clock of an NVIDIA GPU, and what holds it down, as the driver tells it (NVML).

Read by the judge's own process, beside the bursts that a kernel's process takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import pynvml

# What comes and goes with the machine and not with the kernel. The cap on power is not among
# them: a kernel that draws more pays for it with its own time.
THROTTLED = {
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "the driver's thermal slowdown",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "the hardware's thermal slowdown",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "the power supply's brake",
}


@dataclass(frozen=True)
class Reading:
    """The clock at one moment, and why it was throttled (empty: it was not)."""

    sm_mhz: int
    throttled: str = ""


class Clock:
    """One GPU's clock."""

    def __init__(self, uuid: str) -> None:
        """Raises pynvml.NVMLError for a GPU that NVML does not know (a MIG slice, an AMD one)."""
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.driver = str(pynvml.nvmlSystemGetDriverVersion())
        self.max_mhz = int(pynvml.nvmlDeviceGetMaxClockInfo(self._handle, pynvml.NVML_CLOCK_SM))
        self.read()

    @staticmethod
    def of(uuid: str) -> Clock | None:
        """The clock, or None where it cannot be read."""
        try:
            return Clock(uuid)
        except pynvml.NVMLError:
            return None

    def read(self) -> Reading:
        mhz = pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)
        bits = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        return Reading(int(mhz), ", ".join(words for bit, words in THROTTLED.items() if bits & bit))
