"""The counts of an audit (``audit.json``): copies, leaks and label conflicts of each collection and between them."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from brain_dist.audit.survey import TEST, TRAIN, Survey
from brain_dist.copies.registration import REGISTERED_THRESHOLD
from brain_dist.copies.search import connected
from brain_dist.copies.similarity import ALIGNED_THRESHOLD


def summary(survey: Survey) -> dict[str, Any]:
    """All counts, as in ``audit.json``; shards/README.md explains each key."""
    names = survey.names
    return {
        "collections": {name: _collection_counts(survey, number) for number, name in enumerate(names)},
        "between": {
            f"{names[a]}|{names[b]}": _between_counts(survey, a, b) for a, b in combinations(range(len(names)), 2)
        },
        "thresholds": {"aligned": ALIGNED_THRESHOLD, "registered": REGISTERED_THRESHOLD},
        "skipped": survey.skipped,
    }


def _collection_counts(survey: Survey, number: int) -> dict[str, Any]:
    """Counts of one collection on its own."""
    images = survey.collection == number
    inside = images[survey.first] & images[survey.second]
    exact, near = np.flatnonzero(inside & survey.exact), np.flatnonzero(inside & ~survey.exact)
    train, test = survey.split == TRAIN, survey.split == TEST
    exact_leaks, near_leaks = (_linked_images(survey, pairs, test, train) for pairs in (exact, near))
    groups = _joined(survey, np.flatnonzero(inside), patients=True)
    train_patients = _known(survey.patient[images & train])
    return {
        "images": int(images.sum()),
        "blank_images": int((images & survey.blank).sum()),
        "exact_redundant": int(images.sum()) - len(np.unique(_joined(survey, exact)[images])),
        "test_images": int((images & test).sum()),
        "test_images_with_exact_train_copy": len(exact_leaks),
        "test_images_with_near_train_copy": len(near_leaks),
        "test_images_with_any_train_copy": len(np.union1d(exact_leaks, near_leaks)),
        "label_conflicts": _label_conflicts(survey, np.flatnonzero(inside)),
        "groups": len(np.unique(groups[images])),
        "test_images_with_patient_in_train": (
            sum(patient in train_patients for patient in survey.patient[images & test])
            if _known(survey.patient[images])
            else None
        ),
    }


def _between_counts(survey: Survey, a: int, b: int) -> dict[str, Any]:
    """Counts of two collections, called A and B in the keys."""
    in_a, in_b = survey.collection == a, survey.collection == b
    across = (in_a[survey.first] & in_b[survey.second]) | (in_b[survey.first] & in_a[survey.second])
    counts: dict[str, Any] = {"A": survey.names[a], "B": survey.names[b]}
    for side, images, others in (("A", in_a, in_b), ("B", in_b, in_a)):
        for kind, pairs in (("exact", across & survey.exact), ("near", across & ~survey.exact), ("any", across)):
            linked = _linked_images(survey, np.flatnonzero(pairs), images, others)
            counts[f"{kind}_images_in_{side}"] = len(linked)
    counts["label_conflicts"] = _label_conflicts(survey, np.flatnonzero(across))
    for side, other, images, others in (("A", "B", in_a, in_b), ("B", "A", in_b, in_a)):
        counts[inherited_key(side, other)] = _inherited_leaks(survey, np.flatnonzero(across), images, others)
    return counts


def inherited_key(side: str, other: str) -> str:
    """The key of the test images of ``side`` whose patient, known from copies in ``other``, is in its train split."""
    return f"test_images_of_{side}_whose_patient_is_in_train_of_{side}_through_{other}"


def _inherited_leaks(survey: Survey, pairs: np.ndarray, images: np.ndarray, others: np.ndarray) -> int | None:
    """Test images of ``images`` whose patient, known from a copy in ``others``, also has a copy in the train split.

    ``images`` and ``others`` are masks [N]. None if ``others`` has no known patients.
    """
    if not _known(survey.patient[others]):
        return None
    patients: dict[int, set[str]] = {}
    for first, second in zip(survey.first[pairs].tolist(), survey.second[pairs].tolist(), strict=True):
        image, other = (first, second) if images[first] else (second, first)
        if survey.patient[other] is not None:
            patients.setdefault(image, set()).add(survey.patient[other])
    trained = set().union(*(names for image, names in patients.items() if survey.split[image] == TRAIN))
    return sum(bool(names & trained) for image, names in patients.items() if survey.split[image] == TEST)


def _known(patients: np.ndarray) -> set[str]:
    return set(patients) - {None}


def _linked_images(survey: Survey, pairs: np.ndarray, images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The images of mask ``images`` [N] that a pair links to one of mask ``others``; sorted, without repeats."""
    first, second = survey.first[pairs], survey.second[pairs]
    return np.union1d(first[images[first] & others[second]], second[images[second] & others[first]])


def _joined(survey: Survey, pairs: np.ndarray, *, patients: bool = False) -> np.ndarray:
    """int64 [N]: the first image of each image's set, joined by pairs and, if asked, by patients of a collection."""
    links = np.column_stack([survey.first[pairs], survey.second[pairs]])
    if patients:
        firsts: dict[tuple[int, str], int] = {}
        same_patient = [
            (firsts.setdefault((number, patient), image), image)
            for image, (number, patient) in enumerate(zip(survey.collection.tolist(), survey.patient, strict=True))
            if patient is not None
        ]
        links = np.concatenate([links, np.array(same_patient, dtype=np.int64).reshape(-1, 2)])
    return connected(len(survey.path), links)


def _label_conflicts(survey: Survey, pairs: np.ndarray) -> int:
    """Pictures with contradicting labels: sets of copies, not images."""
    joined = _joined(survey, pairs)
    return len(np.unique(joined[survey.first[pairs[survey.contradicting(pairs)]]]))
