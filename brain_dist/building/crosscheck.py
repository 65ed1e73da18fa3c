"""Compare a shard folder's manifest and index with each other and with themselves; no image is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np

from brain_dist.collection.recipes import Recipe
from brain_dist.store.index import INDEX
from brain_dist.store.manifest import MANIFEST, BuiltManifest, Manifest
from brain_dist.store.options import BuildOptions

Columns = dict[str, np.ndarray]

SHOWN = 20  # problems of one kind that are listed; a truncated shard would give one per sample
_LEAKS = ("test_with_copy_in_train", "test_with_patient_in_train", "test_leaked")


def missing_entries(manifest: Manifest) -> list[str]:
    """Entries that the nested mappings of a built folder's manifest lack."""
    if not isinstance(manifest, BuiltManifest):
        return []
    method = manifest.split["method"]
    expected = {
        "split": ("seed", "folds" if method == "kfold" else "fractions", *(("off_by",) * (method != "original"))),
        "audit": ("exact_redundant", "near_pairs", "near_pairs_mirrored", "images_with_label_conflict",
                  "largest_groups", *_LEAKS),
        "recipe": tuple(field.name for field in fields(Recipe)),
        # patients_from is only there if it was given
        "options": tuple(field.name for field in fields(BuildOptions) if field.name != "patients_from"),
    }  # fmt: skip
    return [
        f"{MANIFEST}: {entry}.{key} is missing"
        for entry, keys in expected.items()
        for key in keys
        if key not in getattr(manifest, entry)
    ]


def contradictions(manifest: Manifest) -> list[str]:
    """Values that the manifest states twice, differently. Requires that no entries are missing."""
    if not isinstance(manifest, BuiltManifest):
        return []
    recipe, options, split = manifest.recipe, manifest.options, manifest.split
    pairs = {
        f"recipe.{key}": (recipe[key], getattr(manifest, key))
        for key in ("name", "title", "source", "licence", "citation", "classes")
        if recipe[key] is not None
    }
    pairs |= {f"options.{key}": (options[key], split[key]) for key in ("fractions", "seed", "test_on") if key in split}
    pairs["options.split"] = (options["split"], split["method"])
    return [
        f"{MANIFEST}: {entry} is {value!r:.80}, but elsewhere {other!r:.80}"
        for entry, (value, other) in pairs.items()
        if value != other
    ]


def index_problems(manifest: Manifest, columns: Columns) -> list[str]:
    """Where the index differs from the manifest, or a group is in several splits although groups were kept whole."""
    problems = _row_problems(manifest, columns)
    problems += _count_problems(manifest, columns)
    problems += _group_problems(manifest, columns)
    problems += _shard_problems(manifest, columns)
    if isinstance(manifest, BuiltManifest):
        problems += _shard_name_problems(manifest, columns)
        problems += _audit_problems(manifest, columns)
    return problems


def _row_problems(manifest: Manifest, columns: Columns) -> list[str]:
    problems = []
    count = len(columns["key"])
    if count != manifest.samples:
        problems.append(f"{INDEX}: {count} rows, the manifest says {manifest.samples}")
    repeated = [key for key, times in Counter(columns["key"]).items() if times > 1]
    problems += [f"{INDEX}: key {key} occurs more than once" for key in repeated[:SHOWN]]
    outside = (columns["label"] < 0) | (columns["label"] >= len(manifest.classes))
    problems += [
        f"{INDEX}: label {columns['label'][row]} of {columns['key'][row]} is outside the classes"
        for row in np.flatnonzero(outside)[:SHOWN]
    ]
    return problems


def _count_problems(manifest: Manifest, columns: Columns) -> list[str]:
    problems = []
    counts = Counter(zip(columns["split"], columns["label"].tolist(), strict=True))
    for split, by_class in manifest.counts.items():
        for label, name in enumerate(manifest.classes):
            if counts[split, label] != by_class[name]:
                problems.append(
                    f"{INDEX}: {counts[split, label]} {name} rows in {split}, the manifest says {by_class[name]}"
                )
    unknown = sorted(set(columns["split"]) - set(manifest.counts))
    return problems + [f"{INDEX}: rows in {split!a}, a split that is not in the manifest" for split in unknown]


def _group_problems(manifest: Manifest, columns: Columns) -> list[str]:
    problems = []
    count = len(set(columns["group"]))
    if count != manifest.groups:
        problems.append(f"{INDEX}: {count} groups, the manifest says {manifest.groups}")
    if manifest.split["method"] != "original":
        pairs = set(zip(columns["group"], columns["split"], strict=True))
        splits = Counter(group for group, _ in pairs)
        crossing = sorted(group for group, times in splits.items() if times > 1)
        problems += [f"{INDEX}: group {group} is in more than one split" for group in crossing[:SHOWN]]
    return problems


def _shard_problems(manifest: Manifest, columns: Columns) -> list[str]:
    problems = []
    rows = Counter(columns["shard"])
    for entry in manifest.shards:
        count = rows.pop(entry.name, 0)
        if count != entry.samples:
            problems.append(f"{INDEX}: {count} rows in {entry.name}, the manifest says {entry.samples}")
    return problems + [f"{INDEX}: rows in {name}, which is not in the manifest" for name in sorted(rows)]


def _shard_name_problems(manifest: BuiltManifest, columns: Columns) -> list[str]:
    return [
        f"{INDEX}: rows of {split!a} in {shard}, the dataset is {manifest.name!a}"
        for shard, split in sorted(set(zip(columns["shard"], columns["split"], strict=True)))
        if not shard.startswith(f"{manifest.name}-{split}-")
    ]


def _audit_problems(manifest: BuiltManifest, columns: Columns) -> list[str]:
    """Counts of the audit that the index contradicts. It cannot if images were left out, which the audit counts."""
    if manifest.excluded.samples:
        return []
    expected: dict[str, Any] = {
        "largest_groups": sorted(Counter(columns["group"]).values(), reverse=True)[:5],
    }
    if not manifest.options.get("keep_blank"):  # blank images are not copies of each other
        expected["exact_redundant"] = len(columns["key"]) - len(set(columns["pixel_hash"]))
    if manifest.split["method"] != "original":
        expected |= dict.fromkeys(_LEAKS, 0)
    return [
        f"{MANIFEST}: audit: {key} is {manifest.audit[key]}, by the index {value}"
        for key, value in expected.items()
        if manifest.audit[key] != value
    ]
