"""Which images show the same picture, and the groups that therefore must not be split.

**Exact copies** have the same decoded gray pixels. **Near copies** are the same slice re-encoded, resized, mirrored,
cut out to the head, or changed in brightness, contrast, gamma or sharpness. Plain correlation cannot tell these from
two heads of like outline: between different patients it reaches 0.96, while a sharpened copy falls to 0.87. What
copies share is the local structure. So each 64 x 64 thumbnail, less its local mean and divided by its local spread, is
correlated with the others': over the whole picture and over the head alone, straight and mirrored; the best counts.

:data:`SAME` = 0.80 was set on real collections, looking at the pairs around it:

- Cheng, 3,064 slices of 209 patients: of 4.65 million pairs from different patients the closest has 0.750, the next
  0.743. Of the pairs from one patient 261, neighbouring slices, exceed 0.80; none exceeds 0.90.
- Br35H, 1,500 tumour-free images: 201 pictures in up to 43 renderings (contrast, sharpening, mirroring). No pair lies
  between 0.68 and 0.76, where the sets stay the same. Below come T2 and FLAIR images of one head: other pictures, and
  not joined, so that these groups are slices of a scan rather than patients.
- The 7,019-image Kaggle collection against Cheng: every Cheng slice is in it, and 4,750 of its images are one, at any
  threshold from 0.75 to 0.90; from 0.80 on none of them matches two patients. Four pictures have two classes there.
- Phantoms (60 patients of one template): all 60 planted copies have 0.998 or more, and no two patients are joined.
- Copies made on purpose from 150 images of either set (JPEG quality 30, resized to 224 pixels, gamma 0.6 and 1.6,
  brightness 0.5 and 1.6, contrast 2, unsharp mask of 300 %): 99 % have 0.91 or more; blurred by 2 pixels, 0.85.
- Not found, or in part: copies turned by 2 degrees (median 0.86), and cropped within the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SAME = 0.80  # structural similarity from which two images count as one picture; see above
_WINDOW = 9  # pixels of the 64 x 64 thumbnail over which mean and spread are local
_BASIS = 256  # dimensions of the candidate search
_BLOCK = 2048  # images a side of one block of the candidate search


@dataclass(frozen=True, eq=False)
class NearPairs:
    """M pairs of images with different pixels that show one picture, sorted.

    ``first`` < ``second``: int64 [M], positions in the audited list; ``similarity`` float32 [M], from :data:`SAME` to
    1; ``mirrored`` bool [M]: the pair agrees better when one of the two is flipped left to right.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, eq=False)
class Findings:
    """``copy_of`` int64 [N]: the first image with the same pixels (itself, where there is none); ``near``: near copies;
    ``groups`` int64 [N]: the first image of each one's group, over patients and copies of both kinds."""

    copy_of: np.ndarray
    near: NearPairs
    groups: np.ndarray


def find(thumbs: np.ndarray, hashes: Sequence[str], patients: Sequence[tuple[str, str | None]],
         progress: Callable[[int, int], None] | None = None) -> Findings:  # fmt: skip
    """Find copies and groups among N images.

    ``thumbs`` uint8 [N, 2, 64, 64] and ``hashes`` as :mod:`brain_dist.data.pixels` makes them; ``patients`` holds
    (dataset, patient or None) of each image: the same patient name in two datasets is two patients.
    """
    copy_of = np.array(_first_of(list(hashes)), dtype=np.int64)
    distinct = np.flatnonzero(copy_of == np.arange(len(copy_of)))
    among = near_pairs(thumbs[distinct], progress=progress)
    near = NearPairs(distinct[among.first], distinct[among.second], among.similarity, among.mirrored)
    known = [f"{dataset}\0{patient}" if patient is not None else None for dataset, patient in patients]
    alone = [name if name is not None else position for position, name in enumerate(known)]
    links = [
        *enumerate(copy_of.tolist()),
        *zip(near.first.tolist(), near.second.tolist(), strict=True),
        *enumerate(_first_of(alone)),
    ]
    return Findings(copy_of, near, connected(len(copy_of), links))


