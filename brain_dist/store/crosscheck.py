"""Compare what a shard folder's manifest and index say, with each other and with themselves; no image is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np

from brain_dist.store.index import INDEX
from brain_dist.store.manifest import MANIFEST

Columns = dict[str, np.ndarray]

SHOWN = 20  # problems of one kind that are listed; a shard cut short would give one for every sample
_LEAKS = ("test_with_copy_in_train", "test_with_patient_in_train", "test_leaked")


def shape(manifest: dict[str, Any]) -> list[str]:
    """Entries of the manifest that are missing, or that cannot even be compared."""
    lacking = []
    if "sources" not in manifest:
        for where, keys in _entries(manifest["split"]).items():
            there = manifest.get(where) if where else manifest
            if isinstance(there, dict):  # else it is told below
                lacking += [f"{where}.{key}".removeprefix(".") for key in keys if key not in there]
    if lacking:
        return [f"{MANIFEST}: {key} is missing" for key in lacking]
    classes, counts, shards = (manifest[key] for key in ("classes", "counts", "shards"))
    kinds = {"name": str, "samples": int, "groups": int, "split": dict, "audit": dict, "index_sha256": str}
    good = {key: isinstance(manifest[key], kind) for key, kind in kinds.items()}
    good |= {key: isinstance(manifest.get(key, {}), dict) for key in ("recipe", "options", "excluded")}
    good["split"] = good["split"] and "method" in manifest["split"]
    good["classes"] = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    good["counts"] = isinstance(counts, dict) and all(
        isinstance(by_class, dict) and good["classes"] and set(by_class) == set(classes) for by_class in counts.values()
    )
    parts = {"name": str, "sha256": str, "size": int, "samples": int}
    good["shards"] = isinstance(shards, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in parts.items())
        for entry in shards
    )
    return [f"{MANIFEST}: {key} is not as this format has it" for key, well in good.items() if not well]


def _entries(split: Any) -> dict[str, tuple[str, ...]]:
    """What a built folder's manifest has, at the top ("") and one level below."""
    from brain_dist.collection.recipes import Recipe
    from brain_dist.store.build import Options

    method = split.get("method") if isinstance(split, dict) else None
    return {
        "": ("title", "source", "licence", "citation", "recipe", "options", "source_listing_sha256", "excluded",
             "skipped", "builder"),
        "split": ("method", "seed", "folds" if method == "kfold" else "fractions",
                  *(("off_by",) if method != "original" else ())),
        "audit": ("exact_redundant", "near_pairs", "near_pairs_mirrored", "images_with_label_conflict",
                  "largest_groups", *_LEAKS),
        "recipe": tuple(field.name for field in fields(Recipe)),
        "options": tuple(field.name for field in fields(Options)),
    }  # fmt: skip


def said_twice(manifest: dict[str, Any]) -> list[str]:
    """What the manifest says in two places, and not the same."""
    recipe, options, split = (manifest.get(key, {}) for key in ("recipe", "options", "split"))
    twice = {("recipe", key): (recipe[key], manifest.get(key))
             for key in ("name", "title", "source", "licence", "citation", "classes")
             if recipe.get(key) is not None}  # fmt: skip
    twice |= {
        ("options", key): (options[key], split[key])
        for key in ("fractions", "seed", "test_on")
        if key in options and key in split
    }
    if "split" in options:
        twice["options", "split"] = (options["split"], split["method"])
    return [f"{MANIFEST}: {where}.{key} says {one!r:.80}, elsewhere it is {other!r:.80}"
            for (where, key), (one, other) in twice.items() if one != other]  # fmt: skip


def tables(manifest: dict[str, Any], columns: Columns) -> list[str]:
    """Does the index hold what the manifest counts, and is a group in one split only where that was promised?"""
    problems = []
    count, classes = len(columns["key"]), manifest["classes"]
    if count != manifest["samples"]:
        problems.append(f"{INDEX}: {count} rows, the manifest says {manifest['samples']}")
    doubled = [key for key, times in Counter(columns["key"]).items() if times > 1]
    problems += [f"{INDEX}: key {key} occurs more than once" for key in doubled[:SHOWN]]
    outside = (columns["label"] < 0) | (columns["label"] >= len(classes))
    problems += [f"{INDEX}: label {columns['label'][row]} of {columns['key'][row]} is outside the classes"
                 for row in np.flatnonzero(outside)[:SHOWN]]  # fmt: skip
    found = Counter(zip(columns["split"], columns["label"].tolist(), strict=True))
    for split, by_class in manifest["counts"].items():
        for label, name in enumerate(classes):
            if found[split, label] != by_class[name]:
                problems.append(
                    f"{INDEX}: {found[split, label]} {name} rows in {split}, the manifest says {by_class[name]}"
                )
    unknown = sorted(set(columns["split"]) - set(manifest["counts"]))
    problems += [f"{INDEX}: rows in {split!a}, a split the manifest does not count" for split in unknown]
    groups = Counter(columns["group"])
    if len(groups) != manifest["groups"]:
        problems.append(f"{INDEX}: {len(groups)} groups, the manifest says {manifest['groups']}")
    if manifest["split"]["method"] != "original":
        of_group: dict[str, str] = {}
        crossing = {group for group, split in zip(columns["group"], columns["split"], strict=True)
                    if of_group.setdefault(group, split) != split}  # fmt: skip
        problems += [f"{INDEX}: group {group} is in more than one split" for group in sorted(crossing)[:SHOWN]]
    named = Counter(columns["shard"])
    for entry in manifest["shards"]:
        if named.pop(entry["name"], 0) != entry["samples"]:
            problems.append(f"{INDEX}: not {entry['samples']} rows in {entry['name']}, as the manifest says")
    problems += [f"{INDEX}: rows in {name}, which is not in the manifest" for name in sorted(named)]
    if "sources" in manifest:
        return problems
    for shard, split in sorted(set(zip(columns["shard"], columns["split"], strict=True))):
        if not shard.startswith(f"{manifest['name']}-{split}-"):
            problems.append(f"{INDEX}: rows of {split!a} in {shard}, the dataset is {manifest['name']!a}")
    if not manifest.get("excluded", {}).get("samples"):  # the audit counted those images, too
        audited = {
            "exact_redundant": count - len(set(columns["pixel_hash"])),
            "largest_groups": sorted(groups.values(), reverse=True)[:5],
        }
        if manifest["split"]["method"] != "original":
            audited |= dict.fromkeys(_LEAKS, 0)
        problems += [f"{MANIFEST}: audit: {key} is {manifest['audit'].get(key)}, by the index {value}"
                     for key, value in audited.items() if manifest["audit"].get(key) != value]  # fmt: skip
    return problems
