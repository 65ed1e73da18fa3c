"""The units of systemd/: systemd accepts them, they confine the service, and it says when it is ready."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

from brain_dist.common.notify import notify

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
UNITS = ("brain_dist-serve@.service", "brain_dist-dicom.service")
PROGRAM = "/opt/brain_dist/bin/brain-dist"


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Copies whose program exists; the template as an instance."""
    names = []
    for unit in UNITS:
        text = (ROOT / "systemd" / unit).read_text()
        assert f"ExecStart={PROGRAM} " in text
        for name in {unit, unit.replace("@", "@a")}:
            (tmp_path / name).write_text(text.replace(PROGRAM, "/bin/true"))
        names.append(unit.replace("@", "@a"))
    return names


@needs_systemd
def test_systemd_accepts_the_units(units: list[str], tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in units]
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, check=False
    )
    about_ours = [line for line in result.stderr.splitlines() if "brain_dist" in line]
    assert about_ours == []
    assert result.returncode == 0


@needs_systemd
def test_units_are_confined(units: list[str], tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in units]
    threshold = ["--offline=true", "--threshold=15"]  # tenths; 92 is a unit without any limits
    result = subprocess.run(
        ["systemd-analyze", "security", *threshold, *paths], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert result.stdout.count("Overall exposure level") == len(units)


def test_options_of_the_units_exist() -> None:
    for unit in UNITS:
        line = next(
            each for each in (ROOT / "systemd" / unit).read_text().splitlines() if each.startswith("ExecStart=")
        )
        verb = line.split()[1]
        source = (ROOT / "brain_dist" / f"{verb}.py").read_text()
        for option in [word for word in line.split() if word.startswith("--")]:
            assert f'"{option}"' in source or f"    {option[2:].replace('-', '_')}:" in source, f"{unit}: {option}"


@pytest.mark.parametrize("abstract", [False, True])
def test_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"brain_dist-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"\0{name}" if abstract else name)
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        notify("READY=1")
        assert channel.recv(64) == b"READY=1"
    notify("READY=1")  # nobody listens any more
