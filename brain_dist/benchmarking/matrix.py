"""The results of ``benchmark cross``: cross.json and cross.md, from the predictions of the cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from brain_dist.benchmarking.folder import PLAN, Folder
from brain_dist.benchmarking.grid import PUBLISHED
from brain_dist.benchmarking.matrix_text import Row, markdown
from brain_dist.common.files import sha256_file, write_together
from brain_dist.common.records import read_record
from brain_dist.comparison.crossing import HEADLINE, NO_SEED, ONE_CLASS, Judged, drop, entry, select, with_classes
from brain_dist.errors import Fault, UserError
from brain_dist.judging.predictions import Predictions, read_predictions
from brain_dist.pages.text import listing

MATRIX, TABLE = "cross.json", "cross.md"
OF_PAIR = ("source", "test", "kind", "excluded", "overlapping")


def write_matrix(folder: Folder) -> dict[str, Any]:
    """Judge the cells of a cross benchmark, write cross.json and cross.md, and return what cross.json has.

    Raises:
        UserError: the benchmark is not one of `benchmark cross`, or a table is damaged.
        Fault: the disk is full.
    """
    from brain_dist.common.progress import show_activity

    with show_activity("resampling patients"):
        document = matrix(folder)
    contents = {MATRIX: json.dumps(document, indent=1) + "\n", TABLE: markdown(document)}
    try:
        write_together({folder.out / name: text for name, text in contents.items()})
    except OSError as error:
        raise Fault(f"{folder.out} cannot be written ({error.strerror or error})") from None
    return document


def read_matrix(folder: Folder) -> dict[str, Any] | None:
    """What cross.json has, judged again if the benchmark has changed since; None if it is not one of `benchmark cross`.

    Raises:
        UserError: as :func:`write_matrix`.
        Fault: the disk is full.
    """
    if not (folder.out / PLAN).is_file():
        return None
    try:
        document = read_record(folder.out / MATRIX, "", {"rows": list, "worst": list})
    except UserError:
        return write_matrix(folder)
    current = _judged_from(folder, folder.record())
    return document if all(document.get(name) == value for name, value in current.items()) else write_matrix(folder)


def _judged_from(folder: Folder, record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the content of a matrix: the plan, the models, the seeds, and the evaluations of each cell."""
    return {
        "plan": sha256_file(folder.out / PLAN),
        "models": record["models"],
        "seeds": record["seeds"],
        "cells": {
            cell["cell"]: [test for test in cell["tests"] if folder.recorded(record, cell["cell"], test)]
            for cell in record["cells"]
        },
    }


def read_plan(folder: Folder) -> dict[str, Any]:
    """What `benchmark cross` planned.

    Raises:
        UserError: the folder has no such plan, or it is damaged.
    """
    path = folder.out / PLAN
    if not path.is_file():
        raise UserError(f"{path} does not exist; write it with `brain-dist benchmark cross`")
    advice = "give the command of the benchmark again, which writes it and keeps finished cells"
    return read_record(path, advice, {"collections": dict, "together": list, "pairs": list})


def matrix(folder: Folder) -> dict[str, Any]:
    """The matrix: for each pair of collections and model its results, and for external ones the drop.

    Returns:
        ``plan`` (sha256 of its file), ``models``, ``seeds`` and ``cells`` (cell → evaluations) that it was judged from;
        ``collections``, ``together`` as planned; ``rows``: ``source``, ``test``, ``kind``, ``excluded`` and
        ``overlapping`` of the pair, ``model``, and either
        ``refused`` or what :func:`~brain_dist.comparison.crossing.entry` returns and, if the pair is external,
        ``drop``; ``worst``: of each source and model the number of external ``collections`` with a result, and those
        ``without`` (name → reason); their ``mean``, the ``worst`` of them, its ``worst_value``, and ``of_seeds``, the
        seeds of the collection with the fewest.
    """
    planned, record = read_plan(folder), folder.record()
    rows: list[Row] = []
    for pair in planned["pairs"]:
        for model in record["models"]:
            rows.append(
                {
                    **{key: pair[key] for key in OF_PAIR if key in pair},
                    "model": model,
                    **_judge(pair, model, record, folder),
                }
            )
    return {
        "headline": HEADLINE,
        **_judged_from(folder, record),
        "collections": planned["collections"],
        "together": planned["together"],
        "rows": rows,
        "worst": _worst(rows),
    }


