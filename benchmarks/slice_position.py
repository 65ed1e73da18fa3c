"""Does the AUC within patients come from where a slice is in the head, rather than from the tumour?

    python -m benchmarks.slice_position runs/external SHARDS [SHARDS …]

Slices near the middle of a volume have a tumour more often, so a network that recognises the middle of a head ranks
them well. For each SHARDS that ``benchmark cross`` tested on, the table has the AUC within patients of that position
itself, and of each method: over all pairs of a slice with and one without a tumour, and over those pairs that are
equally far from the middle of their volume, within 5 % of its length. The number of a slice is the last one in the name
of its file. Mean and 95 % interval over patients, of the mean over seeds.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.matrix_text import shown
from brain_dist.errors import UserError, leave
from brain_dist.judging.predictions import read_predictions
from brain_dist.judging.within import mean_over_patients
from brain_dist.store.dataset import Dataset, open_dataset

POSITION = "nearness to the middle"
TOLERANCE = 0.05  # of the length of the volume


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slice_position", description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of `benchmark cross`")
    parser.add_argument("shards", nargs="+", help="tested shards whose patients have slices with and without a tumour")
    arguments = parser.parse_args(argv)
    folder = Folder(arguments.out)
    record = folder.record()
    print("| tested on | method | AUC within patients | of slices equally far from the middle |\n|---|---|--:|--:|")
    for shards in arguments.shards:
        dataset = open_dataset(shards)
        eccentricity = dict(zip(dataset.columns["key"].tolist(), eccentricities(dataset), strict=True))
        methods: dict[str, list[list[np.ndarray]]] = {}
        for cell in record["cells"]:
            file = folder.predictions(cell["cell"], dataset.name)
            if dataset.name not in cell["tests"] or not file.is_file():
                continue
            predictions = read_predictions(file).headline
            place = np.array([eccentricity[key] for key in predictions.key])
            patient = np.unique(predictions.patient.astype(str), return_inverse=True)[1]
            healthy = predictions.classes.index("notumor")
            has_tumour, score = predictions.label != healthy, 1 - predictions.prob[:, healthy]
            itself, values = (
                [pair_auc(each, has_tumour, patient, place, tolerance) for tolerance in (1.0, TOLERANCE)]
                for each in (-place, score)
            )
            methods.setdefault(POSITION, [itself])
            methods.setdefault(cell["model"], []).append(values)
        for method, seeds in methods.items():
            cells = [shown(interval(np.mean([seed[column] for seed in seeds], axis=0))) for column in (0, 1)]
            count = "" if method == POSITION else f", {len(seeds)} seed{'s' * (len(seeds) > 1)}"
            print(f"| {dataset.name} | {method}{count} | {' | '.join(cells)} |")
    return 0


def eccentricities(dataset: Dataset) -> np.ndarray:
    """How far each slice is from the middle of its patient's volume, float64 [N], 0 to 0.5 of the volume's length.

    Raises:
        UserError: the name of a file has no number.
    """
    numbers = []
    for source in dataset.columns["source"].astype(str):
        digits = re.findall(r"\d+", Path(source).stem)
        if not digits:
            raise UserError(f"{dataset.root}: {source} has no number of a slice in its name")
        numbers.append(int(digits[-1]))
    number, patient = np.array(numbers, dtype=float), dataset.columns["patient"].astype(str)
    result = np.zeros(len(number))
    for name in np.unique(patient):
        rows = patient == name
        first, last = number[rows].min(), number[rows].max()
        result[rows] = np.abs((number[rows] - first) / max(last - first, 1) - 0.5)
    return result


def pair_auc(
    score: np.ndarray, has_tumour: np.ndarray, patient: np.ndarray, place: np.ndarray, tolerance: float
) -> np.ndarray:
    """Of each patient the share of pairs in which the slice with the tumour has the higher score.

    Args:
        score: float [N].
        has_tumour: bool [N].
        patient: int [N].
        place: float [N]; the two slices of a pair differ by at most ``tolerance``.
        tolerance: in units of ``place``.

    Returns:
        float64 [P] of the patients, NaN for one without such a pair.
    """
    values = []
    for number in np.unique(patient):
        tumour, none = (np.flatnonzero((patient == number) & wanted) for wanted in (has_tumour, ~has_tumour))
        near = np.abs(place[tumour, None] - place[none]) <= tolerance
        above = np.sign(score[tumour, None] - score[none]) / 2 + 0.5
        values.append(above[near].mean() if near.any() else np.nan)
    return np.array(values)


def interval(values: np.ndarray) -> dict[str, Any]:
    """Mean over patients with its 95 % interval."""
    resampled = mean_over_patients(values[~np.isnan(values)])
    low, high = resampled.bca()
    return {"value": float(resampled.estimate), "sd": None, "interval": (low, high)}


if __name__ == "__main__":
    leave(main)
