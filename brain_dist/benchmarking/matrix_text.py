"""What the matrix of `benchmark cross` says in words: cross.md, and the sentences that its page has, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brain_dist.benchmarking.grid import PUBLISHED
from brain_dist.comparison.crossing import HEADLINE, NOT_TRAINED

KINDS = {"internal": " (internal)", PUBLISHED: " (its published test, with images that training knew)"}
SPLIT_TITLES = {"train": "training", "val": "validation", "test": "test"}
Row = dict[str, Any]


def shown(result: Mapping[str, Any], signed: bool = False) -> str:
    """A result in percent with both spreads: ``81.2 ± 1.3 (74.0 to 87.1)``; if it is missing, why."""
    if result.get("value") is None:
        return str(result.get("refused", "–"))
    text = f"{100 * result['value']:{'+' if signed else ''}.1f}"
    if result["sd"] is not None:
        text += f" ± {100 * result['sd']:.1f}"
    return text + (
        f" ({100 * result['interval'][0]:.1f} to {100 * result['interval'][1]:.1f})" if "interval" in result else ""
    )


def with_seeds(text: str, result: Mapping[str, Any], planned: int) -> str:
    """A result as text, and how many of the planned seeds it has if some are missing: ``81.2 (seeds 2 of 3)``."""
    seeds = len(result.get("of_seeds", ()))
    return f"{text} (seeds {seeds} of {planned})" if 0 < seeds < planned else text


def worst_class(row: Mapping[str, Any]) -> str:
    """The class with the lowest sensitivity and that sensitivity in percent: ``glioma 81.2``."""
    name = row["worst_class"]
    return "–" if name is None else f"{name} {100 * row['sensitivity'][name]:.1f}"


def left_out(row: Mapping[str, Any]) -> str:
    """Images that do not count: of the test by reason, and of the training by split those that joining left out."""
    of_test = [f"{count:,} {reason}" for reason, count in row["left_out"].items()]
    of_training = [
        f"{count:,} {SPLIT_TITLES[split]} image{'s' * (count != 1)}" for split, count in row.get("excluded", {}).items()
    ]
    return ", ".join([*of_test, *of_training]) or "none"


def elsewhere(document: Mapping[str, Any]) -> list[Row]:
    """The rows with a result on a collection that was not trained on."""
    return [
        row for row in document["rows"]
        if row["kind"] in ("external", "left out") and row.get(f"{HEADLINE}_full", {}).get("value") is not None
    ]  # fmt: skip


def markdown(document: Mapping[str, Any]) -> str:
    """The content of cross.md."""
    planned = len(document["seeds"])
    lines = ["# Training collection × test collection", ""]
    lines += [
        "Balanced accuracy in %, among the classes that both collections have: mean ± standard deviation over"
        f" {planned} seeds unless a cell says how many of them (what another training could change), in brackets the"
        " 95 % interval over patients and copies (what other patients could change). Test images that training knew are"
        " left out."
        " AUC within groups (in %): of slices with a tumour against slices without one of the same patient or"
        " group, the mean over those that have both.", "",
    ]  # fmt: skip
    lines += [f"- {sentence}." for sentence in (*notes(document), *overlaps(document))]
    head = (
        "trained on",
        "tested on",
        "model",
        "images",
        "classes",
        "among shared classes",
        "among all classes",
        "accuracy",
        "AUC within groups",
        "internal − external",
        "worst class",
        "left out",
    )
    body = []
    for row in document["rows"]:
        place = (row["source"], row["test"] + KINDS.get(row["kind"], ""), row["model"])
        if "refused" in row:
            body.append((*place, *["–"] * 8, row["refused"]))
            continue
        change = row.get("drop", {})
        body.append((
            *place, f"{row['images']:,}", ", ".join(row["classes"]), with_seeds(shown(row[HEADLINE]), row, planned),
            shown(row[f"{HEADLINE}_full"]), shown(row["accuracy"]), shown(row.get("within", {})),
            with_seeds(shown(change, signed=True), change, planned), worst_class(row), left_out(row),
        ))  # fmt: skip
    lines += ["", *_table(head, body)]
    if document["worst"]:
        lines += ["", "| trained on | model | test collections | mean | worst | there |", "|---|---|--:|--:|---|--:|"]
        for row in document["worst"]:
            without = [f"without {test} ({reason})" for test, reason in row["without"].items()]
            cells = [row["source"], row["model"], ", ".join([str(row["collections"]), *without])]
            if row["collections"]:
                mean = with_seeds(f"{100 * row['mean']:.1f}", row, planned)
                cells += [mean, row["worst"], f"{100 * row['worst_value']:.1f}"]
            else:
                cells += ["–"] * 3
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def notes(document: Mapping[str, Any]) -> list[str]:
    """What must be known before the numbers: where class and collection are the same thing."""
    sentences = [f"{name}: {text}" for name, each in document["collections"].items() for text in each["confounded"]]
    sentences += [f"all collections together: {text}" for text in document["together"]]
    return sentences


def overlaps(document: Mapping[str, Any]) -> list[str]:
    """Tests that share pictures or patients with the training; their remaining images are not independent."""
    sentences: dict[tuple[str, str], str] = {}
    for row in elsewhere(document):
        if row["kind"] == "external":
            count = sum(number for reason, number in row["left_out"].items() if not reason.endswith(NOT_TRAINED))
            images = f"{count:,} test images of {row['test']}"
        else:
            count = sum(row.get("excluded", {}).values()) if row.get("overlapping") else 0
            images = f"{count:,} training and validation images"
        if count:
            sentences[row["source"], row["test"]] = (
                f"{row['source']} and {row['test']} share pictures or patients ({images} are left out), so the rest may"
                " come from the same scans and hospitals, too"
            )
    return list(sentences.values())


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in body]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
