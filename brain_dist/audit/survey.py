"""What published collections really hold: every pair of copies, alone and between collections, and what follows.

:func:`survey` decodes and compares, :func:`summary` counts (``audit.json``), :func:`pairs_table` lists
(``pairs.parquet``); ``brain_dist.audit.page`` shows. Nothing is written into the collections.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.collection.examination import BadImages, examine_all
from brain_dist.collection.recipes import Recipe
from brain_dist.collection.records import find_records
from brain_dist.common.scratch import concatenated
from brain_dist.common.text import printable
from brain_dist.common.workers import worker_pool
from brain_dist.copies import search
from brain_dist.copies.registration import REGISTERED_THRESHOLD
from brain_dist.copies.similarity import ALIGNED_THRESHOLD
from brain_dist.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# more images of the same pixels than this (all-black slices …): not all their pairs are listed, but each image's with
# the first one of every collection, split and class among them, so that no count changes
CROWD = 64
TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Source:
    """A collection to look at: the name it goes by, its folder, how it lies there."""

    name: str
    folder: Path
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class Survey:
    """N images of all collections and their M pairs.

    ``path`` (to show), ``file``, ``label`` (class name), ``split`` and ``patient`` (None where unknown), ``slice`` (its
    number in the file, None where there is but one): object [N]; ``collection`` and ``part`` int64 [N], positions in
    ``names`` and in the parts of that collection's recipe.
    ``first`` < ``second`` int64 [M]: every pair of copies; ``exact``, ``mirrored``, ``moved`` bool [M]; ``similarity``
    float32 [M].
    ``skipped``: damaged files that were left out.
    """

    names: tuple[str, ...]
    path: np.ndarray
    file: np.ndarray
    slice: np.ndarray
    label: np.ndarray
    split: np.ndarray
    patient: np.ndarray
    collection: np.ndarray
    part: np.ndarray
    first: np.ndarray
    second: np.ndarray
    exact: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray
    moved: np.ndarray
    skipped: list[dict[str, str]]
    warnings: list[str]

    def clashes(self, chosen: np.ndarray) -> np.ndarray:
        """bool [len(chosen)]: do the labels of these pairs contradict each other? "tumor" agrees with any tumour."""
        one, other = self.label[self.first[chosen]], self.label[self.second[chosen]]
        vague = ((one == "tumor") & (other != "notumor")) | ((other == "tumor") & (one != "notumor"))
        return (one != other) & ~vague


def survey(
    sources: Sequence[Source], *, workers: int, skip_bad: bool, progress: Callable[[str, int, int], None]
) -> Survey:
    """Look at all images of ``sources``; errors as a build has them, with the collection's name before them."""
    columns: dict[str, list[Any]] = {key: [] for key in ("path", "file", "slice", "label", "split", "patient")}
    collection, parts, hashes, thumbs, skipped, warnings = [], [], [], [], [], []
    listed, damaged = [], []
    for source in sources:  # all folders first: what is wrong with the last one is told before an hour of decoding
        with _named(source):
            records, told = find_records(source.recipe, source.folder)
        listed.append(records)
        warnings += [f"{source.name}: {text}" for text in told]
    with worker_pool(workers) as run:
        for number, (source, records) in enumerate(zip(sources, listed, strict=True)):
            try:
                with _named(source):
                    good, images, small, bad = examine_all(
                        records, source.folder, source.recipe, run, skip_bad=skip_bad,
                        progress=partial(progress, f"decoding {source.name}"),
                    )  # fmt: skip
            except BadImages as error:
                damaged += [f"{source.name}: {line}" for line in error.files]
                continue
            skipped += [{"collection": source.name, **entry} for entry in bad]
            for record in good:
                columns["path"].append(printable(record.path))
                columns["file"].append(source.folder / record.path)
                columns["slice"].append(record.frame)
                columns["label"].append(source.recipe.classes[record.label])
                columns["split"].append(record.published)
                columns["patient"].append(record.patient)
            collection += [number] * len(good)
            parts += [record.part for record in good]
            hashes += [image.pixel_hash for image in images]
            thumbs.append(small)
    if damaged:
        raise BadImages(damaged)
    arrays = {key: np.array([*values, None], dtype=object)[:-1] for key, values in columns.items()}
    where = np.array(collection, dtype=np.int64)
    unknown = [("", None)] * len(where)  # copies alone are wanted here; patients come in when groups are counted
    found = search.find_copies(concatenated(thumbs), hashes, unknown, progress=partial(progress, "comparing"))
    return Survey(
        tuple(source.name for source in sources),
        **arrays,
        collection=where,
        part=np.array(parts, dtype=np.int64),
        **_all_pairs(found, list(zip(collection, columns["split"], columns["label"], strict=True))),
        skipped=skipped,
        warnings=warnings,
    )


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Says of a user's mistake in which collection it is; the list of damaged files goes on as it is."""
    try:
        yield
    except BadImages:
        raise
    except UserError as error:
        raise UserError(f"{source.name}: {error}") from None