def near_pairs(
    thumbs: np.ndarray, *, same: float = SAME, progress: Callable[[int, int], None] | None = None
) -> NearPairs:
    """All pairs among thumbnails uint8 [N, 2, 64, 64] (whole picture, head alone) of similarity ``same`` or more.

    Comparing all pairs at full length would cost N² x 4096 products four times over. Each unit vector is therefore
    projected onto the 256 main directions of a sample, and what is left of it is kept as one more coordinate: by the
    Cauchy-Schwarz inequality the product of those short vectors is never below the true similarity, so candidates
    found with them miss nothing, and only candidates are compared in full.
    """
    count = len(thumbs)
    found: list[tuple[np.ndarray, ...]] = []
    starts = range(0, count, _BLOCK)
    done, total = 0, 2 * len(starts)
    for frame in range(thumbs.shape[1]):
        views = (thumbs[:, frame], thumbs[:, frame, :, ::-1])
        basis = _basis(views[0])
        short = [np.concatenate([_project(view[low : low + _BLOCK], basis) for low in starts]) for view in views]
        for low in starts:
            for start in starts[low // _BLOCK :]:
                for mirrored in (False, True):
                    bound = short[0][low : low + _BLOCK] @ short[mirrored][start : start + _BLOCK].T
                    i, j = np.nonzero(bound >= same - 1e-3)
                    i, j = i + low, j + start
                    i, j = i[i < j], j[i < j]
                    value = _similarity(views[0], views[mirrored], i, j)
                    keep = value >= same
                    found.append((i[keep], j[keep], value[keep], np.full(int(keep.sum()), mirrored)))
            done += 1
            if progress is not None:
                progress(done, total)
    first, second, value, flipped = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((flipped, -value, second, first))  # the best of up to four finds of a pair comes first
    first, second, value, flipped = first[order], second[order], value[order], flipped[order]
    best = np.ones(len(first), dtype=bool)
    best[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    return NearPairs(first[best].astype(np.int64), second[best].astype(np.int64), value[best], flipped[best])


def structure(thumbs: np.ndarray) -> np.ndarray:
    """Local structure of thumbnails uint8 [N, 64, 64]: float32 [N, 4096] of length 1, or all 0 for a flat picture."""
    from scipy.ndimage import uniform_filter

    pixels = thumbs.astype(np.float32)
    window = (0, _WINDOW, _WINDOW)
    detail = pixels - uniform_filter(pixels, window)
    spread = np.sqrt(np.maximum(uniform_filter(detail * detail, window), 0.0))
    # The floor keeps the noise of an empty background from counting as much as anatomy.
    floor = 0.05 * pixels.std(axis=(1, 2), keepdims=True) + 0.5
    flat = (detail / (spread + floor)).reshape(len(pixels), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 1e-3)


def _basis(thumbs: np.ndarray) -> np.ndarray:
    """Orthonormal float32 [<= 256, 4096]: the main directions of up to 512 thumbnails, every other one mirrored."""
    sample = structure(thumbs[:: max(1, len(thumbs) // 512)][:512])
    sample[1::2] = sample[1::2].reshape(-1, *thumbs.shape[1:])[:, :, ::-1].reshape(-1, sample.shape[1])
    # The right singular vectors of the sample by way of its small Gram matrix: forty times faster than a plain SVD.
    wide = sample.astype(np.float64)
    power, mix = np.linalg.eigh(wide @ wide.T)
    used = np.flatnonzero(power > 1e-6 * power[-1])[-_BASIS:]
    return ((mix[:, used].T @ wide) / np.sqrt(power[used, None])).astype(np.float32)


def _project(thumbs: np.ndarray, basis: np.ndarray) -> np.ndarray:
    full = structure(thumbs)
    short = full @ basis.T
    left = np.sqrt(np.maximum((full * full).sum(axis=1) - (short * short).sum(axis=1), 0.0))
    return np.concatenate([short, left[:, None]], axis=1)


def _similarity(left: np.ndarray, right: np.ndarray, i: np.ndarray, j: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """float32 [len(i)]: correlation of the structure of left[i] and right[j]."""
    result = np.zeros(len(i), dtype=np.float32)
    for low in range(0, len(i), chunk):
        (rows, at_row), (columns, at_column) = (
            np.unique(part[low : low + chunk], return_inverse=True) for part in (i, j)
        )
        a, b = structure(left[rows]), structure(right[columns])
        result[low : low + chunk] = np.einsum("ij,ij->i", a[at_row], b[at_column])
    return result


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
    ``label_conflicts``: images that have a copy of another class; ``test_…``: test images with a copy, or with another
    image of the same patient, in train, and with either (all 0 where groups were kept whole).
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
        "label_conflicts": int((other_labels != 0).sum()),
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
