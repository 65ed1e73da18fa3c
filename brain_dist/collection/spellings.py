"""How publishers spell the classes and the splits, in folder names and in tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_CLASSES = {
    "glioma": ("glioma_tumor", "glioma_tumour", "gliomas", "glioblastoma", "gbm"),
    "meningioma": ("meningioma_tumor", "meningioma_tumour", "meningiomas"),
    "notumor": ("no_tumor", "no_tumour", "notumour", "no", "normal", "healthy", "none", "negative", "tumor_free"),
    "pituitary": ("pituitary_tumor", "pituitary_tumour", "pituitary_adenoma", "pituitaries"),
    "tumor": ("tumour", "yes", "positive"),
}
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_OF = {alias: split for split, aliases in _SPLITS.items() for alias in aliases}  # plain spelling → split
ANY_TUMOR = frozenset({"tumor", *_CLASSES["tumor"]})  # plain spellings that do not say which tumour


def plain(name: str) -> str:
    """``name`` without case and punctuation: ``Glioma Tumor`` and ``glioma_tumor`` are the same."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def class_of(classes: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Plain spelling → class: the classes' own names, common spellings, and a recipe's ``aliases``."""
    return {plain(text): name for name in classes for text in (name, *_CLASSES.get(name, ()), *aliases.get(name, ()))}


def binary_hint(name: str, known: Mapping[str, str]) -> str:
    """What to tell of a ``name`` such as ``yes``, where the classes are kinds of tumour; else nothing."""
    if plain(name) not in ANY_TUMOR or "tumor" in known:
        return ""
    return (
        "; it does not say which tumour: for tumour or none build with a recipe whose classes are [notumor, tumor], "
        "such as shards/datasets/br35h.yaml"
    )


SPLITS = ("train", "val", "test")