def _all_pairs(found: search.Findings, kinds: Sequence[Hashable]) -> dict[str, np.ndarray]:
    """Pairs of pixels → pairs of images: whatever is a near copy of an image is one of its exact copies too.

    ``kinds`` [N]: of a crowd, images of one kind (collection, split and class) are represented by the first.
    """
    order = np.argsort(found.copy_of, kind="stable")
    firsts, starts = np.unique(found.copy_of[order], return_index=True)
    parts = (part.tolist() for part in np.split(order, starts[1:]))
    same: dict[int, list[int]] = dict(zip(firsts.tolist(), parts, strict=True))
    heads = {
        leader: members
        if len(members) <= CROWD
        else list({kinds[image]: image for image in reversed(members)}.values())
        for leader, members in same.items()
    }
    rows: list[tuple[int, int, bool, float, bool, bool]] = []
    for leader, members in same.items():
        pairs = {(min(a, b), max(a, b)) for a in heads[leader] for b in members if a != b}
        rows += [(a, b, True, 1.0, False, False) for a, b in pairs]
    near = found.near
    columns = (near.first, near.second, near.similarity, near.mirrored, near.moved)
    for one, other, similar, mirrored, moved in zip(*(column.tolist() for column in columns), strict=True):
        ends = (*product(heads[one], same[other]), *product(same[one], heads[other]))
        pairs = {(min(a, b), max(a, b)) for a, b in ends}
        rows += [(a, b, False, similar, mirrored, moved) for a, b in pairs]
    rows.sort()
    first, second, exact, similarity, mirrored, moved = zip(*rows, strict=True) if rows else ((),) * 6
    return {
        "first": np.array(first, dtype=np.int64),
        "second": np.array(second, dtype=np.int64),
        "exact": np.array(exact, dtype=bool),
        "similarity": np.array(similarity, dtype=np.float32),
        "mirrored": np.array(mirrored, dtype=bool),
        "moved": np.array(moved, dtype=bool),
    }


