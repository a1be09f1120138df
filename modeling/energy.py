"""Energy by the machine's own counters: Linux's powercap (RAPL) for processors, NVML for NVIDIA devices.

They count the whole machine, other programs' share included. Where neither can be read (virtual machines mostly have no
counters, and powercap wants leave to read) there is no figure, rather than one from a table.
"""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since it was made, counted at each `joules()`: call it at least once an hour, as counters wrap."""

    def __init__(self, powercap: Path = POWERCAP):
        self._zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._total = 0.0
        self._before = self._read()

    def joules(self) -> float | None:
        """Energy so far; None where nothing counts it."""
        now = self._read()
        for name, value in now.items():
            if name in self._before:
                spent = value - self._before[name]
                self._total += spent if spent >= 0 else spent + self._range(name)
        self._before = now
        return self._total if now else None

    def _read(self) -> dict[str, float]:
        found = {}
        for zone in self._zones:
            try:
                found[str(zone)] = int((zone / "energy_uj").read_text()) / 1e6
            except (OSError, ValueError):
                continue
        return {**found, **_devices()}

    def _range(self, name: str) -> float:
        """What a counter reaches before it begins again at 0."""
        try:
            return int((Path(name) / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError):
            return 0.0


def _devices() -> dict[str, float]:
    """Joules that each NVIDIA device has used since its driver was loaded."""
    try:
        import pynvml  # nvidia-ml-py, which torch's CUDA builds use too

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return {f"device {i}": pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3 for i, h in enumerate(handles)}
    except Exception:  # no package, no driver, or a device that does not count
        return {}
