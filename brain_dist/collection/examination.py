"""Decode and measure all images of a collection in worker processes, and list those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brain_dist.collection.measures import THUMB, are_blank
from brain_dist.collection.pixels import MeasuredImage, Smaller
from brain_dist.collection.recipes import Recipe, RecipePart
from brain_dist.collection.records import Record
from brain_dist.collection.slicefiles import examine_file
from brain_dist.common.scratch import scratch
from brain_dist.common.text import printable
from brain_dist.common.workers import Run
from brain_dist.errors import UserError

NO_THUMBS = np.zeros((0, THUMB, THUMB), dtype=np.uint8)


class BadImages(UserError):
    """Image files that cannot be used.

    Attributes:
        files: one line per file, with the reason.
    """

    def __init__(self, files: list[str]) -> None:
        super().__init__(
            f"{len(files)} image file{'s' * (len(files) > 1)} cannot be used, first {files[0]}; repair or remove the "
            "listed files, or leave them out with --skip-bad"
        )
        self.files = files


class Examination(NamedTuple):
    """The images of a collection.

    Attributes:
        records: the N usable images.
        images: what is measured on each, without its thumbnails.
        thumbs: uint8 [N, 2, 64, 64], their thumbnails, on disk so that memory does not grow with them.
        bad: ``source`` and ``reason`` of each file or slice that cannot be used.
        blank: the same of each file with blank images that are left out.
    """

    records: list[Record]
    images: list[MeasuredImage]
    thumbs: np.ndarray
    bad: list[dict[str, str]]
    blank: list[dict[str, str]]


def examine_all(
    records: list[Record],
    source: Path,
    recipe: Recipe,
    run: Run,
    *,
    skip_bad: bool,
    keep_blank: bool = True,
    progress: Callable[[int, int], None],
    spool: Path | None = None,
    smaller: Smaller | None = None,
) -> Examination:
    """:func:`examine_records`, and :func:`check_usable` of what it returns."""
    examined = examine_records(
        records, source, recipe, run, keep_blank=keep_blank, progress=progress, spool=spool, smaller=smaller
    )
    check_usable(examined, records, recipe, skip_bad=skip_bad)
    return examined


def examine_records(
    records: list[Record],
    source: Path,
    recipe: Recipe,
    run: Run,
    *,
    keep_blank: bool = True,
    progress: Callable[[int, int], None],
    spool: Path | None = None,
    smaller: Smaller | None = None,
) -> Examination:
    """Decode and measure every image.

    Args:
        records: the images, with those of a file one after the other.
        source: folder that the records' paths are relative to.
        recipe: recipe that the records come from.
        run: runs the work, see :func:`brain_dist.common.workers.worker_pool`.
        keep_blank: False leaves out images that show nothing, see :func:`brain_dist.collection.measures.are_blank`.
        progress: called with the numbers of images done and in all.
        spool: folder for new encodings, which get their keys as names; None: they are discarded.
        smaller: see :func:`brain_dist.collection.pixels.examine`.
    """
    work = partial(_examine_one, source=source, spool=spool, smaller=smaller)
    files = [list(slices) for _, slices in groupby(records, key=lambda record: record.path)]
    readable = [
        (slices[0].path, recipe.parts[slices[0].part], [(record.frame, record.key) for record in slices])
        for slices in files
        if slices[0].header_error is None
    ]
    results = run(work, readable, max(1, 16 * len(files) // max(1, len(records))))
    thumbs = scratch((len(records), 2, THUMB, THUMB), np.uint8)
    usable: list[Record] = []
    images: list[MeasuredImage] = []
    bad: list[dict[str, str]] = []
    blank: list[dict[str, str]] = []
    done = 0
    for slices in files:
        error = slices[0].header_error
        measured = next(results) if error is None else [error] * len(slices)
        path = slices[0].path
        if isinstance(measured[0], str) and all(result == measured[0] for result in measured):
            bad.append({"source": printable(path), "reason": measured[0]})
        else:
            empty: list[int | None] = []
            for record, image in zip(slices, measured, strict=True):
                if isinstance(image, str):
                    bad.append({"source": f"{printable(path)}, slice {record.frame}", "reason": image})
                    continue
                if not keep_blank and are_blank(image.thumbs[None])[0]:
                    empty.append(record.frame)
                    continue
                thumbs[len(usable)] = image.thumbs
                usable.append(record)
                images.append(replace(image, thumbs=NO_THUMBS))
            if empty:
                which = "" if empty == [None] else f" in {len(empty)} slices: {', '.join(map(str, empty))}"
                blank.append({"source": printable(path), "reason": f"is blank{which}"})
        done += len(slices)
        progress(done, len(records))
    return Examination(usable, images, thumbs[: len(usable)], bad, blank)


def bad_images(bad: list[dict[str, str]]) -> BadImages:
    """The error about images that cannot be used."""
    return BadImages([f"{entry['source']}: {entry['reason']}" for entry in bad])


def check_usable(examined: Examination, records: list[Record], recipe: Recipe, *, skip_bad: bool) -> None:
    """Check that images of every class are left.

    Raises:
        BadImages: images cannot be used, and ``skip_bad`` is false.
        UserError: no image of some class can be used.
    """
    usable, bad, blank = examined.records, examined.bad, examined.blank
    if bad and not skip_bad:
        raise bad_images(bad)
    cause = "damaged or blank; repair the files, or keep blank images with --keep-blank"
    if not bad or not blank:
        cause = "blank; keep them with --keep-blank" if blank else "damaged; repair them"
    if not usable:
        raise UserError(f"no image at all is left: all of them are {cause}")
    lost = {record.label for record in records if record.label >= 0} - {record.label for record in usable}
    if lost:
        names = ", ".join(recipe.classes[label] for label in sorted(lost))
        raise UserError(f"no image of class {names} is left: all of them are {cause}")


def _examine_one(
    file: tuple[str, RecipePart, Sequence[tuple[int | None, str]]],
    source: Path,
    spool: Path | None,
    smaller: Smaller | None,
) -> list[MeasuredImage | str]:
    """Measure the slices of one file, given as its path, its part, and (slice number, key) of each slice.

    Returns each slice's measured image, or the reason why it cannot be used. New encodings are written to the spool.
    """
    path, part, slices = file
    results: list[MeasuredImage | str] = []
    images = examine_file(source / path, part, [frame for frame, _ in slices], smaller)
    for (_, key), image in zip(slices, images, strict=True):
        if isinstance(image, MeasuredImage) and image.payload is not None:
            if spool is not None:
                (spool / key).write_bytes(image.payload)
            image = replace(image, payload=b"")  # only the fact that there is one is sent between processes
        results.append(image)
    return results