def _judge(pair: Mapping[str, Any], model: str, record: Mapping[str, Any], folder: Folder) -> Row:
    """Results of one model in one cell of the matrix, or why there are none."""
    if pair["refused"]:
        return {"refused": pair["refused"]}
    cells = _cells_of(pair, model, record)
    if not cells:
        return {"refused": "not part of the last command"}
    outside = tables_of(pair, model, record, folder)
    if not outside:
        return {"refused": "no seed is finished"}
    judged = select(outside, classes_of(outside), pair["shared"])
    row = entry(judged)
    if pair["kind"] == "external":
        internal = tables_of({**pair, "kind": "internal"}, model, record, folder)
        row["drop"] = _drop(internal, outside, judged, pair)
    return row


def _drop(
    internal: Mapping[int, Predictions], outside: Mapping[int, Predictions], judged: Judged, pair: Mapping[str, Any]
) -> Row:
    if not internal:
        return {"refused": NO_SEED}
    classes = classes_of(outside)
    inside = with_classes(next(iter(internal.values())).headline, classes)
    here = {classes[label] for label in set(inside.label.tolist())}
    both = [name for name in pair["shared"] if name in here]
    if not both:
        return {"refused": f"no image of {listing(list(pair['shared']), 'or')} is in the internal test"}
    if len(both) < 2:
        return {"refused": ONE_CLASS}
    return {
        "classes": both,
        **drop(
            select(internal, classes, both),
            select(outside, classes, both) if len(both) < len(judged.classes) else judged,
        ),
    }


def tables_of(pair: Mapping[str, Any], model: str, record: Mapping[str, Any], folder: Folder) -> dict[int, Predictions]:
    """Seed → table of a model in one cell of the matrix, of the seeds that are finished."""
    return {
        cell["seed"]: read_predictions(folder.predictions(cell["cell"], _test_of(pair)))
        for cell in _cells_of(pair, model, record)
        if folder.recorded(record, cell["cell"], _test_of(pair))
    }


def classes_of(tables: Mapping[int, Predictions]) -> tuple[str, ...]:
    """The classes of the tables of a model."""
    return next(iter(tables.values())).classes


def _test_of(pair: Mapping[str, Any]) -> str:
    """Name of the predictions of a pair."""
    return str({"external": pair["test"], PUBLISHED: PUBLISHED}.get(pair["kind"], "test"))


def _cells_of(pair: Mapping[str, Any], model: str, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cells of the grid that are tested for a pair, by their seeds."""
    cells = [
        cell
        for cell in record["cells"]
        if (cell["source"], cell["model"]) == (pair["source"], model) and _test_of(pair) in cell["tests"]
    ]
    return sorted(cells, key=lambda cell: int(cell["seed"]))


def _worst(rows: Sequence[Row]) -> list[Row]:
    """Of each source and model: the mean over the external collections, and the worst of them."""
    worst: list[Row] = []
    for source, model in dict.fromkeys((row["source"], row["model"]) for row in rows):
        tested = [
            row for row in rows
            if (row["source"], row["model"], row["kind"]) == (source, model, "external") and "refused" not in row
        ]  # fmt: skip
        values = {row["test"]: row[HEADLINE]["value"] for row in tested if row[HEADLINE].get("value") is not None}
        without = {row["test"]: row[HEADLINE]["refused"] for row in tested if row["test"] not in values}
        line: Row = {"source": source, "model": model, "collections": len(values), "without": without}
        if values:
            lowest = min(values, key=values.__getitem__)
            seeds = min((row["of_seeds"] for row in tested if row["test"] in values), key=len)
            line |= {"of_seeds": seeds, "mean": sum(values.values()) / len(values)}
            line |= {"worst": lowest, "worst_value": values[lowest]}
        worst += [line] if tested else []
    return worst
