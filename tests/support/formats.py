"""One head in every file format that prediction reads, and files that it cannot read."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
from pictures import draw
from PIL import Image
from scans import write_dicom, write_nifti


def write_formats(folder: Path) -> dict[str, int]:
    """Write a head in every format; returns the number of slices of each file, 0 for one that cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    head = draw(3)
    gray = np.asarray(head)
    for name in ("a.jpg", "b.png", "c.bmp", "d.tif", "e.webp", "f.gif"):
        head.save(folder / name)
    Image.fromarray(gray.astype(np.uint16) * 200).save(folder / "wide.png")
    Image.merge("CMYK", [head] * 4).save(folder / "cmyk.jpg")
    stack = np.stack([np.asarray(draw(number)) for number in range(5)]).astype(np.uint16)
    write_dicom(folder / "g.dcm", stack[0])
    write_dicom(folder / "IM0001", stack[0])
    write_dicom(folder / "frames.dcm", stack)
    volume = np.transpose(stack.astype(np.int16), (2, 1, 0))[:, ::-1]
    write_nifti(folder / "volume.nii", volume)
    write_nifti(folder / "volume2.nii.gz", volume)
    np.save(folder / "array.npy", gray)
    np.save(folder / "arrays.npy", stack)
    with zipfile.ZipFile(folder / "some.zip", "w") as archive:
        archive.write(folder / "a.jpg", "inner/a.jpg")
        archive.write(folder / "IM0001", "inner/IM0001")
        archive.writestr("readme.txt", "not an image")
    with tarfile.open(folder / "some.tar", "w") as tar:
        tar.add(folder / "b.png", "b.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "truncated.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "page.jpg").write_text("<!doctype html><p>not found</p>")
    singles = ("a.jpg", "b.png", "c.bmp", "d.tif", "e.webp", "f.gif", "wide.png", "cmyk.jpg", "g.dcm", "IM0001",
               "array.npy", "some.zip/inner/a.jpg", "some.zip/inner/IM0001", "some.tar/b.png")  # fmt: skip
    several = ("frames.dcm", "volume.nii", "volume2.nii.gz", "arrays.npy")
    bad = ("empty.png", "truncated.jpg", "page.jpg")
    return dict.fromkeys(singles, 1) | dict.fromkeys(several, 5) | dict.fromkeys(bad, 0)
