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
SPLITS = tuple(_SPLITS)
SPLIT_OF = {alias: split for split, aliases in _SPLITS.items() for alias in aliases}  # normalized spelling → split
ANY_TUMOR = frozenset({"tumor", *_CLASSES["tumor"]})  # normalized spellings that do not give the kind of tumour


def normalize(name: str) -> str:
    """``name`` without case and punctuation: ``Glioma Tumor`` and ``glioma_tumor`` are the same."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def class_of(classes: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Normalized spelling → class: the class names themselves, common spellings, and a recipe's ``aliases``."""
    return {
        normalize(text): name for name in classes for text in (name, *_CLASSES.get(name, ()), *aliases.get(name, ()))
    }


def binary_hint(name: str, spellings: Mapping[str, str]) -> str:
    """Advice about a ``name`` such as ``yes`` if the classes are kinds of tumour; otherwise empty."""
    if normalize(name) not in ANY_TUMOR or "tumor" in spellings:
        return ""
    return (
        "it does not give the kind of tumour: for tumour or no tumour, build with a recipe whose classes are "
        "[notumor, tumor], such as shards/datasets/br35h.yaml"
    )
