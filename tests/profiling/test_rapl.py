"""The processor's energy, from a folder like that of Linux's powercap."""

from __future__ import annotations

from pathlib import Path

import pytest

from brain_dist.profiling.rapl import ProcessorEnergy

LIMIT = 262_143_328_850


def zone(folder: Path, name: str, kind: str, microjoules: int) -> Path:
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "name").write_text(f"{kind}\n")
    (path / "max_energy_range_uj").write_text(f"{LIMIT}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_packages_add_up_and_their_parts_do_not_count_twice(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", LIMIT - 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)  # the same package by another interface
    energy = ProcessorEnergy(tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 9_500_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 500_000)  # the counter started again
    zone(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    assert energy.joules() == pytest.approx(4.5 + 1.5)


def test_without_readable_counters_nothing_is_measured(tmp_path: Path) -> None:
    assert ProcessorEnergy(tmp_path / "missing").joules() is None
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj"
    energy = ProcessorEnergy(tmp_path)
    counter.unlink()
    assert energy.joules() is None
    assert ProcessorEnergy(tmp_path).joules() is None
