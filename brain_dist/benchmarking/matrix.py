"""The results of ``benchmark cross``: cross.json and cross.md, from the predictions of the cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import PUBLISHED
from brain_dist.common.files import write_together
from brain_dist.comparison.crossing import HEADLINE, NOT_TRAINED, Judged, drop, entry, select, with_classes
from brain_dist.errors import UserError
from brain_dist.judging.predictions import Predictions, read_predictions
from brain_dist.pages.text import listing

PLAN, MATRIX, TABLE = "cross_plan.json", "cross.json", "cross.md"
KINDS = {"internal": " (internal)", PUBLISHED: " (its published test, with images that training knew)"}
Row = dict[str, Any]


def write_matrix(folder: Folder) -> dict[str, Any]:
    """Judge the cells of a cross benchmark, write cross.json and cross.md, and print the table.

    Raises:
        UserError: the benchmark is not one of `benchmark cross`, or a table is damaged.
    """
    from brain_dist.common.progress import show_activity

    with show_activity("resampling patients"):
        document = matrix(folder)
    text = markdown(document)
    write_together({
        folder.out / MATRIX: json.dumps(document, indent=1) + "\n",
        folder.out / TABLE: text,
    })  # fmt: skip
    print(text)
    print(f"{folder.out / TABLE}")
    return document


def read_plan(folder: Folder) -> dict[str, Any]:
    """What `benchmark cross` planned.

    Raises:
        UserError: the folder has no such plan.
    """
    path = folder.out / PLAN
    if not path.is_file():
        raise UserError(f"{path} does not exist; write it with `brain-dist benchmark cross`")
    return dict(json.loads(path.read_text()))


def matrix(folder: Folder) -> dict[str, Any]:
    """The matrix: for each pair of collections and model its results, and for external ones the drop.

    Returns:
        ``collections``, ``together`` as planned; ``rows``: ``source``, ``test``, ``kind``, ``model``, and either
        ``refused`` or what :func:`~brain_dist.comparison.crossing.entry` returns and, if the pair is external,
        ``drop``; ``worst``: of each source and model the test collection with the lowest result, and the
        mean over collections.
    """
    planned, record = read_plan(folder), folder.record()
    rows: list[Row] = []
    for pair in planned["pairs"]:
        for model in record["models"]:
            rows.append(
                {
                    **{key: pair[key] for key in ("source", "test", "kind")},
                    "model": model,
                    **_judge(pair, model, record, folder),
                }
            )
    return {
        "headline": HEADLINE,
        "models": record["models"],
        "seeds": record["seeds"],
        "collections": planned["collections"],
        "together": planned["together"],
        "rows": rows,
        "worst": _worst(rows),
    }


def _judge(pair: Mapping[str, Any], model: str, record: Mapping[str, Any], folder: Folder) -> Row:
    """Results of one model in one cell of the matrix, or why there are none."""
    if pair["refused"]:
        return {"refused": pair["refused"]}
    outside = tables_of(pair, model, record, folder)
    if not outside:
        return {"refused": "no seed is finished"}
    judged = select(outside, outside[0].classes, pair["shared"])
    row = entry(judged)
    if pair["kind"] == "external":
        internal = tables_of({**pair, "kind": "internal"}, model, record, folder)
        row["drop"] = _drop(internal, outside, judged, pair)
    return row


def _drop(internal: list[Predictions], outside: list[Predictions], judged: Judged, pair: Mapping[str, Any]) -> Row:
    if len(internal) != len(outside):
        return {"refused": "seeds are missing"}
    classes = outside[0].classes
    here = {
        with_classes(internal[0], classes).classes[label]
        for label in set(with_classes(internal[0].headline, classes).label.tolist())
    }
    both = [name for name in pair["shared"] if name in here]
    if not both:
        return {"refused": f"no image of {listing(list(pair['shared']), 'or')} is in the internal test"}
    return {
        "classes": both,
        **drop(
            select(internal, classes, both),
            select(outside, classes, both) if len(both) < len(judged.classes) else judged,
        ),
    }


def tables_of(pair: Mapping[str, Any], model: str, record: Mapping[str, Any], folder: Folder) -> list[Predictions]:
    """The tables of a model in one cell of the matrix, one for each finished seed."""
    name = {"external": pair["test"], PUBLISHED: PUBLISHED}.get(pair["kind"], "test")
    cells = [cell for cell in record["cells"] if (cell["source"], cell["model"]) == (pair["source"], model)]
    return [
        read_predictions(folder.predictions(cell["cell"], name))
        for cell in sorted(cells, key=lambda cell: cell["seed"])
        if folder.recorded(record, cell["cell"], name)
    ]


def _worst(rows: Sequence[Row]) -> list[Row]:
    """Of each source and model: the mean over the external collections, and the worst of them."""
    worst = []
    for source, model in dict.fromkeys((row["source"], row["model"]) for row in rows):
        tested = [
            row for row in rows
            if (row["source"], row["model"], row["kind"]) == (source, model, "external") and "refused" not in row
            and row[HEADLINE]["value"] is not None
        ]  # fmt: skip
        if tested:
            values = {row["test"]: row[HEADLINE]["value"] for row in tested}
            lowest = min(values, key=values.__getitem__)
            worst.append({
                "source": source, "model": model, "collections": len(values),
                "mean": sum(values.values()) / len(values), "worst": lowest, "worst_value": values[lowest],
            })  # fmt: skip
    return worst


def shown(result: Row, signed: bool = False) -> str:
    """A result in percent with both spreads: ``81.2 ± 1.3 (74.0 to 87.1)``."""
    if result.get("value") is None:
        return "–"
    text = f"{100 * result['value']:{'+' if signed else ''}.1f}"
    if result["sd"] is not None:
        text += f" ± {100 * result['sd']:.1f}"
    return text + (
        f" ({100 * result['interval'][0]:.1f} to {100 * result['interval'][1]:.1f})" if "interval" in result else ""
    )


def markdown(document: Mapping[str, Any]) -> str:
    """The content of cross.md."""
    lines = ["# Training collection × test collection", ""]
    lines += [
        "Balanced accuracy in %, among the classes that both collections have: mean ± standard deviation over"
        f" {len(document['seeds'])} seeds (what another training could change), in brackets the 95 % interval over"
        " patients and copies (what other patients could change). Test images that training knew are left out."
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
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in row["left_out"].items()) or "none"
        worst = f"{row['worst_class']} {100 * row['sensitivity'][row['worst_class']]:.1f}"
        change = row.get("drop", {})
        body.append((
            *place, f"{row['images']:,}", ", ".join(row["classes"]), shown(row[HEADLINE]),
            shown(row[f"{HEADLINE}_full"]), shown(row["accuracy"]), shown(row.get("within", {})),
            shown(change, signed=True), worst, left_out,
        ))  # fmt: skip
    lines += ["", *_table(head, body)]
    if document["worst"]:
        lines += ["", "| trained on | model | test collections | mean | worst | there |", "|---|---|--:|--:|---|--:|"]
        lines += [
            f"| {row['source']} | {row['model']} | {row['collections']} | {100 * row['mean']:.1f} | {row['worst']} |"
            f" {100 * row['worst_value']:.1f} |"
            for row in document["worst"]
        ]
    return "\n".join(lines) + "\n"


def notes(document: Mapping[str, Any]) -> list[str]:
    """What must be known before the numbers: where class and collection are the same thing."""
    sentences = [f"{name}: {text}" for name, each in document["collections"].items() for text in each["confounded"]]
    sentences += [f"all collections together: {text}" for text in document["together"]]
    return sentences


def overlaps(document: Mapping[str, Any]) -> list[str]:
    """External tests that share pictures or patients with the training; their remaining images are not independent."""
    sentences = []
    for row in document["rows"]:
        if row["kind"] == "external" and row["model"] == document["models"][0] and "refused" not in row:
            known = sum(count for reason, count in row["left_out"].items() if not reason.endswith(NOT_TRAINED))
            if known:
                sentences.append(
                    f"{row['source']} and {row['test']} share pictures or patients ({known:,} test images of"
                    f" {row['test']} are left out), so the rest may come from the same scans and hospitals, too"
                )
    return sentences


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in body]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
