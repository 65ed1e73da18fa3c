"""Choose the pairs of copies that the audit's page shows. The same survey always gives the same pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from brain_dist.audit.survey import TEST, TRAIN, Survey
from brain_dist.copies.search import connected

SHOWN = 24  # pairs per gallery


class Gallery(NamedTuple):
    """``pairs`` to show, as positions among the survey's pairs, chosen from ``total`` pairs."""

    pairs: list[int]
    total: int


def galleries(survey: Survey) -> dict[str, Gallery]:
    """The galleries of the page by name, see its template."""
    pictures = connected(len(survey.path), np.column_stack([survey.first, survey.second]))
    leaks = _leaks(survey)
    masks = {
        "contradicting": survey.contradicting(np.arange(len(survey.first))),
        "exact_leaks": leaks & survey.exact,
        "near_leaks": leaks & ~survey.exact,
        "across": survey.collection[survey.first] != survey.collection[survey.second],
    }
    near = np.flatnonzero(~survey.exact)
    return {
        **{
            name: Gallery(_spread(survey, np.flatnonzero(mask), pictures), int(mask.sum()))
            for name, mask in masks.items()
        },
        "least_certain": Gallery(_least_certain(survey, near, pictures), len(near)),
    }


def _leaks(survey: Survey) -> np.ndarray:
    """bool [M]: one image of the pair is in the training split of a collection, the other in its test split."""
    first, second = survey.split[survey.first], survey.split[survey.second]
    same_collection = survey.collection[survey.first] == survey.collection[survey.second]
    return same_collection & (((first == TRAIN) & (second == TEST)) | ((first == TEST) & (second == TRAIN)))


def _spread(survey: Survey, pairs: np.ndarray, pictures: np.ndarray) -> list[int]:
    """Up to SHOWN of ``pairs``, spread over collections, pictures and the range of similarity.

    ``pictures`` [N] numbers the picture that each image shows.
    """
    strata: dict[tuple[int, ...], list[int]] = {}  # by the two collections
    for pair in pairs.tolist():
        ends = sorted(survey.collection[[survey.first[pair], survey.second[pair]]].tolist())
        strata.setdefault(tuple(ends), []).append(pair)
    ranked: list[tuple[tuple[int, ...], float, int]] = []
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
        positions = np.linspace(0, len(candidates) - 1, min(room - len(sample), len(candidates))).round().astype(int)
        sample += [candidates[position] for position in positions.tolist()]
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
    return [pair for *_, pair in sorted(ranked, key=lambda entry: (entry[1], entry[0]))]


def _repeats(values: Sequence[int]) -> list[int]:
    """For each value the number of equal values before it: [7, 7, 3, 7] → [0, 1, 0, 2]."""
    counters: defaultdict[int, Iterator[int]] = defaultdict(count)
    return [next(counters[value]) for value in values]


def ordered_ends(survey: Survey, pair: int) -> tuple[int, int]:
    """The two images of a pair, a training image before a test image."""
    first, second = int(survey.first[pair]), int(survey.second[pair])
    swap = survey.split[first] == TEST and survey.split[second] == TRAIN
    return (second, first) if swap else (first, second)
