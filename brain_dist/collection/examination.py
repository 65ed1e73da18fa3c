"""Decode all images of a collection in worker processes, and list those that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from brain_dist.collection.pixels import THUMB, Examined
from brain_dist.collection.recipes import Recipe, RecipePart
from brain_dist.collection.records import Record
from brain_dist.collection.slicefiles import examine_file
from brain_dist.common.scratch import scratch
from brain_dist.common.text import printable
from brain_dist.common.workers import Run
from brain_dist.errors import UserError

NO_THUMBS = np.zeros((0, THUMB, THUMB), dtype=np.uint8)


class BadImages(UserError):
    """Image files that cannot be used; ``files`` has one line for each, with its reason."""

    def __init__(self, files: list[str]) -> None:
        super().__init__(
            f"{len(files)} image file{'s' * (len(files) > 1)} cannot be used, first {files[0]}; mend or remove what is "
            "listed, or leave it out with --skip-bad"
        )
        self.files = files


def examine_all(
    records: list[Record],
    source: Path,
    recipe: Recipe,
    run: Run,
    *,
    skip_bad: bool,
    progress: Callable[[int, int], None],
    spool: Path | None = None,
    max_side: int | None = None,
) -> tuple[list[Record], list[Examined], np.ndarray, list[dict[str, str]]]:
    """Decode every image; returns the good records, what was found of them, their thumbnails, and the bad ones.

    The thumbnails, uint8 [N, 2, 64, 64], lie on the disk and no longer in what was found, so that memory does not grow
    with them.

    New encodings are left in the folder ``spool`` under their keys, where there is one. :class:`BadImages` lists all
    bad files unless ``skip_bad``; a class of which nothing is left is a :class:`UserError`.
    """
    work = partial(_examine_one, source=source, spool=spool, max_side=max_side)
    files = [list(slices) for _, slices in groupby(records, key=lambda record: record.path)]
    readable = [
        (file[0].path, recipe.parts[file[0].part], [(record.frame, record.key) for record in file])
        for file in files
        if file[0].fault is None
    ]
    results = run(work, readable, max(1, 16 * len(files) // len(records)))
    thumbs = scratch((len(records), 2, THUMB, THUMB), np.uint8)
    good: list[Record] = []
    images: list[Examined] = []
    bad: list[dict[str, str]] = []
    done = 0
    for file in files:
        found = [file[0].fault] if file[0].fault else next(results)
        name = printable(file[0].path)
        whole = isinstance(found[0], str) and all(result == found[0] for result in found)  # say it once
        for record, result in zip(file, found, strict=True):
            if isinstance(result, Examined):
                thumbs[len(good)] = result.thumbs
                good.append(record)
                images.append(replace(result, thumbs=NO_THUMBS))
            elif not whole or record is file[0]:
                bad.append({"source": name if whole else f"{name}, slice {record.frame}", "reason": result})
        done += len(file)
        progress(done, len(records))
    if bad and not skip_bad:
        raise BadImages([f"{entry['source']}: {entry['reason']}" for entry in bad])
    lost = {record.label for record in records if record.label >= 0} - {record.label for record in good}
    if not good:
        raise UserError("--skip-bad would leave no image at all; mend the files")
    if lost:
        names = ", ".join(recipe.classes[label] for label in sorted(lost))
        raise UserError(f"--skip-bad would leave no image of class {names}; mend its files")
    return good, images, thumbs[: len(good)], bad


def _examine_one(file: tuple[str, RecipePart, Sequence[tuple[int | None, str]]], source: Path, spool: Path | None,
                 max_side: int | None) -> list[Examined | str]:  # fmt: skip
    """(path, its part, (slice number, key) …) → for each slice what was found, or why it is bad.

    A new encoding is left in the spool under the key.
    """
    path, part, slices = file
    results: list[Examined | str] = []
    found = examine_file(source / path, part, [frame for frame, _ in slices], max_side)
    for (_, key), image in zip(slices, found, strict=True):
        if isinstance(image, Examined) and image.payload is not None:
            if spool is not None:
                (spool / key).write_bytes(image.payload)
            image = replace(image, payload=b"")  # between processes only the fact that there is one travels
        results.append(image)
    return results
