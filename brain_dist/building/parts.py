"""Parts of a build: each task of a job array examines a share of the images, then one process builds from all parts.

The folder of parts lies beside the shard folder, with ``.parts`` after its name. Of each part it holds the thumbnails
and, written last, what else was measured, with checksums of the part's files and of the source files; ``spool`` holds
the images that were encoded again, and masks. A part is a run of whole files in the order of the records, so the parts
together give what one process would have found, in the same order.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brain_dist import __version__
from brain_dist.building.coverage import check_classes
from brain_dist.building.request import check_places, existing_dataset, request_entries
from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import (
    NO_THUMBS,
    Examination,
    bad_images,
    examine_records,
    spooled_mask,
)
from brain_dist.collection.measures import THUMB
from brain_dist.collection.pixels import MeasuredImage
from brain_dist.collection.recipes import Recipe
from brain_dist.collection.records import Record
from brain_dist.common.files import check_place, crc32_file, durable_file, sync_file, sync_folder, write_atomically
from brain_dist.common.progress import Progress, no_progress
from brain_dist.common.records import read_record
from brain_dist.common.scratch import scratch
from brain_dist.common.text import printable
from brain_dist.common.workers import Run, worker_pool
from brain_dist.errors import Fault, UserError
from brain_dist.store.options import BuildOptions

MAX_PARTS = 10_000
PART = {"request": dict, "source": dict, "own": dict, "images": list, "bad": list, "blank": list}  # keys of its file
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
    out = Path(os.path.abspath(out))  # noqa: PTH100 (`.` has no name)
    return out.with_name(f"{out.name}.parts")


def _place(out: Path, part: Part) -> Path:
    """The file that completes a part."""
    return _parts_folder(out) / f"{part.number:05d}-of-{part.total:05d}.json"


def examine_part(
    source: Path, out: Path, recipe: Recipe, options: BuildOptions, part: Part, *, workers: int,
    allow_missing: bool = False, progress: Progress = no_progress,
) -> int:  # fmt: skip
    """Examine a part of the images for a later :func:`brain_dist.building.build.build` with the same arguments.

    A complete part of the same request is left as it is, unless one of its files has changed since.

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
        own = _share(records, part)
        if existing_dataset(out, request) is None:
            check_place(out)
            place = _place(out, part)
            document = _read(place)
            is_usable = document.get("request") == _part_request(request) and (options.skip_bad or not document["bad"])
            if not is_usable or _changed(document, place, source, run):
                check_classes(records, recipe.classes, options, allow_missing=allow_missing)
                _write_part(place, own, source, spool_folder(out), recipe, options, request, run, progress)
    return len(own)


def _part_request(request: dict[str, Any]) -> dict[str, Any]:
    """The entries of a request that decide what an examination finds, and the version that examines."""
    options = {name: request["options"][name] for name in ("max_side", "jpeg_quality", "keep_blank")}
    return {
        "recipe": request["recipe"],
        "source_listing_sha256": request["source_listing_sha256"],
        "options": options,
        "builder": __version__,
    }


def _read(place: Path) -> dict[str, Any]:
    """The content of a part's file; empty if it is missing or damaged."""
    try:
        return read_record(place, "", PART)
    except UserError:
        return {}


def _changed(document: dict[str, Any], place: Path, source: Path, run: Run) -> list[Path]:
    """The files of a part, of the source folder and of its own, that are not as they were when it was examined."""
    expected = {source / path: crc32 for path, crc32 in document["source"].items()}
    expected |= {place.parent / name: crc32 for name, crc32 in document["own"].items()}
    actual = run(crc32_file, list(expected), 64)
    return [file for (file, crc32), now in zip(expected.items(), actual, strict=True) if now != crc32]


