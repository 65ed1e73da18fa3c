"""Which classes the splits lack, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brain_dist.building.split import LEFT_OUT, Split, split_images
from brain_dist.collection.records import Record
from brain_dist.errors import UserError
from brain_dist.store.options import BuildOptions


def check_classes(
    records: list[Record], classes: tuple[str, ...], options: BuildOptions, *, allow_missing: bool
) -> list[str]:
    """Check, before images are decoded, that classes and splits have images, as far as patients tell.

    Returns:
        Warnings.

    Raises:
        UserError: a class or a split would have no images.
    """
    known = [record for record in records if record.label >= 0]
    if len(known) < len(records):
        return []  # only their damaged headers state the classes of some files
    absent = [name for label, name in enumerate(classes) if label not in {record.label for record in records}]
    if absent and not (allow_missing or options.split == "test"):
        others = ", ".join(name for name in classes if name not in absent)
        raise UserError(
            f"no images of {', '.join(absent)}, which no network could learn from these shards; build with a recipe"
            f" whose classes are {others}, or with --allow-missing to join the shards with others"
        )
    first: dict[tuple[str, str], int] = {}
    groups = [
        row if record.patient is None else first.setdefault((record.dataset, record.patient), row)
        for row, record in enumerate(records)
    ]
    split = split_images(records, np.array(groups), classes, options)
    check_split(split, records, np.array(groups), classes, allow_missing=allow_missing)
    return [f"no images of {name}" for name in absent]


def check_split(
    split: Split, records: Sequence[Record], groups: np.ndarray, classes: Sequence[str], *, allow_missing: bool
) -> list[str]:
    """Check that every split has images, and that it has images of every class that the collection has.

    Args:
        split: the split of N images.
        records: the images.
        groups: int [N], the group of each image.
        classes: class names.
        allow_missing: a split may lack a class, but not all images.

    Returns:
        Warnings about classes that a split lacks: allowed ones, and those that the publisher's own split lacks.

    Raises:
        UserError: a split has no images, or it lacks a class; the message names the cause.
    """
    labels, codes = np.array([record.label for record in records]), split.codes
    published = {record.published for record in records} if split.description["method"] == "original" else set()
    present = np.unique(labels[codes != LEFT_OUT])
    errors: list[str] = []
    warnings: list[str] = []
    guilty = divided = np.isin(codes, split.needed)  # the images whose groups are too few
    empty = False
    for code, name in enumerate(split.names):
        own = labels[codes == code]
        if code in split.needed and not len(own):
            errors.append(f"{name} would have no images")
            empty = True
        elif code in split.needed or name in published:
            for label in np.setdiff1d(present, own):
                if name in published or allow_missing:
                    warnings.append(f"{classes[label]} has no images in {name}")
                else:
                    guilty = guilty if errors else divided & (labels == label)
                    errors.append(f"{classes[label]} would have no images in {name}")
    if errors:
        rows = np.flatnonzero(guilty).tolist()
        cause = _cause([records[row] for row in rows], groups[rows])
        raise UserError(f"{'; '.join(errors)}: {cause}{'' if empty else ', or --allow-missing'}")
    return warnings


def _cause(records: Sequence[Record], groups: np.ndarray) -> str:
    """Why N images in groups int [N] cannot be divided into splits, and what helps."""
    patients = [(record.dataset, record.patient) for record in records]
    known = {patient for patient in patients if patient[1] is not None}
    names, sizes = np.unique(groups, return_counts=True)
    largest = np.flatnonzero(groups == names[sizes.argmax()])
    joined = {patients[row] for row in largest} & known
    if 2 * len(largest) > len(records):
        images = f"{len(largest)} of {len(records)} images"
        if len(known) == 1 and joined:
            return f"{images} have the same patient, {next(iter(known))[1]!r}; give the patients in a table"
        if len(joined) > 1:
            return (
                f"one group, joined by copies, holds {len(joined)} of {len(known)} patients and {images}; look for the"
                " copies with `python -m brain_dist.shard audit`"
            )
    return (
        f"there are too few groups (patients, or sets of copies), {len(names)} for {len(records)} images; use other"
        " --fractions or fewer --folds"
    )
