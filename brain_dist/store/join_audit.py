"""Count the copies between the sources of a joined folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.copies.search import Findings


def audit_sources(
    findings: Findings, source: np.ndarray, names: list[str], columns: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Counts of copies among N images of several sources, for the manifest.

    Args:
        findings: copies and groups of the images.
        source: int [N], number of each image's source.
        names: names of the sources.
        columns: label, dataset and patient of each image.

    Returns:
        As :func:`brain_dist.copies.search.counts`, and ``between``: for each pair of sources how many images ``of`` one
        have an exact copy ``in`` the other, how many only a near copy, and of how many the patient is there.
    """
    labels = columns["label"].astype(np.int64)
    of_same_pixels, of_near_copy = _copies_by_kind(findings, labels, int(labels.max()) + 1)
    other_class = of_same_pixels | of_near_copy
    other_class[np.arange(len(labels)), labels] = False
    return {
        "exact_redundant": int((findings.copy_of != np.arange(len(labels))).sum()),
        "near_pairs": len(findings.near),
        "near_pairs_mirrored": int(findings.near.mirrored.sum()),
        "images_with_label_conflict": int(other_class.any(axis=1).sum()),
        "between": _between(findings, source, names, columns),
    }


def _between(
    findings: Findings, source: np.ndarray, names: list[str], columns: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    exact, near = _copies_by_kind(findings, source, len(names))
    patients: list[list[tuple[str, str]]] = [[] for _ in names]  # of the images of each source
    for number, dataset, patient in zip(source, columns["dataset"], columns["patient"], strict=True):
        if patient is not None:
            patients[number].append((dataset, patient))
    pairs = []
    for one, one_name in enumerate(names):
        for other, other_name in enumerate(names):
            if one == other:
                continue
            known = set(patients[other])
            pairs.append({
                "of": one_name,
                "in": other_name,
                "exact": int(exact[source == one, other].sum()),
                "near": int(near[source == one, other].sum()),
                "patient": sum(patient in known for patient in patients[one]),
            })  # fmt: skip
    return pairs


def _copies_by_kind(findings: Findings, kind: np.ndarray, kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each image has a copy of each kind (class or source): with the same pixels, and only a near one.

    Args:
        findings: copies of N images.
        kind: int [N], kind of each image.
        kinds: number of kinds K.

    Returns:
        Two arrays, bool [N, K].
    """
    same_pixels = np.zeros((len(kind), kinds), dtype=bool)
    same_pixels[findings.copy_of, kind] = True
    near = np.zeros_like(same_pixels)
    np.logical_or.at(near, findings.near.first, same_pixels[findings.near.second])
    np.logical_or.at(near, findings.near.second, same_pixels[findings.near.first])
    exact = same_pixels[findings.copy_of]
    return exact, near[findings.copy_of] & ~exact
