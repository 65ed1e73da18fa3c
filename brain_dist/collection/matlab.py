"""MATLAB v7.3 files (HDF5) as Cheng's collection is published: one struct ``cjdata`` per file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from brain_dist.collection.decoding import MAX_PIXELS, BadImage, check_numeric, check_size, inflate, to_8_bit
from brain_dist.collection.pixels import Contents, SlicePixels
from brain_dist.collection.recipes import MATLAB_CLASSES, RecipePart
from brain_dist.errors import UserError

SUFFIXES = (".mat",)
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # bytes of MATLAB's header before the HDF5 signature
# gzip is 1 and may be used once, shuffle is 2, a checksum 3
_FILTERS = {(), (1,), (2,), (2, 1), (3,), (1, 3), (2, 3), (2, 1, 3)}
_LABELS = dict(enumerate(MATLAB_CLASSES, 1))  # cjdata.label → class name


def read_contents(file: BinaryIO, part: RecipePart) -> Contents:
    """The label and the patient of a file, which has one slice."""
    with _open_struct(file) as struct:
        code = float(_read_values(struct, "label").item())
        letters = _read_values(struct, "PID").astype("<u2").tobytes()
    if code not in _LABELS:
        known = ", ".join(f"{number} ({name})" for number, name in _LABELS.items())
        raise BadImage(f"has label {code:g}; the known labels are {known}")
    pid = letters.decode("utf-16-le", "replace").strip("\0 ")
    # a letter after the number distinguishes scans of one patient: MR024780B, MR024780D
    patient = pid[:-1] if pid[-1:].isalpha() and pid[:-1] else pid
    return Contents([(None, {"pid": pid} if pid else {})], _LABELS[int(code)], patient or None)


def read_pixels(file: BinaryIO, part: RecipePart) -> SlicePixels:
    """The gray pixels of the file's slice."""
    with _open_struct(file) as struct:
        shape = _entry(struct, "image").shape
        if len(shape) != 2:
            raise BadImage(f"contains an image of {len(shape)} dimensions, not 2")
        check_size(*shape)
        values = _read_values(struct, "image").T  # MATLAB stores columns
    return lambda number: (to_8_bit(values, part.window), str(values.dtype))


def read_mask(file: BinaryIO) -> np.ndarray | None:
    """The mask of the file's tumour, bool [H, W]; None if it has none."""
    with _open_struct(file) as struct:
        if struct.get("tumorMask", getlink=True) is None:
            return None
        mask: np.ndarray = _read_values(struct, "tumorMask").T != 0
    if mask.ndim != 2:
        raise BadImage(f"contains a mask of {mask.ndim} dimensions, not 2")
    return mask


def read_folds(part: RecipePart, source: Path) -> dict[str, int]:
    """A part's published folds: file stem → fold, from 1 on; empty if the recipe names no file of folds.

    ``cvind.mat`` contains a vector ``cvind`` whose i-th number is the fold of the file ``i.mat``.

    Raises:
        UserError: the file of folds cannot be read.
    """
    if part.folds is None:
        return {}
    import h5py

    path = source / part.root / part.folds
    try:
        with h5py.File(path, "r") as file:
            folds = _read_values(file, path.stem).ravel().astype(int).tolist()
    except (OSError, KeyError, TypeError, ValueError, BadImage) as error:
        raise UserError(
            f"the published folds {path} cannot be read ({error}); repair the file, or remove `folds` from the recipe"
        ) from None
    return {str(number): fold for number, fold in enumerate(folds, 1)}


@contextmanager
def _open_struct(file: BinaryIO) -> Iterator[Any]:
    """The struct ``cjdata``, an open HDF5 group."""
    import h5py

    start = file.read(_USER_BLOCK + len(_HDF5_SIGNATURE))
    file.seek(0)
    if _HDF5_SIGNATURE not in (start[_USER_BLOCK:], start[: len(_HDF5_SIGNATURE)]):
        raise BadImage("is not a MATLAB v7.3 file (HDF5)")
    with h5py.File(file, "r") as content:
        yield _entry(content, "cjdata")


def _entry(group: Any, name: str) -> Any:
    """An entry of an HDF5 group that is stored in this file; a link may lead to any file of this machine.

    Raises:
        BadImage: there is no such entry, or it is stored in another file.
    """
    import h5py

    if group.get(name, getlink=True) is None:
        raise BadImage(f"is not in the format of Cheng's collection: it contains no {name} (cjdata.image, label, PID)")
    if isinstance(group.get(name, getlink=True), h5py.HardLink):
        entry = group[name]
        if not isinstance(entry, h5py.Dataset) or not (entry.is_virtual or entry.external):
            return entry
    raise BadImage(f"keeps its {name} in another file, which is not allowed")


def _read_values(group: Any, name: str) -> np.ndarray:
    """The numbers of a dataset.

    HDF5 inflates a chunk without a limit. Each one is therefore inflated here first, to the size that it should have.

    Raises:
        BadImage: they are not numbers, or more than a picture has.
    """
    dataset = _entry(group, name)
    properties = dataset.id.get_create_plist()
    filters = tuple(properties.get_filter(number)[0] for number in range(properties.get_nfilters()))
    check_numeric(dataset.dtype)
    stored = math.prod(dataset.chunks or dataset.shape)
    if max(dataset.size, stored) > MAX_PIXELS:
        raise BadImage(f"contains {max(dataset.size, stored):,} values of {name}, more than {MAX_PIXELS:,}")
    if filters not in _FILTERS:
        raise BadImage(f"has {name} in an HDF5 compression other than gzip; save it with gzip or without compression")
    if 1 in filters:
        for number in range(dataset.id.get_num_chunks()):
            offset = dataset.id.get_chunk_info(number).chunk_offset
            skipped, chunk = dataset.id.read_direct_chunk(offset)  # bit n of skipped: filter n was not applied
            if not skipped >> filters.index(1) & 1:
                inflate(chunk, stored * dataset.dtype.itemsize)
    return np.asarray(dataset)
