"""The node beside a real PACS: Debian's Orthanc sends a series and gets the report back into the same study."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import highdicom
import pydicom
import pytest
from dicom_series import ROOT, write_series
from helpers import free_ports
from test_dicom_listen import node, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("Orthanc"), reason="needs Debian's orthanc"),
]


class Orthanc:
    """An Orthanc of its own on this machine's loopback address."""

    def __init__(self, folder: Path, node_port: int) -> None:
        self.folder, (self.web, self.dicom) = folder, free_ports(2)
        settings = {
            "Name": "TEST",
            "StorageDirectory": str(folder / "orthanc"),
            "IndexDirectory": str(folder / "orthanc"),
            "HttpPort": self.web,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "DicomModalities": {"brain": ["BRAIN_DIST", "127.0.0.1", node_port]},
            "Plugins": [],
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        log = (folder / "orthanc.log").open("w")
        self.process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)

    def ask(self, path: str, body: bytes | None = None) -> Any:
        """The answer of its REST interface, as JSON or bytes."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.web}/{path}", data=body)
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
        return json.loads(content) if response.headers["Content-Type"].startswith("application/json") else content

    def is_ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "orthanc.log").read_text()
        try:
            return bool(self.ask("system"))
        except OSError:
            return False


@pytest.fixture
def ports() -> list[int]:
    return free_ports(1)


@pytest.fixture
def pacs(tmp_path: Path, ports: list[int]) -> Iterator[Orthanc]:
    orthanc = Orthanc(tmp_path, ports[0])
    try:
        wait_for(orthanc.is_ready)
        yield orthanc
    finally:
        orthanc.process.kill()
        orthanc.process.wait()


def test_report_comes_back_into_the_study(trained_run: Path, pacs: Orthanc, ports: list[int], tmp_path: Path) -> None:
    instances = [pacs.ask("instances", path.read_bytes())["ID"] for path in write_series(tmp_path / "mr", 1, 4)]
    peer = f"127.0.0.1:{pacs.dicom}:ORTHANC"
    with node(trained_run, tmp_path, "--to", peer, port=ports[0]) as listener:
        assert pacs.ask("modalities/brain/echo", b"{}") == {}
        assert pacs.ask("modalities/brain/store", json.dumps(instances).encode())["FailedInstancesCount"] == 0
        (added,) = wait_for(lambda: set(pacs.ask("instances")) - set(instances))
        assert pacs.ask("modalities/brain/store", json.dumps(instances).encode())["FailedInstancesCount"] == 0
        wait_for(lambda: listener.text.count("report 2.25.") == 2)
        wait_for(lambda: not list((listener.store / "unsent").iterdir()))
        assert listener.stop() == 0
    assert len(pacs.ask("instances")) == 5  # sent twice, it is one instance
    (study,) = pacs.ask("studies")
    assert {each["MainDicomTags"]["Modality"] for each in map(pacs.ask, _series(pacs, study))} == {"MR", "SR"}
    tags = pacs.ask(f"instances/{added}/simplified-tags")
    assert tags["StudyInstanceUID"] == f"{ROOT}1"
    assert tags["PatientID"] == "ID-40917"
    assert tags["VerificationFlag"] == "UNVERIFIED"
    (tmp_path / "sr.dcm").write_bytes(pacs.ask(f"instances/{added}/file"))
    report = highdicom.sr.srread(tmp_path / "sr.dcm")
    assert str(pydicom.dcmread(tmp_path / "sr.dcm").PatientName) == "Müller^Zoë"
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["Series", *(f"Image {n}" for n in range(1, 5))]


def _series(pacs: Orthanc, study: str) -> list[str]:
    return [f"series/{each}" for each in pacs.ask(f"studies/{study}")["Series"]]