def pairs_table(found: Survey) -> pa.Table:
    """A row a pair: ``kind`` (exact or near), ``similarity``, ``mirrored``, ``moved``, and of both images ``path``,
    ``collection``, ``split``, ``label``, ``patient`` with the ending ``_a`` or ``_b``; null where unknown."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for ending, side in (("a", found.first), ("b", found.second)):
        names = np.array([*found.names, None], dtype=object)
        values = {"collection": names[found.collection[side]]}
        values |= {key: getattr(found, key)[side] for key in ("path", "split", "label", "patient")}
        columns |= {f"{key}_{ending}": pa.array(value.tolist(), pa.string()) for key, value in values.items()}
        columns[f"slice_{ending}"] = pa.array(found.slice[side].tolist(), pa.int32())
    columns["kind"] = pa.array(np.where(found.exact, "exact", "near").tolist(), pa.string())
    columns["similarity"] = pa.array(found.similarity)
    columns["mirrored"], columns["moved"] = pa.array(found.mirrored), pa.array(found.moved)
    return pa.table(columns)


def summary(found: Survey) -> dict[str, Any]:
    """The counts of ``audit.json``; shards/README.md explains each."""
    between = {
        f"{found.names[a]}|{found.names[b]}": _between(found, a, b) for a, b in combinations(range(len(found.names)), 2)
    }
    return {
        "collections": {name: _alone(found, number) for number, name in enumerate(found.names)},
        "between": between,
        "thresholds": {"aligned": ALIGNED_THRESHOLD, "registered": REGISTERED_THRESHOLD},
        "skipped": found.skipped,
    }


def _alone(found: Survey, number: int) -> dict[str, Any]:
    """Counts of one collection, as if there were no other."""
    members = np.flatnonzero(found.collection == number)
    inside = (found.collection[found.first] == number) & (found.collection[found.second] == number)
    exact, near = np.flatnonzero(inside & found.exact), np.flatnonzero(inside & ~found.exact)
    train, test = found.split == TRAIN, found.split == TEST
    known = found.patient[members]
    by_exact, by_near = (_touched(found, part, test, train) for part in (exact, near))
    trained = set(found.patient[train & (found.collection == number)]) - {None}
    return {
        "images": len(members),
        "exact_redundant": len(members) - len(np.unique(_joined(found, exact)[members])),
        "test_images": int(test[members].sum()),
        "test_images_with_exact_train_copy": len(by_exact),
        "test_images_with_near_train_copy": len(by_near),
        "test_images_with_any_train_copy": len(np.union1d(by_exact, by_near)),
        "label_conflicts": _conflicts(found, np.flatnonzero(inside)),
        "groups": len(np.unique(_joined(found, np.flatnonzero(inside), patients=True)[members])),
        "test_images_with_patient_in_train": (
            int(np.isin(known[test[members]], list(trained)).sum()) if any(known != None) else None  # noqa: E711
        ),
    }


def _between(found: Survey, a: int, b: int) -> dict[str, Any]:
    """Counts of two collections; the keys say A for the first one and B for the second."""
    where = found.collection
    of_a, of_b = where == a, where == b
    across = (of_a[found.first] & of_b[found.second]) | (of_b[found.first] & of_a[found.second])
    counts: dict[str, Any] = {"A": found.names[a], "B": found.names[b]}
    for side, mine, other in (("A", of_a, of_b), ("B", of_b, of_a)):
        for kind, chosen in (("exact", across & found.exact), ("near", across & ~found.exact), ("any", across)):
            counts[f"{kind}_images_in_{side}"] = len(_touched(found, np.flatnonzero(chosen), mine, other))
    counts["label_conflicts"] = _conflicts(found, np.flatnonzero(across))
    for side, through, mine, other in (("A", "B", of_a, of_b), ("B", "A", of_b, of_a)):
        key = f"test_images_of_{side}_whose_patient_is_in_train_of_{side}_through_{through}"
        counts[key] = _inherited_leaks(found, np.flatnonzero(across), mine, other)
    return counts


def _inherited_leaks(found: Survey, pairs: np.ndarray, mine: np.ndarray, other: np.ndarray) -> int | None:
    """Test images of ``mine`` that are copies of a patient's image in ``other`` of whom train holds a copy too.

    None where ``other`` knows no patients.
    """
    if not any(found.patient[other] != None):  # noqa: E711
        return None
    patients: dict[int, set[str]] = {}
    for one, two in zip(found.first[pairs].tolist(), found.second[pairs].tolist(), strict=True):
        here, there = (one, two) if mine[one] else (two, one)
        if found.patient[there] is not None:
            patients.setdefault(here, set()).add(found.patient[there])
    trained = set().union(*(who for image, who in patients.items() if found.split[image] == TRAIN))
    return sum(bool(who & trained) for image, who in patients.items() if found.split[image] == TEST)


def _touched(found: Survey, pairs: np.ndarray, these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """The images of ``these`` (bool [N]) that a pair joins to one of ``those``; sorted, each once."""
    one, two = found.first[pairs], found.second[pairs]
    return np.union1d(one[these[one] & those[two]], two[these[two] & those[one]])


def _joined(found: Survey, pairs: np.ndarray, *, patients: bool = False) -> np.ndarray:
    """int64 [N]: the first image of each one's set, over pairs and, if asked, patients of a collection."""
    links = list(zip(found.first[pairs].tolist(), found.second[pairs].tolist(), strict=True))
    if patients:
        seen: dict[tuple[int, str], int] = {}
        for image, (number, patient) in enumerate(zip(found.collection.tolist(), found.patient, strict=True)):
            if patient is not None:
                links.append((seen.setdefault((number, patient), image), image))
    return search.connected(len(found.path), links)


def _conflicts(found: Survey, pairs: np.ndarray) -> int:
    """Pictures under labels that contradict each other: sets of copies, not images."""
    joined = _joined(found, pairs)
    return len(np.unique(joined[found.first[pairs[found.clashes(pairs)]]]))
