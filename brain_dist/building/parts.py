"""Parts of a build: each task of a job array examines a share of the images, then one process builds from all parts.

The folder of parts lies beside the shard folder, with ``.parts`` after its name. Of each part it holds the thumbnails
and, written last, what else was measured; ``spool`` holds the images that were encoded again, and masks. A part is a
run of whole files in the order of the records, so the parts together give what one process would have found, in the
same order.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brain_dist.building.coverage import check_classes
from brain_dist.building.request import check_places, existing_dataset, request_entries
from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import NO_THUMBS, Examination, bad_images, examine_records
from brain_dist.collection.measures import THUMB
from brain_dist.collection.pixels import MeasuredImage
from brain_dist.collection.recipes import Recipe
from brain_dist.collection.records import Record
from brain_dist.common.files import durable_file, write_atomically
from brain_dist.common.progress import Progress, no_progress
from brain_dist.common.scratch import scratch
from brain_dist.common.workers import Run, worker_pool
from brain_dist.errors import Fault, UserError
from brain_dist.store.options import BuildOptions

MAX_PARTS = 10_000
_FIELDS = ("ext", "size", "crc32", "width", "height", "mode", "pixel_hash", "phash", "head", "attributes")


class Part(NamedTuple):
    """One of ``total`` parts; ``number`` counts from 0."""

    number: int
    total: int


def check_part(number: int | None, count: int | None) -> None:
    """Check the values of ``--part`` and ``--parts``.

    Raises:
        UserError: a part without the number of parts, or a number out of range.
    """
    if count is None:
        if number is not None:
            raise UserError(f"--part {number} needs the number of parts; set --parts, too")
    elif not 1 <= count <= MAX_PARTS:
        raise UserError(f"--parts {count} must be from 1 to {MAX_PARTS:,}")
    elif number is not None and not 0 <= number < count:
        raise UserError(f"--part {number} must be from 0 to {count - 1}, as --parts is {count}")


def spool_folder(out: Path) -> Path:
    """The folder of images that were encoded again, whose names are their keys, and of masks."""
    return _parts_folder(out) / "spool"


def _parts_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def _place(out: Path, part: Part) -> Path:
    """The file that completes a part."""
    return _parts_folder(out) / f"{part.number:05d}-of-{part.total:05d}.json"


def examine_part(
    source: Path, out: Path, recipe: Recipe, options: BuildOptions, part: Part, *, workers: int,
    allow_missing: bool = False, progress: Progress = no_progress,
) -> int:  # fmt: skip
    """Examine a part of the images for a later :func:`brain_dist.building.build.build` with the same arguments.

    A complete part of the same request is left as it is.

    Returns:
        the number of images of the part.

    Raises:
        BadImages: images cannot be used, and they are not to be skipped.
        UserError: as a build.
    """
    check_places(source, out)
    with worker_pool(workers) as run:
        records, _ = find_records(recipe, source, allow_missing=allow_missing)
        request = request_entries(source, recipe, options, records)
        own, place = _share(records, part), _place(out, part)
        if existing_dataset(out, request) is None and not _is_complete(place, request):
            check_classes(records, recipe.classes, options, allow_missing=allow_missing)
            _write_part(place, own, source, spool_folder(out), recipe, options, request, run, progress)
    return len(own)


def _is_complete(place: Path, request: dict[str, Any]) -> bool:
    return place.is_file() and _read(place)["request"] == request


def _read(place: Path) -> dict[str, Any]:
    """The content of a part's file."""
    try:
        document: dict[str, Any] = json.loads(place.read_bytes())
    except (OSError, ValueError):
        raise _damage(place, place) from None
    return document


def _damage(file: Path, place: Path) -> Fault:
    return Fault(f"{file} is damaged; remove {place}, and build that part again")


def _write_part(
    place: Path, records: list[Record], source: Path, spool: Path, recipe: Recipe, options: BuildOptions,
    request: dict[str, Any], run: Run, progress: Progress,
) -> None:  # fmt: skip
    try:
        spool.mkdir(parents=True, exist_ok=True)
        examined = examine_records(
            records, source, recipe, run, keep_blank=options.keep_blank, progress=partial(progress, "decoding"),
            spool=spool, smaller=options.smaller,
        )  # fmt: skip
        if examined.bad and not options.skip_bad:
            raise bad_images(examined.bad)
        with durable_file(place.with_suffix(".npy")) as file:
            np.lib.format.write_array(file, np.asarray(examined.thumbs), allow_pickle=False)
        images = [
            [record.key, image.payload is not None, *(getattr(image, name) for name in _FIELDS)]
            for record, image in zip(examined.records, examined.images, strict=True)
        ]
        document = {"request": request, "images": images, "bad": examined.bad, "blank": examined.blank}
        write_atomically(place, json.dumps(document))
    except OSError as error:
        raise UserError(f"cannot write the parts in {place.parent} ({error.strerror or error})") from None


def read_parts(out: Path, count: int, records: list[Record], request: dict[str, Any]) -> Examination:
    """What all parts found, as :func:`brain_dist.collection.examination.examine_records` of all records returns it.

    Raises:
        UserError: a part is missing, or belongs to another request.
        Fault: a part is damaged.
    """
    places = [_place(out, Part(number, count)) for number in range(count)]
    missing = [str(number) for number, place in enumerate(places) if not place.is_file()]
    if missing:
        raise UserError(
            f"{_parts_folder(out)} lacks {len(missing)} of {count} parts: {', '.join(missing[:20])}; build each with"
            f" --part NUMBER --parts {count} and the same other options"
        )
    documents = []
    for place in places:
        document = _read(place)
        if document["request"] != request:
            raise UserError(
                f"{place} was examined with another recipe, other options or other source files; remove"
                f" {place.parent} and build all parts again"
            )
        documents.append(document)
    record_of = {record.key: record for record in records}
    examined = Examination(
        [], [], scratch((sum(len(d["images"]) for d in documents), 2, THUMB, THUMB), np.uint8), [], []
    )
    for place, document in zip(places, documents, strict=True):
        file = place.with_suffix(".npy")
        try:
            thumbs = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            raise _damage(file, place) from None
        if thumbs.shape != (len(document["images"]), 2, THUMB, THUMB):
            raise _damage(file, place)
        start = len(examined.records)
        examined.thumbs[start : start + len(thumbs)] = thumbs
        for key, is_encoded, *values in document["images"]:
            measured = dict(zip(_FIELDS, values, strict=True))
            head = tuple(measured.pop("head"))
            payload = b"" if is_encoded else None
            examined.records.append(record_of[key])
            examined.images.append(MeasuredImage(**measured, head=head, payload=payload, thumbs=NO_THUMBS))
        examined.bad.extend(document["bad"])
        examined.blank.extend(document["blank"])
    return examined


def remove_parts(out: Path) -> None:
    """Remove the parts of a shard folder."""
    shutil.rmtree(_parts_folder(out), ignore_errors=True)


def _share(records: list[Record], part: Part) -> list[Record]:
    """The records of a part: a run of whole files, as many as in the other parts up to one."""
    files = [list(slices) for _, slices in groupby(records, key=lambda record: record.path)]
    first, last = (number * len(files) // part.total for number in (part.number, part.number + 1))
    return [record for slices in files[first:last] for record in slices]
