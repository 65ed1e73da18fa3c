"""The counts of an audit in words: table rows and sentences for the terminal and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brain_dist.audit.counts import inherited_key
from brain_dist.pages.text import percent

# (text, key in a collection's counts, key of the whole that it is a share of or "")
COLLECTION_ROWS = (
    ("images", "images", ""),
    ("blank images", "blank_images", "images"),
    ("exact copies of another image", "exact_redundant", "images"),
    ("test images", "test_images", ""),
    ("– with an exact copy in the training split", "test_images_with_exact_train_copy", "test_images"),
    ("– with a near copy in the training split", "test_images_with_near_train_copy", "test_images"),
    ("– with either", "test_images_with_any_train_copy", "test_images"),
    ("– whose patient is in the training split", "test_images_with_patient_in_train", "test_images"),
    ("pictures with contradicting labels", "label_conflicts", ""),
    ("groups joined by copies and patients", "groups", ""),
)
# columns of :func:`between_table`: text for the page, short text for a terminal
BETWEEN_COLUMNS = (
    ("with an exact copy", "exact\ncopy"),
    ("with a near copy", "near\ncopy"),
    ("with either", "either"),
    ("pictures with contradicting labels", "label\nconflicts"),
    ("test images whose patient is in the training split", "patient\nleaks"),
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


def _share_of(count: int, whole: int, noun: str, of: str = "") -> str:
    """899, 1311, "test image" → "899 of 1,311 test images (68.6 %)"."""
    return f"{count:,} of {plural(whole, noun)}{of} ({percent(count / whole)})"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def collection_table(counts: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """COLLECTION_ROWS as texts, and the value of each collection."""
    collections = counts["collections"].values()
    return [
        (text, [count_share(c[key], c[whole] if whole else None) for c in collections])
        for text, key, whole in COLLECTION_ROWS
    ]


def between_table(counts: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Two rows for each pair of collections, images of A in B and of B in A: both names and BETWEEN_COLUMNS."""
    rows = []
    for pair in counts["between"].values():
        for side, other in (("A", "B"), ("B", "A")):
            collection = counts["collections"][pair[side]]
            values = [
                count_share(pair[f"exact_images_in_{side}"]),
                count_share(pair[f"near_images_in_{side}"]),
                count_share(pair[f"any_images_in_{side}"], collection["images"]),
                count_share(pair["label_conflicts"]),
                count_share(pair[inherited_key(side, other)], collection["test_images"]),
            ]
            rows.append((pair[side], pair[other], values))
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
    both = f", {exact + near - either:,} both" if exact + near > either else ""
    text = (
        f"{_have(either)} a copy in the training split ({exact:,} exact, {near:,} near{both}). Accuracy on this test "
        "split partly measures memorisation."
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
    label = "At least one of its" if conflicts == 1 else "For each, at least one of the"
    text = f"{_have(conflicts)} copies with contradicting labels. {label} labels is wrong."
    return Finding("bad", plural(conflicts, "picture"), text)


def _groups(collection: dict[str, Any]) -> Finding:
    images, groups, repeats = collection["images"], collection["groups"], collection["exact_redundant"]
    lead = f"{plural(images, 'image')} in {plural(groups, 'group')}:"
    repeat = "repeats" if repeats == 1 else "repeat"
    copies = f"{plural(repeats, 'image')} ({percent(repeats / images)}) {repeat}" if repeats else "no image repeats"
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
            _share_of(shared, counts["collections"][name]["images"], "image", f" of {name}")
            for name, shared in ((a, shared_a), (b, shared_b))
        )
        text = (
            f"{_have(shared_a)} a copy in {b}, and {of_b} {_have(shared_b)} a copy in {a}. Neither collection is an "
            "independent test set for a model trained on the other."
        )
        findings.append(Finding("bad", of_a, text))
        conflicts = pair["label_conflicts"]
        if conflicts:
            text = f"{_have(conflicts)} contradicting labels in {a} and {b}."
            findings.append(Finding("bad", plural(conflicts, "picture"), text))
    return findings
