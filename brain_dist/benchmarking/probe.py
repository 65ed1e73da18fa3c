"""``brain-dist benchmark probe``: how well the collection can be read from the features of networks of ``cross``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.matrix import read_plan
from brain_dist.common.commands import ArgumentParser
from brain_dist.common.files import check_writable, write_atomically, writing
from brain_dist.common.records import read_record
from brain_dist.errors import UserError

PROBE = "probe.json"
LIMIT = 500  # images of each collection
DESCRIPTION = (
    "Probe every finished training of `benchmark cross`: predict from its features which collection a test image is"
    " from, among images of one class. Writes OUT/probe.json, which `benchmark page` shows."
)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UserError: the folder has no cross benchmark or is not writable, or the shards are gone.
        Fault: weights or shards are damaged, or the disk is full.
    """
    parser = ArgumentParser("brain-dist benchmark probe", description=DESCRIPTION)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the benchmark")
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"test images of each collection (default: {LIMIT})")
    arguments = parser.parse_args(list(argv))
    if arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit}: must be ≥ 1")
    from brain_dist.common.progress import show_progress

    folder = Folder(arguments.out)
    read_plan(folder)
    check_writable(folder.out, "make it writable")
    with show_progress() as progress:
        rows = probe(folder, arguments.limit, progress)
    with writing(folder.out):
        write_atomically(folder.out / PROBE, json.dumps({"limit": arguments.limit, "rows": rows}, indent=1) + "\n")
    print(markdown(rows))
    print(folder.out / PROBE)
    return 0


def probe(folder: Folder, limit: int, progress: Any) -> list[dict[str, Any]]:
    """Probe the features of every finished training.

    Args:
        folder: a cross benchmark.
        limit: test images of each collection.
        progress: called with (stage, done, total).

    Returns:
        One row for each training source, model, seed and class: ``source``, ``model``, ``seed``, ``class``, and what
        :func:`brain_dist.judging.probe.source_probe` returns or ``refused``.

    Raises:
        UserError: the folder has no cross benchmark, no training is finished, or the shards are gone.
        Fault: weights or shards are damaged.
    """
    plan = read_plan(folder)
    cells = [cell for cell in folder.record()["cells"] if any(folder.run(cell["cell"]).glob("predictions/*.json"))]
    if not cells:
        raise UserError(f"no training in {folder.out} is finished yet")
    rows = []
    for number, cell in enumerate(cells):
        progress("probing features", number, len(cells))
        for result in _of_run(folder.run(cell["cell"]), _collections(plan, cell["source"]), limit):
            rows.append({**{name: cell[name] for name in ("source", "model", "seed")}, **result})
    return rows


def _collections(plan: Mapping[str, Any], source: str) -> dict[str, str]:
    """Name → shards of the collections whose classes fit the networks of a training source."""
    places = {name: each["shards"] for name, each in plan["collections"].items()}
    pairs = [pair for pair in plan["pairs"] if pair["source"] == source and pair["refused"] is None]
    if any(pair["kind"] == "left out" for pair in pairs):  # the source is the other collections together
        return places
    return {name: shards for name, shards in places.items() if any(pair["test"] == name for pair in pairs)}


def _of_run(run: Path, places: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
    """The probe of one training, for every class that several collections have."""
    from brain_dist.inference.features import penultimate_features
    from brain_dist.inference.run import NO_TUMOUR, TUMOUR, load_run
    from brain_dist.judging.clusters import number_clusters
    from brain_dist.judging.probe import source_probe
    from brain_dist.judging.refusal import or_refusal

    features, names, sources, groups = [], [], [], []
    for collection, shards in places.items():
        loaded = load_run(run, shards=shards)
        every = loaded.rows("test")
        rows = np.sort(np.random.default_rng(0).permutation(every)[:limit])
        features.append(penultimate_features(loaded, rows))
        columns = loaded.dataset.columns
        names.append(np.array(loaded.dataset.classes, dtype=object)[columns["label"][rows]])
        sources.append(np.full(len(rows), collection, dtype=object))
        groups.append(np.array([f"{collection}/{group}" for group in columns["group"][rows]], dtype=object))
    name, source, group = map(np.concatenate, (names, sources, groups))
    if TUMOUR in name:  # a collection of two classes: every kind of tumour is one
        name = np.where(name == NO_TUMOUR, NO_TUMOUR, TUMOUR).astype(object)
    matrix, cluster = np.concatenate(features), number_clusters(group)
    return [
        {"class": each, **or_refusal(source_probe, matrix[rows], source[rows], cluster[rows])}
        for each in sorted(set(name))
        for rows in [np.flatnonzero(name == each)]
        if len(set(source[rows])) > 1
    ]


def read_probe(folder: Folder) -> list[dict[str, Any]]:
    """The :func:`summary` of a benchmark's probe for the trainings of its grid; empty if it was not probed."""
    file = folder.out / PROBE
    trainings = {_training(cell) for cell in folder.record()["cells"]}
    advice = f"write it again with `brain-dist benchmark probe {folder.out}`"
    rows = read_record(file, advice, {"rows": list})["rows"] if file.is_file() else []
    return summary([row for row in rows if _training(row) in trainings])


def _training(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["source"], row["model"], row["seed"]


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each training source, model and class."""
    lines = []
    for source, model, name in dict.fromkeys((row["source"], row["model"], row["class"]) for row in rows):
        same = [row for row in rows if (row["source"], row["model"], row["class"]) == (source, model, name)]
        values = [row["balanced_accuracy"] for row in same if "refused" not in row]
        line = {"source": source, "model": model, "class": name}
        if len(values) < len(same):
            lines.append(line | {"refused": next(row["refused"] for row in same if "refused" in row)})
        else:
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            lines.append(line | {"value": float(np.mean(values)), "sd": spread, "chance": same[0]["chance"]})
    return lines


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The probe as a Markdown table, shares in percent."""
    lines = ["| trained on | model | class | source named right | chance |", "|---|---|---|--:|--:|"]
    for line in summary(rows):
        place = f"| {line['source']} | {line['model']} | {line['class']} | "
        if "refused" in line:
            lines.append(f"{place}{line['refused']} | – |")
            continue
        spread = "" if line["sd"] is None else f" ± {100 * line['sd']:.1f}"
        lines.append(f"{place}{100 * line['value']:.1f}{spread} | {100 * line['chance']:.1f} |")
    return "\n".join(lines) + "\n"
