"""Results per patient, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from brain_dist.judging.patients import patient_results
from brain_dist.judging.predictions import Predictions


def table(rows: list[tuple[str, str | None, int, list[float]]]) -> Predictions:
    """A table of (dataset, patient, label, probabilities)."""
    dataset, patient, label, prob = (list(column) for column in zip(*rows, strict=True))
    n, text = len(rows), np.array(["x"] * len(rows), dtype=object)
    values = np.array(prob, dtype=np.float32)
    logit = np.log(np.maximum(values, 1e-30))
    return Predictions(
        row=np.arange(n), key=text, dataset=np.array(dataset, dtype=object), split=text,
        patient=np.array(patient, dtype=object), group=text, label=np.array(label), prob=values, logit=logit,
        classes=("a", "b", "c"), run="r", step=1, dataset_version="v", shards="s",
    )  # fmt: skip


def test_majority_and_mean_probability() -> None:
    result = patient_results(
        table(
            [
                # two of three slices are right, but the third is very sure: the rules differ
                ("d", "1", 0, [0.4, 0.35, 0.25]), ("d", "1", 0, [0.4, 0.35, 0.25]), ("d", "1", 0, [0.02, 0.96, 0.02]),
                # one slice each: the tie goes to the larger mean probability
                ("d", "2", 1, [0.6, 0.3, 0.1]), ("d", "2", 1, [0.05, 0.9, 0.05]),
                # the same identifier in another dataset is another patient
                ("e", "2", 0, [0.9, 0.05, 0.05]),
                ("d", "mixed", 0, [0.9, 0.05, 0.05]), ("d", "mixed", 1, [0.9, 0.05, 0.05]),
                ("d", None, 2, [0.1, 0.1, 0.8]),
            ]
        )
    )  # fmt: skip
    assert result is not None
    assert [result[key] for key in ("patients", "mixed", "without", "missing")] == [3, 1, 1, ["c"]]
    assert result["majority"]["accuracy"] == 1
    assert result["mean"]["accuracy"] == pytest.approx(2 / 3)
    assert result["mean"]["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert result["mean"]["n"] == 3


def test_a_tie_goes_to_the_larger_mean_probability_however_small_the_difference() -> None:
    above = float(np.nextafter(np.float32(0.6), np.float32(1)))  # the next float32, 6e-8 above
    rows = []
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)):  # the true class first, then the other
        for slice_prob in ([0.6, 0.4, 0.0], [0.4, above, 0.0]):
            prob = [0.0, 0.0, 0.0]
            for c, value in zip((order[1], order[0], order[2]), slice_prob, strict=True):
                prob[c] = value
            rows.append(("d", str(order), order[0], prob))
    result = patient_results(table(rows))
    assert result is not None
    assert result["patients"] == 4
    assert result["majority"]["accuracy"] == 1
    assert result["mean"]["accuracy"] == 1


def test_no_patients() -> None:
    assert patient_results(table([("d", None, 0, [0.8, 0.1, 0.1])])) is None
    assert patient_results(table([("d", "1", 0, [0.8, 0.1, 0.1]), ("d", "1", 1, [0.8, 0.1, 0.1])])) is None
