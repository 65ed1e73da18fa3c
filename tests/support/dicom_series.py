"""DICOM series of drawn heads with a patient's data, and what Debian's tools say about a report."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from pictures import draw
from pydicom.uid import UID
from scans import write_dicom

# each of them may stand in a report only, never in a log or a file's name
PATIENT = {"PatientName": "Müller^Zoë", "PatientID": "ID-40917", "AccessionNumber": "ACC-5528", "StudyID": "ST-316"}
ROOT = "1.2.826.0.1.3680043.8.498.7."


def write_series(folder: Path, number: int, images: int, *, first: int = 0, **elements: Any) -> list[Path]:
    """Write ``images`` MR images of drawn heads as series ``number`` of one study of :data:`PATIENT`."""
    paths = []
    for index in range(first, first + images):
        about = {
            "SpecificCharacterSet": "ISO_IR 100",
            **PATIENT,
            "PatientBirthDate": "19610412",
            "PatientSex": "F",
            "StudyDate": "20240131",
            "StudyTime": "101500",
            "StudyInstanceUID": f"{ROOT}1",
            "SeriesInstanceUID": f"{ROOT}1.{number}",
            "SOPInstanceUID": UID(f"{ROOT}1.{number}.{index + 1}"),
            "SeriesNumber": number,
            "InstanceNumber": index + 1,
            "Modality": "MR",
        } | elements
        pixels = np.asarray(draw(10 * number + index)).astype(np.uint16)
        paths.append(write_dicom(folder / f"s{number}-{index:03d}.dcm", pixels, **about))
    return paths


def errors_of(path: Path) -> list[str]:
    """What dciodvfy finds wrong in a DICOM file."""
    result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]


def dump(path: Path) -> str:
    """A report as dcmtk's dsrdump prints it, with long texts whole."""
    command = ["dsrdump", "+U8", "+Pl", "+Pu", str(path)]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode()