def _write_part(
    place: Path, records: list[Record], source: Path, spool: Path, recipe: Recipe, options: BuildOptions,
    request: dict[str, Any], run: Run, progress: Progress,
) -> None:  # fmt: skip
    try:
        spool.mkdir(parents=True, exist_ok=True)
        paths = list(dict.fromkeys(record.path for record in records))
        # before the examination: a file that changes meanwhile differs from its checksum later
        checksums = list(run(crc32_file, [source / path for path in paths], 64))
        examined = examine_records(
            records, source, recipe, run, keep_blank=options.keep_blank, progress=partial(progress, "decoding"),
            spool=spool, smaller=options.smaller,
        )  # fmt: skip
        if examined.bad and not options.skip_bad:
            raise bad_images(examined.bad)
        thumbs = place.with_suffix(".npy")
        with durable_file(thumbs) as file:
            np.lib.format.write_array(file, np.asarray(examined.thumbs), allow_pickle=False)
        images = list(zip(examined.records, examined.images, strict=True))
        encoded = {spool / record.key: image.crc32 for record, image in images if image.payload is not None}
        masks = [spooled_mask(spool, record.key) for record, image in images if "lesion_area" in image.attributes]
        for _ in run(sync_file, [*encoded, *masks], 64):
            pass
        sync_folder(spool)
        own = encoded | {file: crc32_file(file) for file in [thumbs, *masks]}
        document = {
            "request": _part_request(request),
            "images": [
                [record.key, image.payload is not None, *(getattr(image, name) for name in _FIELDS)]
                for record, image in images
            ],
            "source": dict(zip(paths, checksums, strict=True)),
            "own": {str(file.relative_to(place.parent)): crc32 for file, crc32 in own.items()},
            "bad": examined.bad,
            "blank": examined.blank,
        }
        write_atomically(place, json.dumps(document))
    except OSError as error:
        raise UserError(f"cannot write the parts in {place.parent} ({error.strerror or error})") from None


def read_parts(
    out: Path, count: int, records: list[Record], source: Path, request: dict[str, Any], run: Run, progress: Progress
) -> Examination:
    """What all parts found, as :func:`brain_dist.collection.examination.examine_records` of all records returns it.

    Raises:
        UserError: a part is missing, belongs to another request, or was examined before a file of the source changed.
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
    for number, place in enumerate(places):
        documents.append(_read_intact(place, source, request, run, f"--part {number} --parts {count}"))
        progress("reading parts", number + 1, count)
    record_of = {record.key: record for record in records}
    examined = Examination(
        [], [], scratch((sum(len(d["images"]) for d in documents), 2, THUMB, THUMB), np.uint8), [], []
    )
    for place, document in zip(places, documents, strict=True):
        thumbs = np.load(place.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
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


def _read_intact(place: Path, source: Path, request: dict[str, Any], run: Run, flags: str) -> dict[str, Any]:
    """The content of a part's file, if the part can be used; ``flags`` are the options that examine it again."""
    document = _read(place)
    advice = f"examine this part again, by {flags} and the other options of this build"
    if not document:
        raise Fault(f"{place} is damaged; {advice}")
    if document["request"] != _part_request(request):
        raise UserError(
            f"{place} was examined with another recipe, other source files, another version of brain_dist, or another"
            f" --max-side, --jpeg-quality or --keep-blank; {advice}"
        )
    for file in _changed(document, place, source, run):
        if file.is_relative_to(place.parent):
            raise Fault(f"{file} is missing or damaged; {advice}")
        raise UserError(f"{printable(str(file))} changed since it was examined for {place}; {advice}")
    return document


def remove_parts(out: Path) -> None:
    """Remove the parts of a shard folder."""
    shutil.rmtree(_parts_folder(out), ignore_errors=True)


def _share(records: list[Record], part: Part) -> list[Record]:
    """The records of a part: a run of whole files, as many as in the other parts up to one."""
    files = [list(slices) for _, slices in groupby(records, key=lambda record: record.path)]
    first, last = (number * len(files) // part.total for number in (part.number, part.number + 1))
    return [record for slices in files[first:last] for record in slices]
