"""What the page of a benchmark says: shortcut baselines of the training shards, and what the result does not show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import PUBLISHED
from brain_dist.benchmarking.matrix_text import elsewhere
from brain_dist.benchmarking.rates import rates_sentence
from brain_dist.benchmarking.results import Benchmark, Part, Row
from brain_dist.benchmarking.wording import noun, ties_text
from brain_dist.common.records import read_record
from brain_dist.errors import Fault, UserError
from brain_dist.judging.predictions import read_predictions
from brain_dist.pages.text import listing, percent

BASELINES = {
    "border": "image border only",
    "border_head_crop": "image border after cropping to the head",
    "file_properties": "file properties only",
    "majority": "always the most frequent class",
}


def shortcuts(source: Mapping[str, Any], folder: Folder) -> dict[str, Any]:
    """The shortcut baselines of training shards, measured once and kept in the benchmark's folder.

    Returns:
        As :func:`~brain_dist.judging.shortcuts.shortcut_baselines`, or why they were not measured as ``refused``.

    Raises:
        Fault: they cannot be written.
    """
    from brain_dist.common.files import write_atomically, writing
    from brain_dist.judging.shortcuts import shortcut_baselines
    from brain_dist.store.dataset import open_dataset

    file = folder.out / "shortcuts" / f"{source['version'][:16]}.json"
    with suppress(UserError):  # missing, damaged, or of a version that did not keep the answer to each image
        return read_record(file, "", {"rows": list, "baselines": dict})
    if len(source["shards"]) != 1:
        return {"refused": "the collections are joined for the training"}
    try:
        dataset = open_dataset(source["shards"][0])
        if dataset.version != source["version"]:
            return {"refused": f"{dataset.root} was built again since the training"}
        if dataset.folds:
            return {"refused": "folds; `brain-dist shortcut SHARDS --fold N` measures one"}
        result = shortcut_baselines(dataset)
    except (UserError, Fault) as error:
        return {"refused": str(error)}
    with writing(file):
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, json.dumps(result, indent=1) + "\n")
    return result


def counted(result: dict[str, Any], source: str, record: Mapping[str, Any], folder: Folder) -> dict[str, Any]:
    """Shortcut baselines, and as ``counted`` those of the test images that count if training knew the others.

    Args:
        result: from :func:`shortcuts`.
        source: name of the training shards.
        record: content of benchmark.json.
        folder: the benchmark's folder.
    """
    from brain_dist.judging.shortcuts import restrict

    files = [folder.predictions(cell["cell"]) for cell in record["cells"] if cell["source"] == source]
    table = next((read_predictions(file).headline for file in files if file.is_file()), None)
    if "refused" in result or table is None or len(table) == result["test"]:
        return result
    return result | {"counted": restrict(result, table)}


def place(part: Part, record: Mapping[str, Any]) -> str:
    """Where the models of a part were trained and tested."""
    left_out = next(source["leave_out"] for source in record["sources"] if source["name"] == part.source)
    if left_out:
        return f"Trained on {part.source}, tested on {left_out}"
    images = ", with the test images that training knew" if part.test == PUBLISHED else ""
    return f"Trained and tested on {part.source}{images}"


def worst_class(row: Row, part: Part) -> tuple[str, float | None]:
    """The class with the lowest sensitivity of a model, the mean over its seeds, and that sensitivity."""
    assert part.summary is not None
    values = {name: row[f"sensitivity:{name}_mean"] for name in part.summary.tables.classes}
    defined = {name: value for name, value in values.items() if value is not None}
    name = min(defined, key=defined.__getitem__)
    return name, defined[name]


def limits(
    benchmark: Benchmark, parts: Sequence[Part], matrix: Mapping[str, Any] | None,
    baselines: Mapping[str, Mapping[str, Any]], calibration: Mapping[Any, Mapping[str, Any]],
    patients: Mapping[str, Any],
) -> list[str]:  # fmt: skip
    """What the result does not show, in sentences."""
    record = benchmark.record
    lines = []
    for part in parts:
        lines += _order(part)
    if len(record["seeds"]) < 2:
        lines.append("One training of each model: how much another seed would change the numbers is not known.")
    lines.append(rates_sentence(record))
    without = patients["images"] - patients["known"]
    if without:
        lines.append(
            f"{without:,} of {patients['images']:,} test images have no known patient: other slices of"
            " theirs may be in training."
        )
    for name, each in baselines.items():
        if "refused" in each:
            continue
        scores = each.get("counted", each)["baselines"]
        best = max(scores, key=lambda key: scores[key]["accuracy"])
        lines.append(
            f"{name}: “{BASELINES[best]}” alone reaches {percent(scores[best]['accuracy'])} on the same images. Only"
            " what a model adds to that is evidence that it recognises disease."
        )
    lines += _calibration(calibration)
    lines.append(_elsewhere(matrix))
    if noun(record) == "method":
        lines.append(
            f"The methods trained one network, {record['common']['model.name']}: their order may be another with"
            " another network, other data or a longer training."
        )
    else:
        lines.append(
            "Models differ in size, speed and pretraining, too: a difference is one between these networks as they"
            " are, not between architectures."
        )
    lines.append(
        "Single slices that someone chose, not patients: nothing here says what the networks would do in a clinic."
    )
    return lines


def _calibration(calibration: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """Which models have probabilities that are not right, and of which that is open; each is named once."""

    def models(verdict: str) -> list[str]:
        names = [name for table in calibration.values() for name, each in table.items() if each["verdict"] == verdict]
        return list(dict.fromkeys(names))

    wrong = models("miscalibrated")
    unclear = [name for name in models("undecided") if name not in wrong]
    lines = []
    if wrong:
        lines.append(
            f"The probabilities of {listing(wrong)} are not right as they are; brain-dist calibrate says more."
        )
    if unclear:
        lines.append(
            f"Whether the probabilities of {listing(unclear)} are right is open: their calibration error is larger than"
            " that of right ones would be, unless the images of a patient err together."
        )
    return lines


def _order(part: Part) -> list[str]:
    """Models that do not differ significantly, or the reason why the models have no order."""
    if "refused" in part.ranks:
        return [f"{part.source}: no order of the models, because {part.ranks['refused']}."]
    return [
        f"{part.source}: {text[0].lower()}{text[1:]} on these patients. That does not show that they are equal."
        for text in ties_text(part.ranks)
    ]


def _elsewhere(matrix: Mapping[str, Any] | None) -> str:
    """What is not known about other collections."""
    tested = elsewhere(matrix) if matrix else []
    if not tested:
        return "Not tested on another collection: how accurate the models are on other scanners is not known."
    drops = [row for row in tested if (row.get("drop") or {}).get("value") is not None]
    largest = max(drops, key=lambda row: row["drop"]["value"]) if drops else None
    if largest is None or largest["drop"]["value"] <= 0:
        names = listing(list(dict.fromkeys(row["test"] for row in tested)))
        return f"How accurate the models are on other collections than {names} is not known."
    low, high = largest["drop"].get("interval", (None, None))
    spread = "no interval" if low is None else f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    loss = (
        f"{largest['model']} trained on {largest['source']} loses {100 * largest['drop']['value']:.1f} percentage"
        f" points of balanced accuracy on {largest['test']} ({spread})"
    )
    if low is not None and low > 0:
        text = f"Results inside a collection do not carry over: {loss}"
    else:
        text = f"Whether results inside a collection carry over is open: the largest loss is that {loss}"
    return f"{text}. Other collections than these are not known."
