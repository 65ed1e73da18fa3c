"""How publishers spell the classes and the splits, in folder names and in tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
NO_TUMOR = frozenset({"notumor", *_CLASSES["notumor"]})  # normalized spellings of "no tumour"


def composed(text: str) -> str:
    """``text`` with composed letters (Unicode NFC): macOS stores the ``ü`` of a file name as ``u`` and two dots."""
    return unicodedata.normalize("NFC", text)


def normalize(name: str) -> str:
    """``name`` without case and punctuation: ``Glioma Tumor`` and ``glioma_tumor`` are the same."""
    return re.sub(r"[\W_]+", "_", composed(name).casefold()).strip("_")


@dataclass(frozen=True)
class Spellings:
    """Which class a text names.

    Attributes:
        exact: name or alias → class.
        similar: normalized spelling → class, None if it is that of several classes.
    """

    exact: dict[str, str]
    similar: dict[str, str | None]

    def find(self, text: str) -> str | None:
        """The class that ``text`` names: exactly, or without case and punctuation; None if no class or several."""
        return self.exact.get(composed(text)) or self.similar.get(normalize(text))


def class_of(classes: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> Spellings:
    """The class names themselves, a recipe's ``aliases``, and common spellings that these leave free.

    Raises:
        ValueError: a text would name two classes.
    """
    exact: dict[str, str] = {}
    similar: dict[str, str | None] = {}
    for name in classes:
        for text in (name, *aliases.get(name, ())):
            if exact.setdefault(composed(text), name) != name:
                raise ValueError(f"{text!r} would name both {exact[composed(text)]} and {name}; use it for one of them")
            key = normalize(text)
            similar[key] = name if similar.get(key, name) == name else None
    for name in classes:
        for text in _CLASSES.get(name, ()):
            similar.setdefault(text, name)
    similar.pop("", None)  # of nothing but punctuation, such as + and -
    return Spellings(exact, similar)


def binary_hint(name: str, spellings: Spellings) -> str:
    """Advice about a ``name`` such as ``yes`` if the classes are kinds of tumour; otherwise empty."""
    if normalize(name) not in ANY_TUMOR or "tumor" in spellings.similar:
        return ""
    return (
        "it does not give the kind of tumour: for tumour or no tumour, build with a recipe whose classes are "
        "[notumor, tumor], such as shards/datasets/br35h.yaml"
    )
