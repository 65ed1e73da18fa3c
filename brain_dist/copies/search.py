"""Which images show the same picture, and the groups that therefore must not be split.

**Exact copies** have the same decoded gray pixels. **Near copies** are the same slice re-encoded, resized, mirrored,
cut, shifted, turned a little, or changed in brightness, contrast, gamma or sharpness. Each pair is confirmed on pixels:
pictures that lie on each other by :mod:`brain_dist.copies.similarity` (from :data:`SAME` = 0.80), the others after
registration by :mod:`brain_dist.copies.registration` (from :data:`REGISTERED` = 0.90). Perceptual hashes find no
candidates: slices of neighbouring positions hash alike, and mirrored or cut ones do not.

The thresholds rest on pairs whose truth is known, and on looking at those around them (``results/audit.md`` has tables
and commands):

- Cheng, 3,064 slices of 209 patients: of 4.65 million pairs of different patients the closest has 0.750 aligned and
  0.878 registered. Of the pairs of one patient 261 neighbouring slices reach 0.80 aligned, none 0.90; nine more
  reach 0.90 after registration.
- Br35H, 1,500 tumour-free images: 201 pictures in up to 43 renderings (contrast, sharpening, mirroring). No pair lies
  between 0.68 and 0.76, where the sets stay the same. Below come T2 and FLAIR images of one head: other pictures, and
  not joined, so that these groups are slices of a scan rather than patients.
- The 7,019-image Kaggle collection against Cheng: every Cheng slice is in it, and 4,750 of its images are one, at any
  threshold from 0.75 to 0.90; from 0.80 on none of them matches two patients. Four pictures have two classes there.
- What lies between 0.80 and 0.85, and what registration adds around 0.90, is one person in every pair looked at: a
  rendering of the same slice, or the slice next to it. So a near copy is the same picture or its nearest neighbour,
  never a stranger's.
- Found in part only: cuts of more than a tenth on every side, turns of 5 degrees. Not found, and not meant to be: other
  sequences (T2, FLAIR) of the same head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from brain_dist.common.scratch import gathered
from brain_dist.copies.registration import REGISTERED, moved_pairs
from brain_dist.copies.similarity import SAME, aligned_pairs

__all__ = ["REGISTERED", "SAME"]


@dataclass(frozen=True, eq=False)
class NearPairs:
    """M pairs of images with different pixels that show one picture, sorted.

    ``first`` < ``second``: int64 [M], positions in the audited list; ``similarity`` float32 [M], from the threshold to
    1; ``mirrored`` bool [M]: the pair agrees better when one of the two is flipped left to right; ``moved`` bool [M]:
    it agrees only after registration, so one of the two is cut, shifted or turned.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray
    moved: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class Findings:
    """``copy_of`` int64 [N]: the first image with the same pixels (itself, where there is none); ``near``: near copies;
    ``groups`` int64 [N]: the first image of each one's group, over patients and copies of both kinds."""

    copy_of: np.ndarray
    near: NearPairs
    groups: np.ndarray


def find_copies(thumbs: np.ndarray, hashes: Sequence[str], patients: Sequence[tuple[str, str | None]],
         progress: Callable[[int, int], None] | None = None) -> Findings:  # fmt: skip
    """Find copies and groups among N images.

    ``thumbs`` uint8 [N, 2, 64, 64] and ``hashes`` as :mod:`brain_dist.collection.pixels` makes them; ``patients`` holds
    (dataset, patient or None) of each image: the same patient name in two datasets is two patients.
    """
    copy_of = np.array(_first_of(list(hashes)), dtype=np.int64)
    distinct = np.flatnonzero(copy_of == np.arange(len(copy_of)))
    among = near_pairs(gathered(thumbs, distinct), progress=progress)
    near = NearPairs(distinct[among.first], distinct[among.second], among.similarity, among.mirrored, among.moved)
    known = [f"{dataset}\0{patient}" if patient is not None else None for dataset, patient in patients]
    alone = [name if name is not None else position for position, name in enumerate(known)]
    links = [
        *enumerate(copy_of.tolist()),
        *zip(near.first.tolist(), near.second.tolist(), strict=True),
        *enumerate(_first_of(alone)),
    ]
    return Findings(copy_of, near, connected(len(copy_of), links))


