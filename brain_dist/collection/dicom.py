"""DICOM files: frames and facts from the header, and frames as 8-bit gray pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from brain_dist.collection.pixels import BadImage, check_size, to_8_bit
from brain_dist.collection.recipes import RecipePart

MAX_FRAMES = 10_000
# attribute → the DICOM element it is read from
_FACTS = {
    "slice": "InstanceNumber",
    "series": "SeriesDescription",
    "manufacturer": "Manufacturer",
    "field_strength": "MagneticFieldStrength",
    "sex": "PatientSex",
    "age": "PatientAge",
}


def _read(file: BinaryIO, **options: Any) -> Any:
    import pydicom

    try:
        data = pydicom.dcmread(file, **options)
    except pydicom.errors.InvalidDicomError as error:
        raise BadImage("is no DICOM file (no mark DICM at byte 128)") from error
    if not data.get("Rows") or not data.get("Columns"):
        raise BadImage("is a DICOM file without a picture")
    check_size(data.Columns, data.Rows)
    return data


def read_header(file: BinaryIO) -> tuple[list[tuple[int | None, dict[str, Any]]], str | None]:
    """(frames: number from 1 on, or None in a file of one, and facts of each; the patient's or else the study's id)."""
    wanted = ["Rows", "Columns", "NumberOfFrames", "PatientID", "StudyInstanceUID", *_FACTS.values()]
    data = _read(file, stop_before_pixels=True, specific_tags=wanted)
    frames = int(data.get("NumberOfFrames") or 1)
    if not 1 <= frames <= MAX_FRAMES:
        raise BadImage(f"says that it holds {frames} frames")
    facts = {name: value for name, keyword in _FACTS.items() if (value := _fact(data, keyword)) is not None}
    numbered: list[tuple[int | None, dict[str, Any]]] = [(None, facts)]
    if frames > 1:
        numbered = [(frame, {**facts, "frame": frame}) for frame in range(1, frames + 1)]
    patient = _fact(data, "PatientID") or _fact(data, "StudyInstanceUID")
    return numbered, None if patient is None else str(patient)


def _fact(data: Any, keyword: str) -> str | int | float | None:
    """An element's value as JSON can hold it; None where it is empty or makes no sense."""
    try:
        value = data.get(keyword)
        if isinstance(value, (int, float)):
            return (int(value) if float(value).is_integer() else float(value)) if math.isfinite(value) else None
        return str(value).encode("utf-8", "replace").decode().strip() or None if value is not None else None
    except (TypeError, ValueError):
        return None


def read_pixels(file: BinaryIO, part: RecipePart) -> Callable[[int | None], tuple[np.ndarray, str]]:
    """Frame number → (uint8 [H, W] after rescale, window and MONOCHROME1's inversion, type of the stored values)."""
    from pydicom.pixels import apply_rescale, pixel_array

    data = _read(file)
    kind = str(data.get("PhotometricInterpretation"))
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadImage(f"is no gray picture (photometric interpretation {kind})")

    def pixels(frame: int | None) -> tuple[np.ndarray, str]:
        index = (frame or 1) - 1
        stored = pixel_array(data, index=index)
        values = apply_rescale(stored, _of_frame(data, index, "PixelValueTransformationSequence"))
        if "file" in part.window:
            gray = _own_window(values, _of_frame(data, index, "FrameVOILUTSequence"))
        else:
            gray = to_8_bit(values, part.window)
        return (255 - gray if kind == "MONOCHROME1" else gray), str(stored.dtype)

    return pixels


def _of_frame(data: Any, index: int, sequence: str) -> Any:
    """Where an enhanced multi-frame file keeps what ``sequence`` holds for a frame; elsewhere the file itself."""
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*own[index : index + 1], *(data.get("SharedFunctionalGroupsSequence") or [])]:
        if group.get(sequence):
            return group[sequence][0]
    return data


def _own_window(values: np.ndarray, data: Any) -> np.ndarray:
    """Values → uint8 by the file's own VOI LUT or first window (DICOM PS3.3, C.11.2)."""
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    if data.get("VOILUTSequence"):
        lut = data.VOILUTSequence[0]
        raw, (count, first, bits) = lut.LUTData, lut.LUTDescriptor
        if isinstance(raw, bytes):  # words, or bytes where they are enough for 8-bit entries
            raw = np.frombuffer(raw, "u1" if len(raw) < 2 * (count or 2**16) else "<u2")
        entries = np.asarray(raw)
        found = entries[np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(int)]
        gray = found * 255 / (2**bits - 1)
    elif "WindowCenter" in data and "WindowWidth" in data:
        view = Dataset()  # 8 unsigned bits, so that the formula's output is 0 to 255
        view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = "MONOCHROME2", 8, 0
        view.WindowCenter, view.WindowWidth = data.WindowCenter, data.WindowWidth
        view.VOILUTFunction = data.get("VOILUTFunction") or "LINEAR"
        gray = apply_windowing(values, view)
    else:
        raise BadImage("states no window of its own; take another `window` in the recipe")
    return np.rint(np.clip(gray, 0, 255)).astype(np.uint8)
