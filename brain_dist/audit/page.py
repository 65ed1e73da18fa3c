"""The audit's page: findings in sentences, tables, and pairs of images side by side. One HTML file."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from brain_dist import __version__
from brain_dist.audit import wording
from brain_dist.audit.galleries import galleries, ordered_ends
from brain_dist.audit.survey import TRAIN, Source, Survey
from brain_dist.collection.pixels import MeasuredImage, Smaller
from brain_dist.collection.slicefiles import examine_file
from brain_dist.common.progress import Progress
from brain_dist.copies.registration import REGISTERED_THRESHOLD
from brain_dist.copies.similarity import ALIGNED_THRESHOLD
from brain_dist.pages.figures import jpeg_url
from brain_dist.pages.template import page_template
from brain_dist.pages.text import display_name

TEMPLATE = "audit/page.html.jinja"
SIDE = 200  # longer side of an image in pixels
QUALITY = 75  # of the JPEGs
LISTED = 200  # damaged files named on the page


def render(survey: Survey, sources: Sequence[Source], counts: dict[str, Any], progress: Progress) -> str:
    """The page as HTML. ``counts`` is the result of :func:`brain_dist.audit.counts.summary` for ``survey``."""
    shown = galleries(survey)
    ends = {pair: ordered_ends(survey, pair) for gallery in shown.values() for pair in gallery.pairs}
    contradicting = survey.contradicting(np.arange(len(survey.first)))
    collections = counts["collections"].values()
    return page_template(TEMPLATE).render(
        survey=survey,
        names=survey.names,
        collections=[_collection(survey, number, source, counts) for number, source in enumerate(sources)],
        totals={
            "images": len(survey.path),
            "exact": int(survey.exact.sum()),
            "near": int((~survey.exact).sum()),
            "contradicting": int(contradicting.sum()),
            "leaked": sum(collection["test_images_with_any_train_copy"] for collection in collections),
            "test_images": sum(collection["test_images"] for collection in collections),
        },
        collection_rows=wording.collection_table(counts),
        between_heads=[text for text, _ in wording.BETWEEN_COLUMNS],
        between_rows=wording.between_table(counts),
        between=wording.between_findings(counts),
        galleries=shown,
        ends=ends,
        contradicting=contradicting,
        urls=_image_urls(survey, sources, sorted(set(chain(*ends.values()))), progress),
        skipped=survey.skipped,
        listed=LISTED,
        warnings=survey.warnings,
        aligned_threshold=ALIGNED_THRESHOLD,
        registered_threshold=REGISTERED_THRESHOLD,
        side_pixels=SIDE,
        version=__version__,
    )


def _image_urls(survey: Survey, sources: Sequence[Source], images: list[int], progress: Progress) -> dict[int, str]:
    """Small gray JPEGs as data URLs, by image. Each file is read once; files that cannot be read are left out."""
    urls, done = {}, 0
    for path, group in groupby(images, key=lambda image: survey.file[image]):
        members = list(group)
        part = sources[survey.collection[members[0]]].recipe.parts[survey.part[members[0]]]
        examined = examine_file(path, part, [survey.slice[image] for image in members], Smaller(SIDE))
        for image, result in zip(members, examined, strict=True):
            if not isinstance(result, MeasuredImage):  # it is too narrow to be made smaller, or cannot be read any more
                result = next(examine_file(path, part, [survey.slice[image]]))
            if isinstance(result, MeasuredImage):
                urls[image] = jpeg_url(_pixels(result.payload, path), QUALITY)
            done += 1
            progress("writing the page", done, len(images))
    return urls


def _pixels(payload: bytes | None, path: Path) -> np.ndarray:
    """uint8 [H, W] of an examined image; without a payload the file itself is the image."""
    with Image.open(path if payload is None else io.BytesIO(payload), formats=("JPEG", "PNG")) as image:
        return np.asarray(image.convert("L"))


def _collection(survey: Survey, number: int, source: Source, counts: dict[str, Any]) -> dict[str, Any]:
    """A collection for the template."""
    images = survey.collection == number
    splits, labels = Counter(survey.split[images].tolist()), Counter(survey.label[images].tolist())
    patients = [patient for patient in survey.patient[images].tolist() if patient is not None]
    texts = {key: getattr(source.recipe, key) for key in ("title", "source", "licence", "citation")}
    return {
        "name": source.name,
        "images": int(images.sum()),
        "labels": [(display_name(name), labels[name]) for name in source.recipe.classes if labels[name]],
        "splits": splits,
        "patients": len(set(patients)),
        "with_patient": len(patients),
        "texts": {key: value for key, value in texts.items() if value != "not stated"},
        "findings": wording.collection_findings(source.name, counts, splits[TRAIN]),
    }
