"""Energy of the processor's packages, by the counters of Linux's powercap (RAPL): Intel and, since Linux 5.8, AMD."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class ProcessorEnergy:
    """Joules of all processor packages since this object was made, other programs' included.

    The counters are microjoules and start again at ``max_energy_range_uj``, after minutes at full load; within one
    measurement that may happen once. Since Linux 5.10 only root may read them unless an administrator allows others.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        """Read the counters for the first time; ``folder`` is where powercap has its zones."""
        self._zones = [
            zone for zone in sorted(folder.glob("intel-rapl:*")) if _text(zone / "name").startswith("package")
        ]
        self._start = [_number(zone / "energy_uj") for zone in self._zones]

    def joules(self) -> float | None:
        """Joules since the start; None if the machine has no counters, or they may not be read."""
        total = 0
        for zone, start in zip(self._zones, self._start, strict=True):
            now, limit = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
            if start is None or now is None or (now < start and limit is None):
                return None
            total += now - start + (limit or 0) * (now < start)
        return total / 1e6 if self._zones else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None
