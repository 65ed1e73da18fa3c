"""Choose the pairs of copies that the audit's page shows. The same survey always gives the same pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brain_dist.audit.survey import TEST, TRAIN, Survey
from brain_dist.copies.search import connected

SHOWN = 24  # pairs per gallery


@dataclass(frozen=True)
class Gallery:
    """Pairs to show.

    Attributes:
        title: heading.
        text: what the pairs are.
        empty: the sentence that replaces ``text`` if there are no pairs.
        pairs: positions among the survey's pairs.
        total: number of pairs from which ``pairs`` were chosen.
    """

    title: str
    text: str
    empty: str
    pairs: list[int]
    total: int


def galleries(survey: Survey) -> list[Gallery]:
    """The galleries of the page, the most serious findings first."""
    pictures = connected(len(survey.path), np.column_stack([survey.first, survey.second]))
    leaks = _leaks(survey)

    def gallery(title: str, text: str, empty: str, mask: np.ndarray) -> Gallery:
        pairs = np.flatnonzero(mask)
        return Gallery(title, text, empty, _spread(survey, pairs, pictures), len(pairs))

    result = [
        gallery(
            "Contradicting labels",
            "Copies of one picture with different labels. At least one of the labels is wrong, and models are trained "
            "or evaluated on it.",
            "No two copies of a picture have contradicting labels.",
            survey.contradicting(np.arange(len(survey.first))),
        ),
        gallery(
            "Exact copies in training and test",
            "A model that was trained on this collection has seen these test images pixel for pixel.",
            "No test image is an exact copy of a training image of its collection.",
            leaks & survey.exact,
        ),
        gallery(
            "Near copies in training and test",
            "The same slice in another size, brightness or sharpness, or mirrored, cropped or rotated.",
            "No test image is a near copy of a training image of its collection.",
            leaks & ~survey.exact,
        ),
    ]
    if len(survey.names) > 1:
        result.append(
            gallery(
                "Pictures in two collections",
                "A model that was trained on one of these collections has seen these pictures of the other.",
                "No picture is in two of the collections.",
                survey.collection[survey.first] != survey.collection[survey.second],
            )
        )
    near = np.flatnonzero(~survey.exact)
    result.append(
        Gallery(
            "Least certain pairs",
            "The near copies closest to the threshold, one pair per picture. A wrong threshold would show here first. "
            "Some of these pairs may be neighbouring slices of one scan.",
            "There are no near copies.",
            _least_certain(survey, near, pictures),
            len(near),
        )
    )
    return result


def _leaks(survey: Survey) -> np.ndarray:
    """bool [M]: one image of the pair is in the training split of a collection, the other in its test split."""
    first, second = survey.split[survey.first], survey.split[survey.second]
    same_collection = survey.collection[survey.first] == survey.collection[survey.second]
    return same_collection & (((first == TRAIN) & (second == TEST)) | ((first == TEST) & (second == TRAIN)))


def _spread(survey: Survey, pairs: np.ndarray, pictures: np.ndarray) -> list[int]:
    """Up to SHOWN of ``pairs``, spread over collections, pictures and the range of similarity.

    ``pictures`` [N] numbers the picture that each image shows.
    """
    strata: dict[tuple[int, int], list[int]] = {}  # by the two collections
    for pair in pairs.tolist():
        ends = (int(survey.collection[image]) for image in (survey.first[pair], survey.second[pair]))
        low, high = sorted(ends)
        strata.setdefault((low, high), []).append(pair)
    ranked: list[tuple[tuple[int, int], float, int]] = []
    for number, (key, members) in enumerate(sorted(strata.items(), key=lambda entry: (len(entry[1]), entry[0]))):
        room = -(-(SHOWN - len(ranked)) // (len(strata) - number))
        ranked += [(key, -float(survey.similarity[pair]), pair) for pair in _sample(survey, members, pictures, room)]
    return [pair for *_, pair in sorted(ranked)]


def _sample(survey: Survey, pairs: list[int], pictures: np.ndarray, room: int) -> list[int]:
    """Up to ``room`` of ``pairs``: one pair of each picture first, evenly spaced over the sorted similarities."""
    turns = _repeats([int(pictures[survey.first[pair]]) for pair in pairs])
    sample: list[int] = []
    for turn in range(max(turns) + 1):
        candidates = [pair for pair, repeat in zip(pairs, turns, strict=True) if repeat == turn]
        candidates.sort(key=lambda pair: (-float(survey.similarity[pair]), pair))
        count = min(room - len(sample), len(candidates))
        positions = np.linspace(0, len(candidates) - 1, count).round().astype(int).tolist()
        sample += [candidates[position] for position in positions]
        if len(sample) == room:
            break
    return sample


def _least_certain(survey: Survey, near: np.ndarray, pictures: np.ndarray) -> list[int]:
    """Up to SHOWN pairs closest to their threshold, one per picture; half of them registered if there are enough."""
    order = near[np.argsort(survey.similarity[near], kind="stable")]
    repeats = np.array(_repeats([int(pictures[survey.first[pair]]) for pair in order]), dtype=int)
    order = order[repeats == 0]
    moved = survey.moved[order].tolist()
    ranks = _repeats(moved)  # rank among the pairs with the same threshold
    ranked = sorted(zip(ranks, moved, order.tolist(), strict=True))[:SHOWN]
    return [pair for _, _, pair in sorted(ranked, key=lambda entry: (entry[1], entry[0]))]


def _repeats(values: Sequence[int]) -> list[int]:
    """For each value the number of equal values before it: [7, 7, 3, 7] → [0, 1, 0, 2]."""
    counter: Counter[int] = Counter()
    repeats = []
    for value in values:
        repeats.append(counter[value])
        counter[value] += 1
    return repeats


def ordered_ends(survey: Survey, pair: int) -> tuple[int, int]:
    """The two images of a pair, a training image before a test image."""
    first, second = int(survey.first[pair]), int(survey.second[pair])
    swap = survey.split[first] == TEST and survey.split[second] == TRAIN
    return (second, first) if swap else (first, second)
