"""MATLAB v7.3 files (HDF5) as Cheng's collection is published: one struct ``cjdata`` per file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from brain_dist.collection.pixels import BadImage, Contents, SlicePixels, check_numeric, check_size, to_8_bit
from brain_dist.collection.recipes import MATLAB_CLASSES, RecipePart
from brain_dist.errors import UserError

SUFFIXES = (".mat",)
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # bytes of MATLAB's header before the HDF5 signature
_LABELS = dict(enumerate(MATLAB_CLASSES, 1))  # cjdata.label → class name


def read_contents(file: BinaryIO, part: RecipePart) -> Contents:
    """The label and the patient of a file, which has one slice."""
    with _open_struct(file) as struct:
        code = float(np.asarray(struct["label"]).item())
        letters = np.asarray(struct["PID"]).astype("<u2").tobytes()
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
        stored = struct["image"]
        if stored.ndim != 2:
            raise BadImage(f"contains an image of {stored.ndim} dimensions, not 2")
        check_numeric(stored.dtype)
        check_size(*stored.shape)
        values = np.asarray(stored).T  # MATLAB stores columns
    return lambda number: (to_8_bit(values, part.window), str(values.dtype))


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
            folds = np.asarray(file[path.stem]).ravel().astype(int).tolist()
    except (OSError, KeyError, TypeError, ValueError) as error:
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
        struct = content.get("cjdata", {})
        missing = [name for name in ("image", "label", "PID") if name not in struct]
        if missing:
            raise BadImage(f"contains no struct cjdata with {', '.join(missing)}")
        yield struct
