"""The counts of an audit in words: table rows and sentences for the terminal and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brain_dist.audit.counts import inherited_key
from brain_dist.pages.text import percent

# (text, key in a collection's counts, key of the whole that it is a share of or "")
COLLECTION_ROWS = (
    ("images", "images", ""),
    ("exact copies of another image", "exact_redundant", "images"),
    ("test images", "test_images", ""),
    ("– with an exact copy in the training split", "test_images_with_exact_train_copy", "test_images"),
    ("– with a near copy in the training split", "test_images_with_near_train_copy", "test_images"),
    ("– with either", "test_images_with_any_train_copy", "test_images"),
    ("– whose patient is in the training split", "test_images_with_patient_in_train", "test_images"),
    ("pictures with contradicting labels", "label_conflicts", ""),
    ("groups joined by copies and patients", "groups", ""),
)
# (text, short text for a terminal, key in :func:`between_rows`)
BETWEEN_COLUMNS = (
    ("with an exact copy", "exact\ncopy", "exact"),
    ("with a near copy", "near\ncopy", "near"),
    ("with either", "either", "any"),
    ("pictures with contradicting labels", "label\nconflicts", "label_conflicts"),
    ("test images whose patient is in the training split", "patient\nleaks", "patients"),
)


@dataclass(frozen=True)
class Finding:
    """A sentence about the data: ``lead`` is its emphasised start, ``text`` the rest.

    ``tone`` is "bad" (results on these data are misleading), "good" or "plain".
    """

    tone: str
    lead: str
    text: str


def count_share(count: int | None, whole: int | None = None) -> str:
    """899, 1311 → "899 (68.6 %)". Without ``whole`` the count alone; a dash if it is unknown or ``whole`` is 0."""
    if count is None or whole == 0:
        return "–"
    return f"{count:,} ({percent(count / whole)})" if whole else f"{count:,}"


def plural(count: int, noun: str) -> str:
    """1, "image" → "1 image"; 2000, "image" → "2,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _share_of(count: int, whole: int, noun: str) -> str:
    """899, 1311, "test image" → "899 of 1,311 test images (68.6 %)"."""
    return f"{count:,} of {plural(whole, noun)} ({percent(count / whole)})"


def between_rows(counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Two rows for each pair of collections: images of A in B and of B in A.

    Each row has the names ``of`` and ``in``, and (count, whole or None) under the keys of BETWEEN_COLUMNS.
    """
    rows = []
    for pair in counts["between"].values():
        for side, other in (("A", "B"), ("B", "A")):
            collection = counts["collections"][pair[side]]
            rows.append(
                {
                    "of": pair[side],
                    "in": pair[other],
                    "exact": (pair[f"exact_images_in_{side}"], None),
                    "near": (pair[f"near_images_in_{side}"], None),
                    "any": (pair[f"any_images_in_{side}"], collection["images"]),
                    "label_conflicts": (pair["label_conflicts"], None),
                    "patients": (pair[inherited_key(side, other)], collection["test_images"]),
                }
            )
    return rows


def collection_findings(name: str, counts: dict[str, Any], train_images: int) -> list[Finding]:
    """Findings about one collection."""
    collection = counts["collections"][name]
    has_split = bool(collection["test_images"] and train_images)
    return [
        _copy_leaks(collection, has_split),
        *(_patient_leaks(name, counts) if has_split else []),
        _label_conflicts(collection),
        _groups(collection),
    ]


def _copy_leaks(collection: dict[str, Any], has_split: bool) -> Finding:
    if not has_split:
        return Finding("plain", "No published split", "into training and test, so there is no leakage to measure.")
    exact, near, either = (collection[f"test_images_with_{kind}_train_copy"] for kind in ("exact", "near", "any"))
    if not either:
        return Finding("good", "No test image", "has a copy in the training split.")
    have = "has" if either == 1 else "have"
    both = f", {exact + near - either:,} both" if exact + near > either else ""
    text = (
        f"{have} a copy in the training split ({exact:,} exact, {near:,} near{both}). Accuracy on this test split "
        "partly measures memorisation."
    )
    return Finding("bad", _share_of(either, collection["test_images"], "test image"), text)


def _patient_leaks(name: str, counts: dict[str, Any]) -> list[Finding]:
    collection = counts["collections"][name]
    test_images, leaks = collection["test_images"], collection["test_images_with_patient_in_train"]
    if leaks == 0:
        return [Finding("good", "No test patient", "is in the training split, as far as patients are identified.")]
    if leaks:
        text = f"{'shows' if leaks == 1 else 'show'} a patient who also has images in the training split."
        return [Finding("bad", _share_of(leaks, test_images, "test image"), text)]
    findings = []
    for pair in counts["between"].values():
        for side, other in (("A", "B"), ("B", "A")):
            leaks = pair[inherited_key(side, other)] if pair[side] == name else None
            if leaks:
                text = (
                    f"{'shows' if leaks == 1 else 'show'} a patient who also has images in the training split. Copies "
                    f"in {pair[other]}, which identifies patients, reveal this. There may be more."
                )
                findings.append(Finding("bad", _share_of(leaks, test_images, "test image"), text))
    text = "so the training split may contain other slices of the test patients. This audit cannot detect them."
    return findings or [Finding("plain", "Patients are not identified,", text)]


def _label_conflicts(collection: dict[str, Any]) -> Finding:
    conflicts = collection["label_conflicts"]
    if not conflicts:
        return Finding("good", "No picture", "has copies with contradicting labels.")
    has, label = ("has", "At least one of its") if conflicts == 1 else ("have", "For each, at least one of the")
    return Finding(
        "bad", plural(conflicts, "picture"), f"{has} copies with contradicting labels. {label} labels is wrong."
    )


def _groups(collection: dict[str, Any]) -> Finding:
    images, groups, repeats = collection["images"], collection["groups"], collection["exact_redundant"]
    lead = f"{plural(images, 'image')} in {plural(groups, 'group')}:"
    if repeats:
        copies = f"{plural(repeats, 'image')} ({percent(repeats / images)}) {'repeats' if repeats == 1 else 'repeat'}"
    else:
        copies = "no image repeats"
    text = "A group contains all copies of a picture and all images of an identified patient."
    return Finding("plain", lead, f"{copies} the pixels of another. {text}")


def between_findings(counts: dict[str, Any]) -> list[Finding]:
    """Findings about each pair of collections."""
    findings = []
    for pair in counts["between"].values():
        a, b = pair["A"], pair["B"]
        shared_a, shared_b = pair["any_images_in_A"], pair["any_images_in_B"]
        if not shared_a:
            findings.append(Finding("good", f"{a} and {b}", "share no picture."))
            continue
        of_a, of_b = (
            f"{shared:,} of {plural(counts['collections'][name]['images'], 'image')} of {name} "
            f"({percent(shared / counts['collections'][name]['images'])})"
            for name, shared in ((a, shared_a), (b, shared_b))
        )
        text = (
            f"{'has' if shared_a == 1 else 'have'} a copy in {b}, and {of_b} {'has' if shared_b == 1 else 'have'} a "
            f"copy in {a}. Neither collection is an independent test set for a model trained on the other."
        )
        findings.append(Finding("bad", of_a, text))
        conflicts = pair["label_conflicts"]
        if conflicts:
            text = f"{'has' if conflicts == 1 else 'have'} contradicting labels in {a} and {b}."
            findings.append(Finding("bad", plural(conflicts, "picture"), text))
    return findings
