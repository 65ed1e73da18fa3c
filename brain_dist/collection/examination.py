"""Decode and measure all images of a collection in worker processes, and list those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.masks import encode_mask, fit_mask, load_mask, mask_attributes
from brain_dist.collection.measures import THUMB, are_blank
from brain_dist.collection.pixels import MeasuredImage, Smaller
from brain_dist.collection.recipes import Recipe, RecipePart
from brain_dist.collection.records import Record
from brain_dist.collection.slicefiles import examine_file, read_own_mask
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
        spool: folder for new encodings, which get their keys as names, and for masks, see :func:`spooled_mask`; None:
            they are discarded.
        smaller: see :func:`brain_dist.collection.pixels.examine`.
    """
    work = partial(_examine_one, source=source, spool=spool, smaller=smaller)
    files = [list(slices) for _, slices in groupby(records, key=lambda record: record.path)]
    readable = [
        (
            slices[0].path,
            recipe.parts[slices[0].part],
            [(record.frame, record.key) for record in slices],
            slices[0].mask,
        )
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


def channel_warnings(examined: Examination, recipe: Recipe) -> list[str]:
    """A warning for each channel of a recipe that repeats another one in all images of some patients.

    Publishers fill in a missing sequence of a scan with another one.
    """
    same: dict[tuple[str, int | None], dict[str, set[int]]] = {}
    for record, image in zip(examined.records, examined.images, strict=True):
        person = record.patient or printable(record.path)
        others = set(image.attributes.get("same_channels", ()))
        by_person = same.setdefault((record.dataset, recipe.parts[record.part].channel), {})
        by_person[person] = by_person.get(person, others) & others
    warnings = []
    for (dataset, channel), by_person in same.items():
        repeated = {person: others for person, others in by_person.items() if others}
        if repeated:
            channels = " or ".join(map(str, sorted(set().union(*repeated.values()))))
            warnings.append(
                f"{dataset}: channel {channel} repeats channel {channels} in all images of {len(repeated)} patients, so"
                f" it is probably another sequence there: {', '.join(sorted(repeated))}; these images have the"
                " attribute same_channels"
            )
    return warnings


def spooled_mask(spool: Path, key: str) -> Path:
    """The file in the spool that holds an image's mask, a PNG of one bit a pixel in the size of the stored image."""
    return spool / f"{key}.mask"  # no key contains a dot


def _examine_one(
    file: tuple[str, RecipePart, Sequence[tuple[int | None, str]], str | None],
    source: Path,
    spool: Path | None,
    smaller: Smaller | None,
) -> list[MeasuredImage | str]:
    """Measure the slices of one file, given as its path, its part, (slice number, key) of each slice, and its mask.

    Returns each slice's measured image, or the reason why it cannot be used. New encodings and masks are written to the
    spool.
    """
    path, part, slices, mask = file
    results: list[MeasuredImage | str] = []
    images = examine_file(source / path, part, [frame for frame, _ in slices], smaller)
    for (_, key), image in zip(slices, images, strict=True):
        if isinstance(image, MeasuredImage) and image.payload is not None:
            if spool is not None:
                (spool / key).write_bytes(image.payload)
            image = replace(image, payload=b"")  # only the fact that there is one is sent between processes
        if isinstance(image, MeasuredImage):
            image = _with_mask(image, source, path, part, mask, None if spool is None else spooled_mask(spool, key))
        results.append(image)
    return results


def _with_mask(
    image: MeasuredImage, source: Path, path: str, part: RecipePart, mask_path: str | None, spooled: Path | None
) -> MeasuredImage | str:
    """The image with the attributes of its mask, if it has one, which is resized as the image was and spooled."""
    try:
        mask = read_own_mask(source / path, part) if mask_path is None else load_mask(source / mask_path)[0]
    except BadImage as error:
        return str(error) if mask_path is None else f"its mask {printable(mask_path)} {error}"
    if mask is None:
        return image
    height, width = mask.shape
    # the sides of a smaller image are rounded to whole pixels
    if abs(width * image.height - height * image.width) > max(width, height):
        return f"its mask has {width} x {height} pixels, another shape than the image"
    fitted = fit_mask(mask, image.width, image.height)
    if spooled is not None:
        spooled.write_bytes(encode_mask(fitted))
    return replace(image, attributes=image.attributes | mask_attributes(fitted))
