"""Damaged files through one prediction: no traceback, every file has a row, every good one an answer."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from damage import mutate
from helpers import in_process
from pictures import draw
from PIL import Image
from scans import write_dicom, write_nifti

GOOD = 10


def originals(folder: Path) -> list[Path]:
    """A JPEG, a PNG, a DICOM and a NIfTI file."""
    folder.mkdir()
    head = draw(8)
    head.save(folder / "head.jpg", quality=90)
    Image.merge("RGB", [head] * 3).save(folder / "head.png")
    stack = np.stack([np.asarray(draw(number)) for number in range(2)]).astype(np.uint16)
    write_dicom(folder / "head.dcm", stack, Modality="MR", WindowCenter=100, WindowWidth=200)
    write_nifti(folder / "head.nii", np.transpose(stack.astype(np.int16), (2, 1, 0)))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_files_never_stop_a_prediction(trained_run: Path, tmp_path: Path, count: int) -> None:
    files, rng = originals(tmp_path / "originals"), random.Random(count)
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(count):
        original = files[number % len(files)]
        (folder / f"{number:03d}{original.suffix}").write_bytes(mutate(original.read_bytes(), rng))
    for number in range(GOOD):
        original = files[number % len(files)]
        (folder / f"good{number}{original.suffix}").write_bytes(original.read_bytes())
    out = tmp_path / "table.csv"
    result = in_process("predict", str(trained_run), str(folder), "--out", str(out), "--batch", "32", expect=3)
    assert "Traceback" not in result.err
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {Path(row["path"]).name for row in rows} == {path.name for path in folder.iterdir()}
    assert all(bool(row["error"]) != bool(row["label"]) for row in rows)
    assert not any(row["error"] for row in rows if "good" in row["path"])
    assert sum(bool(row["error"]) for row in rows) >= count // 10
