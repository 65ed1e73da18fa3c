"""The page about the maps of a run, ``report/explanations.html``."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist import __version__
from brain_dist.explaining import tables
from brain_dist.explaining.images import spread
from brain_dist.explaining.measure import Measured
from brain_dist.explaining.methods import TITLES
from brain_dist.explaining.sanity import SIMILAR
from brain_dist.pages.figures import jpeg_url, outlined, overlay
from brain_dist.pages.template import page_template
from brain_dist.pages.text import display_name

TEMPLATE = "explaining/page.html.jinja"
CASES = 6  # of the best, of the worst and of any
MEASURES = {
    "pointing game": "whether the largest value of the map lies in the tumour, without tolerance (Zhang et al. 2016)",
    "energy inside": "share of the sum of the map that lies in the tumour (Wang et al. 2020)",
    "rank accuracy": "of as many largest pixels as the tumour has, the share in the tumour (Arras et al. 2022)",
    "IoU at its area": "intersection over union of these pixels and the tumour",
    "insertion": "mean probability of the class while a blurred image is sharpened in the order of the map"
    " (Petsiuk et al. 2018)",
    "deletion": "the same while the image is blurred in that order; less is better",
}
REFERENCES = {
    "uniform": "no preference: the share of the image that the tumour covers",
    "centre": "a Gaussian about the middle of the image, with a standard deviation of a quarter of its side",
    "mean_tumour": "where the tumours of the training images are",
    "brightness": "the gray values of the image, smoothed as GradientSHAP’s maps are",
    "edges": "Sobel’s gradient of the image",
    "untrained": "the same method on the same network with random weights",
}


def render(measured: Measured, summary: dict[str, Any]) -> str:
    """The page as HTML."""
    chosen = cases(measured)
    return page_template(TEMPLATE).render(
        summary=summary,
        titles=TITLES,
        references={name: tables.REFERENCES[name] for name in tables.reference_names(summary)},
        about_references=REFERENCES,
        about_measures=MEASURES,
        difference_text=tables.difference_text,
        interval_text=tables.interval_text,
        notes=tables.notes(summary),
        similar=SIMILAR,
        cases={name: [card(measured, position) for position in positions] for name, positions in chosen.items()},
        phantom="phantom" in set(measured.table.dataset),
        version=__version__,
    )


def cases(measured: Measured) -> dict[str, np.ndarray]:
    """Positions [≤ CASES] of the images that the page shows: the best and the worst of the first method, and others.

    They are of different groups, and sorted by the energy inside the tumour, or by insertion if no tumour is known.
    """
    kind = "energy inside" if measured.masks is not None else "insertion"
    first = next(iter(measured.methods))
    score = measured.values[:, measured.sources.index((first, "trained")), measured.measures.index(kind)]
    order = np.argsort(-score, kind="stable")
    group = measured.table.group
    best = _one_of_each_group(order, group)[:CASES]
    worst = _one_of_each_group(order[::-1], group)[:CASES]
    worst = worst[~np.isin(worst, best)]
    rest = np.setdiff1d(np.arange(len(order)), np.concatenate([best, worst]))
    return {"worst": worst, "best": best, "any": rest[spread(group[rest], CASES)]}


def _one_of_each_group(order: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The first of ``order`` [N] in each group [N], in its order."""
    _, first = np.unique(group[order].astype(str), return_index=True)
    return order[np.sort(first)]


def card(measured: Measured, position: int) -> dict[str, Any]:
    """An image with its maps for the template."""
    table = measured.table
    mask = None if measured.masks is None else measured.masks[position]
    image = measured.images[position]
    shown = []
    for method, heats in measured.maps.items():
        heat = heats[position]
        values = measured.values[position, measured.sources.index((method, "trained"))]
        shown.append({
            "method": method,
            "image": jpeg_url(outlined(overlay(image, heat), mask)),
            "empty": not heat.any(),
            "values": dict(zip(measured.measures, values.tolist(), strict=True)),
        })  # fmt: skip
    label, prob = table.label[position], table.prob[position]
    return {
        "key": table.key[position],
        "patient": table.patient[position],
        "true": display_name(table.classes[label]),
        "predicted": display_name(table.classes[table.predicted[position]]),
        "prob_true": float(prob[label]),
        "image": jpeg_url(outlined(image, mask)),
        "maps": shown,
    }
