"""DICOM files: frames and attributes from the header, and frames as 8-bit gray pixels."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from brain_dist.collection.decoding import BadImage, check_scans, check_size, inflate, to_8_bit
from brain_dist.collection.pixels import Contents, SlicePixels
from brain_dist.collection.recipes import RecipePart

SUFFIXES = (".dcm",)  # other files are recognised by their content, see is_dicom
MAX_FRAMES = 10_000
MAX_INFLATED = 2**27  # bytes of a deflated file: a picture of MAX_PIXELS 16-bit values
# attribute → keyword of the DICOM element
_ATTRIBUTES = {
    "slice": "InstanceNumber",
    "series": "SeriesDescription",
    "manufacturer": "Manufacturer",
    "field_strength": "MagneticFieldStrength",
    "sex": "PatientSex",
    "age": "PatientAge",
}


def is_dicom(path: Path) -> bool:
    """Whether a file has the prefix of a DICOM file and is not the index of a medium; for exports without suffixes."""
    try:
        if not path.is_file():
            return False  # opening a named pipe would wait for its writer
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM" and path.name.upper() != "DICOMDIR"
    except OSError:
        return False


def read_contents(file: BinaryIO, part: RecipePart) -> Contents:
    """The frames of a file, numbered from 1 if there are several, with the attributes and the patient.

    The patient is ``PatientID``, or ``StudyInstanceUID`` if that is empty.
    """
    keywords = ["Rows", "Columns", "NumberOfFrames", "PatientID", "StudyInstanceUID", *_ATTRIBUTES.values()]
    dataset = _read(file, stop_before_pixels=True, specific_tags=keywords)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if not 1 <= frames <= MAX_FRAMES:
        raise BadImage(f"states that it contains {frames} frames; between 1 and {MAX_FRAMES:,} are supported")
    values = {name: _value(dataset, keyword) for name, keyword in _ATTRIBUTES.items()}
    attributes = {name: value for name, value in values.items() if value is not None}
    slices: list[tuple[int | None, dict[str, Any]]] = [(None, attributes)]
    if frames > 1:
        slices = [(frame, {**attributes, "frame": frame}) for frame in range(1, frames + 1)]
    patient, study = _value(dataset, "PatientID"), _value(dataset, "StudyInstanceUID")
    texts = {"patient": patient or study, "study": study}
    return Contents(slices, volume=frames > 1, **{key: str(value) for key, value in texts.items() if value})


def read_modality(file: BinaryIO) -> str | None:
    """The file's ``Modality``, such as MR or CT; None if it states none."""
    value = _value(_read(file, stop_before_pixels=True, specific_tags=["Modality", "Rows", "Columns"]), "Modality")
    return None if value is None else str(value)


def read_header(file: BinaryIO, keywords: Sequence[str]) -> Any:
    """These elements of a file, a ``pydicom.Dataset``, of any DICOM file, also of one without an image.

    Raises:
        BadImage: it is not a DICOM file, or cannot be read.
    """
    from pydicom import dcmread

    if file.peek(132)[128:132] != b"DICM":  # type: ignore[attr-defined]
        raise BadImage("is not a DICOM file")
    return dcmread(_inflated(file), stop_before_pixels=True, specific_tags=list(keywords))


def read_extent(file: BinaryIO) -> tuple[int, int]:
    """The number of pixels of all frames together, and the number of frames, as the header states them."""
    dataset = _read(file, stop_before_pixels=True, specific_tags=["Rows", "Columns", "NumberOfFrames"])
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    return int(dataset.Rows) * int(dataset.Columns) * frames, frames


def read_pixels(file: BinaryIO, part: RecipePart) -> SlicePixels:
    """The gray pixels of any frame, after rescale, window and MONOCHROME1's inversion."""
    from pydicom.pixels import apply_rescale, pixel_array

    dataset = _read(file)
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir("PixelData")):
        raise BadImage("is a DICOM file without pixels")
    interpretation = str(dataset.get("PhotometricInterpretation"))
    if interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadImage(f"is not a gray image (photometric interpretation {interpretation})")
    if (samples := dataset.get("SamplesPerPixel", 1)) != 1:
        raise BadImage(f"is not a gray image ({samples} samples per pixel)")

    plugin = _decoding_plugin(dataset)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    is_big_endian = syntax is not None and not syntax.is_little_endian

    def pixels(frame: int | None) -> tuple[np.ndarray, str]:
        index = (frame or 1) - 1
        if syntax is not None and syntax.is_encapsulated:
            _check_compressed(dataset, index, syntax)
        stored = pixel_array(dataset, index=index, decoding_plugin=plugin)
        values = apply_rescale(stored, _frame_item(dataset, index, "PixelValueTransformationSequence"))
        if part.window.file:
            gray = _apply_file_window(values, _frame_item(dataset, index, "FrameVOILUTSequence"), is_big_endian)
        else:
            gray = to_8_bit(values, part.window)
        return (255 - gray if interpretation == "MONOCHROME1" else gray), str(stored.dtype)

    return pixels


