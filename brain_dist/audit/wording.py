"""What the counts of an audit mean, in words: rows of tables and sentences for the terminal and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brain_dist.pages.text import percent

# (words, key of audit.json's collections, key of what it is a share of or "")
INSIDE = (
    ("images", "images", ""),
    ("repeat another one’s pixels", "exact_redundant", "images"),
    ("images in the test part", "test_images", ""),
    ("– with the same pixels in the training part", "test_images_with_exact_train_copy", "test_images"),
    ("– with a near copy in the training part", "test_images_with_near_train_copy", "test_images"),
    ("– with either", "test_images_with_any_train_copy", "test_images"),
    ("– whose patient is in the training part", "test_images_with_patient_in_train", "test_images"),
    ("pictures with contradicting labels", "label_conflicts", ""),
    ("groups of patients and copies", "groups", ""),
)
# (words, few words for a terminal, key of what :func:`directions` gives)
BETWEEN = (
    ("with the same pixels", "same\npixels", "exact"),
    ("with a near copy", "near", "near"),
    ("with either", "either", "any"),
    ("pictures with contradicting labels", "labels\ndiffer", "label_conflicts"),
    ("test images whose patient, known there, is trained on", "patient\nleaks", "patients"),
)


@dataclass(frozen=True)
class Finding:
    """A sentence about the data. ``tone``: bad (numbers on these data mislead), good, or plain."""

    tone: str
    lead: str
    text: str


def share(count: int | None, of: int | None = None) -> str:
    """899, 1311 → "899 (68.6 %)"; without a whole the count alone; unknown, or a share of nothing → a dash."""
    if count is None or of == 0:
        return "–"
    return f"{count:,} ({percent(count / of)})" if of else f"{count:,}"


def counted(count: int, one: str, many: str = "") -> str:
    """1, "image" → "1 image"; 2,000 → "2,000 images"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def directions(counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Two rows a pair of collections, of A in B and of B in A: names, and (count, whole) by the keys of BETWEEN."""
    rows = []
    for pair in counts["between"].values():
        for side, there in (("A", "B"), ("B", "A")):
            alone = counts["collections"][pair[side]]
            row = {kind: (pair[f"{kind}_images_in_{side}"], None) for kind in ("exact", "near")}
            row["any"] = (pair[f"any_images_in_{side}"], alone["images"])
            row |= {"of": pair[side], "in": pair[there], "label_conflicts": (pair["label_conflicts"], None)}
            row["patients"] = (pair[inherited(side, there)], alone["test_images"])
            rows.append(row)
    return rows


def inherited(side: str, there: str) -> str:
    """The key of a pair for test images of ``side`` whose patient, known from ``there``, is trained on."""
    return f"test_images_of_{side}_whose_patient_is_in_train_of_{side}_through_{there}"


def inside(name: str, counts: dict[str, Any], train_images: int) -> list[Finding]:
    """What to say of one collection."""
    one = counts["collections"][name]
    return [*_leaks(name, one, train_images), *_patients(name, counts, train_images), *_labels(one), _groups(one)]


def _leaks(name: str, one: dict[str, Any], train_images: int) -> list[Finding]:
    tested, exact, near, either = (
        one[key]
        for key in ("test_images", *(f"test_images_with_{kind}_train_copy" for kind in ("exact", "near", "any")))
    )
    if not tested or not train_images:
        return [Finding("plain", "No published split", "into training and test, so nothing can leak between them yet.")]
    if not either:
        return [Finding("good", "No picture of the test part", "is known from the training part.")]
    have = "has" if either == 1 else "have"
    text = f"{have} a copy in the training part: {exact:,} the very same pixels, {near:,} a near copy"
    both = exact + near - either
    text += f" ({both:,} of them both). " if both else ". "
    text += "Accuracy on this test part partly measures memory."
    return [Finding("bad", _of(either, tested, "test image"), text)]


def _of(count: int, whole: int, what: str) -> str:
    """ "899 of 1,311 test images (68.6 %)"."""
    return f"{count:,} of {counted(whole, what)} ({percent(count / whole)})"


def _patients(name: str, counts: dict[str, Any], train_images: int) -> list[Finding]:
    one = counts["collections"][name]
    tested, known = one["test_images"], one["test_images_with_patient_in_train"]
    if not tested or not train_images:
        return []
    if known:
        show = "shows" if known == 1 else "show"
        text = f"{show} a patient of whom the training part has images too."
        return [Finding("bad", _of(known, tested, "test image"), text)]
    if known == 0:
        return [
            Finding("good", "No patient of the test part", "is in the training part, as far as patients are named.")
        ]
    found = []
    for pair in counts["between"].values():
        for side, there in (("A", "B"), ("B", "A")):
            count = pair[inherited(side, there)] if pair[side] == name else None
            if count:
                text = (
                    f"{'shows' if count == 1 else 'show'} a patient whom the training part shows too: their copies in "
                    f"{pair[there]}, which names patients, give it away. There may be more."
                )
                found.append(Finding("bad", _of(count, tested, "test image"), text))
    text = "so other slices of the test part’s patients may be in the training part without being seen here."
    return found or [Finding("plain", "No patients are named,", text)]


def _labels(one: dict[str, Any]) -> list[Finding]:
    conflicts = one["label_conflicts"]
    if not conflicts:
        return [Finding("good", "No picture", "has labels here that contradict each other.")]
    text = "in copies under labels that contradict each other: at least one of them is wrong."
    return [Finding("bad", counted(conflicts, "picture"), f"{'occurs' if conflicts == 1 else 'occur'} {text}")]


def _groups(one: dict[str, Any]) -> Finding:
    images, groups, repeats = one["images"], one["groups"], one["exact_redundant"]
    lead = f"{counted(images, 'image')}, {counted(groups, 'group')}:"
    copies = f"{repeats:,} ({percent(repeats / images)}) repeat another one’s pixels" if repeats else "no two are equal"
    return Finding("plain", lead, f"{copies}; a group joins all copies of a picture and all images of a known patient.")


def between(counts: dict[str, Any]) -> list[Finding]:
    """What to say of each pair of collections."""
    found = []
    for pair in counts["between"].values():
        (a, of_a, all_a), (b, of_b, all_b) = (
            (pair[side], pair[f"any_images_in_{side}"], counts["collections"][pair[side]]["images"]) for side in "AB"
        )
        if not of_a:
            found.append(Finding("good", f"{a} and {b}", "have no picture in common."))
            continue
        lead = f"{of_a:,} of {counted(all_a, 'image')} of {a} ({percent(of_a / all_a)})"
        text = (
            f"{'is' if of_a == 1 else 'are'} in {b} too, and {of_b:,} of {counted(all_b, 'image')} of {b} "
            f"({percent(of_b / all_b)}) in {a}. Neither can be an independent test of a model trained on the other."
        )
        found.append(Finding("bad", lead, text))
        conflicts = pair["label_conflicts"]
        if conflicts:
            text = f"{'has' if conflicts == 1 else 'have'} one label in {a} and a contradicting one in {b}."
            found.append(Finding("bad", counted(conflicts, "picture"), text))
    return found