def near_pairs(thumbs: np.ndarray, progress: Callable[[int, int], None] | None = None) -> NearPairs:
    """All pairs of near copies among thumbnails uint8 [N, 2, 64, 64] (whole picture, head alone).

    Pairs that are joined by way of other, aligned ones are not looked at again by registration.
    """
    count = len(thumbs)

    def told(low: int, high: int) -> Callable[[int, int], None]:
        """Progress of a stage as a share of 1,000."""
        return lambda done, total: progress(low + (high - low) * done // total, 1000) if progress else None

    aligned = aligned_pairs(thumbs, progress=told(0, 300))
    joined = connected(count, zip(aligned.first.tolist(), aligned.second.tolist(), strict=True))
    moved = moved_pairs(thumbs[:, 1], joined, progress=told(300, 1000))
    both = [np.concatenate([getattr(part, name) for part in (aligned, moved)])
            for name in ("first", "second", "similarity", "mirrored")]  # fmt: skip
    is_moved = np.arange(len(both[0])) >= len(aligned.first)
    order = np.lexsort((both[1], both[0]))
    return NearPairs(*(column[order] for column in (*both, is_moved)))


def _first_of(values: Sequence[object]) -> list[int]:
    """For each value the position of the first one equal to it."""
    seen: dict[object, int] = {}
    return [seen.setdefault(value, position) for position, value in enumerate(values)]


def connected(count: int, links: Iterable[tuple[int, int]]) -> np.ndarray:
    """Union-find: int64 [count], for each element the smallest one that the links connect it with."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in links:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(item) for item in range(count)], dtype=np.int64)


def counts(findings: Findings, labels: np.ndarray, patients: Sequence[tuple[str, str | None]],
           splits: np.ndarray) -> dict[str, object]:  # fmt: skip
    """What the manifest says of the findings; ``labels`` int [N], ``splits`` int [N] with 0 for train and 2 for test.

    ``exact_redundant``: images whose pixels another image already has; ``near_pairs`` and how many are mirrored;
    ``images_with_label_conflict``: images that have a copy of another class; ``test_…``: test images with a copy, or
    with another image of the same patient, in train, and with either (all 0 where groups were kept whole).
    """
    test = splits == 2
    leaked = test & _seen_by_copies(findings, (splits == 0).astype(np.int64)).astype(bool)
    other_labels = _seen_by_copies(findings, 1 << labels.astype(np.int64)) & ~(1 << labels.astype(np.int64))
    trained = {known for known, code in zip(patients, splits, strict=True) if code == 0}
    shared = np.array([known[1] is not None and known in trained for known in patients], dtype=bool) & test
    sizes = np.sort(np.unique(findings.groups, return_counts=True)[1])[::-1]
    return {
        "exact_redundant": int((findings.copy_of != np.arange(len(labels))).sum()),
        "near_pairs": len(findings.near),
        "near_pairs_mirrored": int(findings.near.mirrored.sum()),
        "images_with_label_conflict": int((other_labels != 0).sum()),
        "largest_groups": sizes[:5].tolist(),
        "test_with_copy_in_train": int(leaked.sum()),
        "test_with_patient_in_train": int(shared.sum()),
        "test_leaked": int((leaked | shared).sum()),
    }


def _seen_by_copies(findings: Findings, bits: np.ndarray) -> np.ndarray:
    """For each image the bits (int64 [N]) of itself, its exact copies and its near copies, united."""
    of_pixels = np.zeros_like(bits)
    np.bitwise_or.at(of_pixels, findings.copy_of, bits)
    united = of_pixels.copy()
    np.bitwise_or.at(united, findings.near.first, of_pixels[findings.near.second])
    np.bitwise_or.at(united, findings.near.second, of_pixels[findings.near.first])
    return united[findings.copy_of]