def _read(file: BinaryIO, **options: Any) -> Any:
    import pydicom

    if file.peek(132)[128:132] != b"DICM":  # type: ignore[attr-defined]
        raise BadImage("is not a DICOM file (no prefix DICM at byte 128)")
    dataset = pydicom.dcmread(_inflated(file), **options)
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise BadImage("is a DICOM file without an image")
    check_size(dataset.Columns, dataset.Rows)
    _decoding_plugin(dataset)  # raises if there is none
    return dataset


def _decoding_plugin(dataset: Any) -> str:
    """The package that decodes the pixels; Pillow if it can, so that the result does not depend on what is installed.

    Raises:
        BadImage: no decoder of this compression is installed.
    """
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_encapsulated:
        return ""
    decoder = get_decoder(syntax)
    if not decoder.is_available:
        raise BadImage(
            f"is compressed as {syntax.name}, for which no decoder is installed; install python-gdcm, or pylibjpeg "
            "and pylibjpeg-libjpeg (GPL), or save it without compression"
        )
    return "pillow" if "pillow" in decoder.available_plugins else ""


def _check_compressed(dataset: Any, index: int, syntax: Any) -> None:
    """Raise :class:`BadImage` if a compressed frame has another size than the header states, before it is decoded."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    if syntax == RLELossless:  # has no size of its own
        return
    frame = get_frame(dataset.PixelData, index, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    size = _compressed_size(frame)
    if size is None:
        raise BadImage("cannot be decoded (a compressed frame has no header)")
    if size != (dataset.Columns, dataset.Rows):
        raise BadImage(
            f"has a compressed frame of {size[0]} x {size[1]} pixels, but states {dataset.Columns} x {dataset.Rows}"
        )
    check_scans(frame)


def _compressed_size(frame: bytes) -> tuple[int, int] | None:
    """Width and height that the codestream of JPEG 2000, JPEG or JPEG-LS states; None if it has no such header."""
    start = frame[:4096].find(b"\xff\x4f\xff\x51")
    if start >= 0 and len(frame) >= start + 24:
        right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
        return right - left, bottom - top
    place = 2
    while frame.startswith(b"\xff\xd8") and len(frame) >= place + 9 and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack_from(">2H", frame, place + 5)
            return width, height
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    return None


def _inflated(file: BinaryIO) -> Any:
    """The file, or a copy in memory without deflation if it is deflated; pydicom would inflate it without a limit."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    prefix = file.read(132)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        file.seek(0)
        return file
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    copy = DicomBytesIO(prefix)
    copy.seek(0, io.SEEK_END)
    write_file_meta_info(copy, FileMetaDataset(meta), enforce_standard=False)
    copy.write(inflate(file.read(), MAX_INFLATED, -zlib.MAX_WBITS))
    copy.seek(0)
    return copy


def _value(dataset: Any, keyword: str) -> str | int | float | None:
    """An element's value in a type of JSON; None if it is empty or invalid."""
    try:
        value = dataset.get(keyword)
        if isinstance(value, (int, float)):
            if not math.isfinite(value):
                return None
            return int(value) if float(value).is_integer() else float(value)
        return None if value is None else str(value).encode("utf-8", "replace").decode().strip() or None
    except (TypeError, ValueError):
        return None


def _frame_item(dataset: Any, index: int, sequence: str) -> Any:
    """The item of ``sequence`` for a frame of an enhanced multi-frame file; for other files the dataset itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*per_frame[index : index + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])]:
        if group.get(sequence):
            return group[sequence][0]
    return dataset


def _apply_file_window(values: np.ndarray, dataset: Any, is_big_endian: bool) -> np.ndarray:
    """Values → uint8 by the file's VOI LUT or first window (DICOM PS3.3, C.11.2)."""
    if dataset.get("VOILUTSequence"):
        gray = _apply_lut(values, dataset.VOILUTSequence[0], is_big_endian)
    elif all(dataset.get(keyword) not in (None, "") for keyword in ("WindowCenter", "WindowWidth")):
        gray = _apply_window(values, dataset)
    else:
        raise BadImage("states no window; choose another `window` in the recipe")
    return np.rint(np.clip(gray, 0, 255)).astype(np.uint8)


def _apply_lut(values: np.ndarray, lut: Any, is_big_endian: bool) -> np.ndarray:
    """Values → 0 to 255 by a VOI LUT."""
    entries, (count, first, bits) = lut.LUTData, lut.LUTDescriptor
    if isinstance(entries, bytes):  # of 16-bit words, or of bytes if there is only one for each 8-bit entry
        if is_big_endian:
            entries = np.frombuffer(entries, ">u2").astype("<u2").tobytes()
        entries = np.frombuffer(entries, "u1" if len(entries) < 2 * (count or 2**16) else "<u2")
    entries = np.asarray(entries, np.float64)  # in 16 bits the product below would overflow
    indices = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(int)
    return entries[indices] * 255 / (2**bits - 1)


def _apply_window(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Values → 0 to 255 by a window center and width."""
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    window = Dataset()  # of an image with 8 unsigned bits, so that the formula returns 0 to 255
    window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 8, 0
    window.WindowCenter, window.WindowWidth = dataset.WindowCenter, dataset.WindowWidth
    window.VOILUTFunction = dataset.get("VOILUTFunction") or "LINEAR"
    return apply_windowing(values, window)
