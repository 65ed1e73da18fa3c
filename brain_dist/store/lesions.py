"""Where the lesions of a shard folder's images are: boxes in the index, and masks in ``masks.parquet``.

The index's ``attributes`` have ``boxes`` of every image whose lesions are known, and ``lesion_area`` if its mask is.
``masks.parquet`` has a row for each image with a mask, in the order of the index: its ``key``, and ``png``, the mask as
a PNG of one bit a pixel in the size of the stored image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.masks import fit_mask, read_mask
from brain_dist.common.files import sha256_bytes
from brain_dist.errors import Fault
from brain_dist.store.dataset import Dataset
from brain_dist.store.manifest import BuiltManifest, ShardEntry, load_manifest

MASKS = "masks.parquet"
Crop = Sequence[int] | npt.NDArray[np.integer]
"""x, y, width, height of the part of a stored image that becomes the network's input, in pixels."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """The lesions of an image.

    Attributes:
        boxes: float64 [B, 4], left, top, right, bottom as fractions of the stored image; empty if it has no lesion.
        mask: bool [height, width] in the size of the stored image; None if only boxes are known.
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.
    """

    boxes: npt.NDArray[np.float64]
    mask: npt.NDArray[np.bool_] | None
    width: int
    height: int

    def on_input(self, size: int, crop: Crop) -> npt.NDArray[np.bool_]:
        """Where the lesions, or their boxes if no mask is known, are in the network's input: bool [size, size].

        The input is the part ``crop`` of the stored image, resized, as in evaluation (see
        :mod:`brain_dist.stream.pixels`). A pixel belongs to the lesion if half of its area does; a lesion inside the
        crop that covers no pixel so far keeps the pixel that it covers most.
        """
        x, y, width, height = (int(value) for value in crop)
        if self.mask is not None:
            return fit_mask(self.mask, size, size, (x, y, x + width, y + height))
        result = np.zeros((size, size), dtype=bool)
        for left, top, right, bottom in self.input_boxes(size, crop):
            if right > left and bottom > top:
                first_x, first_y = (min(round(edge), size - 1) for edge in (left, top))
                result[first_y : max(round(bottom), first_y + 1), first_x : max(round(right), first_x + 1)] = True
        return result

    def input_boxes(self, size: int, crop: Crop) -> npt.NDArray[np.float64]:
        """The boxes in the network's input, float64 [B, 4]: left, top, right, bottom in its pixels, clipped to it.

        A box outside the crop has no area.
        """
        x, y, width, height = (int(value) for value in crop)
        pixels = self.boxes * [self.width, self.height, self.width, self.height]
        return np.clip((pixels - [x, y, x, y]) * size / [width, height, width, height], 0, size)


def read_lesions(dataset: Dataset, rows: Sequence[int] | npt.NDArray[np.integer]) -> list[Lesion | None]:
    """The lesions of some rows [N] of the index; None where they are not known.

    Raises:
        Fault: ``masks.parquet`` is missing or damaged.
    """
    columns = dataset.columns
    attributes = [json.loads(columns["attributes"][row]) for row in rows]
    folders: dict[Path, dict[str, bytes]] = {}
    lesions: list[Lesion | None] = []
    for row, known in zip(rows, attributes, strict=True):
        if "boxes" not in known:
            lesions.append(None)
            continue
        mask = None
        width, height = int(columns["width"][row]), int(columns["height"][row])
        if "lesion_area" in known:
            folder, key = _place(dataset, int(row))
            if folder not in folders:
                folders[folder] = _read_folder(folder)
            mask = _decode(folders[folder].get(key), folder, key)
            if mask.shape != (height, width):
                raise _damage(folder, f"the mask of {key} has another size than its image")
        lesions.append(Lesion(np.array(known["boxes"], np.float64).reshape(-1, 4), mask, width, height))
    return lesions


def _place(dataset: Dataset, row: int) -> tuple[Path, str]:
    """The built folder that a row is in, and its key there."""
    key = str(dataset.columns["key"][row])
    if not dataset.sources:
        return dataset.root, key
    number = int(str(dataset.columns["shard"][row]).partition("/")[0])
    return dataset.sources[number], key.rpartition(".")[2]  # a joined folder may prefix its keys with a name and a dot


def _read_folder(folder: Path) -> dict[str, bytes]:
    manifest = load_manifest(folder)[0]
    entry = manifest.masks if isinstance(manifest, BuiltManifest) else None
    if entry is None:
        raise _damage(folder, "the manifest does not list it")
    return read_masks(folder, entry)


def _decode(png: bytes | None, folder: Path, key: str) -> npt.NDArray[np.bool_]:
    if png is None:
        raise _damage(folder, f"it has no mask of {key}")
    try:
        return read_mask(png)
    except BadImage as error:
        raise _damage(folder, f"the mask of {key} {error}") from None


def _damage(folder: Path, problem: str) -> Fault:
    return Fault(f"{folder / MASKS}: {problem}; copy or build the shard folder again")


def masks_entry(masks: dict[str, bytes]) -> tuple[bytes, ShardEntry]:
    """Key → PNG, in the order of the index: the bytes of ``masks.parquet``, and the manifest's entry of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [_array([key.encode() for key in masks], pa.string()), _array(list(masks.values()), pa.binary())]
    table = pa.Table.from_arrays(
        arrays, schema=pa.schema([pa.field("key", pa.string(), False), pa.field("png", pa.binary(), False)])
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    return data, ShardEntry(MASKS, sha256_bytes(data), len(data), len(masks))


def _array(values: list[bytes], kind: object) -> object:
    """Bytes as an Arrow array of text or bytes. ``pyarrow.array`` would import pandas first, which takes a second."""
    import pyarrow as pa

    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if offsets[-1] > np.iinfo(np.int32).max:
        raise Fault("the masks take more than 2 GiB; build the collection in several shard folders and join them")
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def read_masks(folder: Path, entry: ShardEntry) -> dict[str, bytes]:
    """Key → PNG of the masks of a built folder.

    Raises:
        Fault: the file is missing, or is not the one that the manifest describes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = (folder / MASKS).read_bytes()
    except OSError as error:
        raise _damage(folder, f"cannot be read ({error.strerror})") from None
    if sha256_bytes(data) != entry.sha256:  # damaged Parquet is not parsed, which could crash
        raise _damage(folder, "not the masks that the manifest describes (sha256 differs)")
    table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    return dict(zip(table["key"].to_pylist(), table["png"].to_pylist(), strict=True))
