"""Find the images that show the same picture, and the groups of images that must stay in one split.

A blank image is not a copy of any other: at the ends of volumes, such images would join all patients to one group.

**Exact copies** have the same decoded gray pixels. **Near copies** are the same slice re-encoded, resized, mirrored,
cropped, shifted, slightly rotated, or changed in brightness, contrast, gamma or sharpness. Every pair is confirmed on
pixels: aligned pairs by :mod:`brain_dist.copies.similarity` (from a similarity of 0.80), the others after registration
by :mod:`brain_dist.copies.registration` (from 0.90). Perceptual hashes are not used to find candidates: neighbouring
slices have similar hashes, and mirrored or cropped copies do not.

The thresholds rest on pairs with known truth and on visual inspection of the pairs near them (``results/audit.md`` has
tables and commands):

- Cheng, 3,064 slices of 209 patients: among 4.65 million pairs of different patients the highest similarity is 0.750
  aligned and 0.873 registered. Of the pairs of one patient, 261 neighbouring slices reach 0.80 aligned and none
  reaches 0.90; nine more reach 0.90 after registration.
- Br35H, 1,500 tumour-free images: 201 pictures in up to 43 renderings (contrast, sharpening, mirroring). No pair has a
  similarity between 0.68 and 0.76, so the groups do not change there. Below are T2 and FLAIR images of one head. These
  are different pictures and are not joined, so these groups are slices of a scan rather than patients.
- The 7,019-image Kaggle collection against Cheng: it contains every Cheng slice, and 4,750 of its images are Cheng
  slices at any threshold from 0.75 to 0.90. From 0.80 on, none of them matches two patients. Four pictures have two
  classes there.
- Every inspected pair between 0.80 and 0.85, and every pair that registration adds around 0.90, shows one person: a
  rendering of the same slice, or the neighbouring slice. A near copy is therefore the same picture or its nearest
  neighbour, never an image of another person.
- Crops of more than a tenth on every side and rotations of 5 degrees are found only in part. Other sequences (T2,
  FLAIR) of the same head are not found, and are not meant to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from brain_dist.collection.measures import are_blank
from brain_dist.common.scratch import gathered
from brain_dist.copies.registration import moved_pairs
from brain_dist.copies.similarity import NearPairs, aligned_pairs, best_of_each


@dataclass(frozen=True, eq=False)
class Findings:
    """The copies and groups among N images.

    Attributes:
        copy_of: int64 [N], the first image with the same pixels; the image itself if there is none or it is blank.
        near: near copies.
        groups: int64 [N], the first image of each image's group, joined by patients and copies of both kinds.
    """

    copy_of: np.ndarray
    near: NearPairs
    groups: np.ndarray


def find_copies(
    thumbs: np.ndarray,
    hashes: Sequence[str],
    patients: Sequence[tuple[str, str | None]],
    progress: Callable[[int, int], None] | None = None,
    between: np.ndarray | None = None,
) -> Findings:
    """Find copies and groups among N images.

    Args:
        thumbs: uint8 [N, 2, 64, 64], from :mod:`brain_dist.collection.measures`.
        hashes: pixel hash of each image, from the same module.
        patients: (dataset, patient or None) of each image. The same patient name in two datasets is two patients.
        progress: called with (done, total).
        between: number of each image's collection, int [N], if only copies in another collection are of interest; saves
            the registration within collections.
    """
    blank = are_blank(thumbs)
    pictures = [position if blank[position] else pixels for position, pixels in enumerate(hashes)]
    copy_of = np.array(_first_equal(pictures), dtype=np.int64)
    distinct = np.flatnonzero((copy_of == np.arange(len(copy_of))) & ~blank)
    if between is not None:
        shared = copy_of[between != between[copy_of]]  # a picture that several collections have is of none
        between = between.copy()
        between[shared] = -1 - shared
        between = between[distinct]
    among = near_pairs(gathered(thumbs, distinct), progress, between)
    near = replace(among, first=distinct[among.first], second=distinct[among.second])
    # an image without a patient is a patient of its own
    persons = [known if known[1] is not None else position for position, known in enumerate(patients)]
    images = np.arange(len(copy_of))
    first = np.concatenate([images, near.first, images])
    second = np.concatenate([copy_of, near.second, np.array(_first_equal(persons), dtype=np.int64)])
    return Findings(copy_of, near, connected(len(copy_of), np.column_stack([first, second])))


def near_pairs(
    thumbs: np.ndarray, progress: Callable[[int, int], None] | None = None, between: np.ndarray | None = None
) -> NearPairs:
    """All pairs of near copies among thumbnails uint8 [N, 2, 64, 64] (whole image, head alone).

    Registration skips pairs that aligned pairs already connect, and pairs with the same value in ``between``, int [N].
    """

    def stage_progress(low: int, high: int) -> Callable[[int, int], None]:
        """Progress of a stage as a share of 1,000."""
        return lambda done, total: progress(low + (high - low) * done // total, 1000) if progress else None

    if len(thumbs) < 2:  # such as when every image of a collection is blank
        return best_of_each([], moved=False)
    aligned = aligned_pairs(thumbs, progress=stage_progress(0, 300))
    joined = connected(len(thumbs), np.column_stack([aligned.first, aligned.second]))
    skipped = [joined] if between is None else [joined, between]
    moved = moved_pairs(thumbs[:, 1], *skipped, progress=stage_progress(300, 1000))
    columns = [np.concatenate(column) for column in zip(vars(aligned).values(), vars(moved).values(), strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    return NearPairs(*(column[order] for column in columns))


def _first_equal(values: Sequence[object]) -> list[int]:
    """For each value the position of the first value equal to it."""
    positions: dict[object, int] = {}
    return [positions.setdefault(value, position) for position, value in enumerate(values)]


def connected(count: int, links: ArrayLike) -> np.ndarray:
    """Connected components: int64 [count], for each element the smallest element that links connect it with.

    ``links`` is an array of ints [L, 2] or a list of pairs.
    """
    first, second = np.asarray(links, dtype=np.int64).reshape(-1, 2).T
    smallest = np.arange(count)  # so far: an element of the component, which may itself have a smaller one
    while True:
        lower = np.minimum(smallest[first], smallest[second])
        joined = smallest.copy()
        for ends in (first, second):
            np.minimum.at(joined, smallest[ends], lower)
        joined = joined[joined]
        if (joined == smallest).all():
            return smallest
        smallest = joined


def counts(
    findings: Findings, labels: np.ndarray, patients: Sequence[tuple[str, str | None]], splits: np.ndarray
) -> dict[str, object]:
    """Counts of the findings for the manifest.

    Args:
        findings: copies and groups of N images.
        labels: int [N].
        patients: (dataset, patient or None) of each image.
        splits: int [N], 0 for train and 2 for test.

    Returns:
        ``exact_redundant``: images whose pixels an earlier image has. ``near_pairs``, ``near_pairs_mirrored``: near
        copies. ``images_with_label_conflict``: images that have a copy of another class. ``largest_groups``: sizes of
        the five largest groups. ``test_with_copy_in_train``, ``test_with_patient_in_train``, ``test_leaked``: test
        images with a copy in train, with another image of the patient in train, and with either; all 0 if groups were
        kept whole.
    """
    test = splits == 2
    copy_leaks = test & _united_over_copies(findings, (splits == 0).astype(np.int64)).astype(bool)
    label_bits = 1 << labels.astype(np.int64)
    other_labels = _united_over_copies(findings, label_bits) & ~label_bits
    trained = {known for known, split in zip(patients, splits, strict=True) if split == 0}
    patient_leaks = test & np.array([known[1] is not None and known in trained for known in patients], dtype=bool)
    sizes = np.sort(np.unique(findings.groups, return_counts=True)[1])[::-1]
    return {
        "exact_redundant": int((findings.copy_of != np.arange(len(labels))).sum()),
        "near_pairs": len(findings.near),
        "near_pairs_mirrored": int(findings.near.mirrored.sum()),
        "images_with_label_conflict": int((other_labels != 0).sum()),
        "largest_groups": sizes[:5].tolist(),
        "test_with_copy_in_train": int(copy_leaks.sum()),
        "test_with_patient_in_train": int(patient_leaks.sum()),
        "test_leaked": int((copy_leaks | patient_leaks).sum()),
    }


def _united_over_copies(findings: Findings, bits: np.ndarray) -> np.ndarray:
    """The bits int64 [N] of each image, its exact copies and its near copies, combined by OR."""
    own = np.zeros_like(bits)
    np.bitwise_or.at(own, findings.copy_of, bits)
    united = own.copy()
    np.bitwise_or.at(united, findings.near.first, own[findings.near.second])
    np.bitwise_or.at(united, findings.near.second, own[findings.near.first])
    return united[findings.copy_of]
