"""Whether subgroups differ by more than chance, if a patient has images in one of them or in several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brain_dist.calibration.subgroups import UNKNOWN, attribute_values, subgroup_table
from brain_dist.judging.predictions import predictions_from_logits
from brain_dist.store.dataset import open_dataset


def gap(right: np.ndarray, patient: np.ndarray, value: np.ndarray) -> dict[str, float]:
    """The gap of a table of right and wrong answers, bool [N]."""
    prob = np.where(right[:, None], [0.8, 0.2], [0.2, 0.8])
    result = subgroup_table(np.zeros(len(right), dtype=int), prob, patient, value)["gap"]
    assert isinstance(result, dict)
    return result


def both_planes(seed: int, loss: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right answers, patient and plane: of 40 patients ten slices in each of two planes; some patients are harder."""
    rng = np.random.default_rng(seed)
    patient, plane = np.repeat(np.arange(40), 20), np.tile(np.repeat(["a", "b"], 10), 40)
    chance = rng.beta(1.5, 0.5, size=40)[patient] - loss * (plane == "b")
    return rng.random(800) < chance, patient, plane


def test_values_inside_a_patient_are_permuted_inside_the_patient() -> None:
    right, patient, plane = both_planes(0, loss=0)
    result = gap(right, patient, plane)
    hits = [np.bincount(patient[plane == name], right[plane == name]) for name in ("a", "b")]
    signs = np.random.default_rng(1).choice([-1, 1], size=(20_000, 40))
    flipped = np.abs(signs @ (hits[0] - hits[1])) / 400  # the patient's two planes are exchanged, or not
    assert result["several"] == 40
    assert result["permuted_mean"] == pytest.approx(flipped.mean(), rel=0.05)
    assert result["permuted_p95"] == pytest.approx(np.quantile(flipped, 0.95), rel=0.1)
    p = (flipped >= result["difference"] - 1e-12).mean()
    assert result["p"] == pytest.approx(p, abs=0.04)


def test_a_plane_in_which_all_patients_lose_is_seen_beside_differences_of_patients() -> None:
    result = gap(*both_planes(0, loss=0.1))
    assert result["difference"] == pytest.approx(0.1, abs=0.05)
    assert result["p"] < 0.01
    chance = [gap(*both_planes(seed, loss=0))["p"] for seed in range(1, 9)]
    assert min(chance) > 0.02
    assert np.mean(chance) == pytest.approx(0.5, abs=0.3)


def test_patients_of_both_kinds() -> None:
    """Patients with one value are exchanged with each other, the others' values stay inside them."""
    right, patient, plane = both_planes(2, loss=0)
    single = np.repeat(np.arange(40, 80), 10)
    of_single = np.repeat(["a", "b"], 200)
    values = np.concatenate([plane, of_single])
    patients = np.concatenate([patient, single])
    same = gap(np.concatenate([right, np.ones(400, dtype=bool)]), patients, values)
    assert same["several"] == 40
    alone = gap(right, patient, plane)  # the patients with one value add images and no differences
    assert same["permuted_mean"] == pytest.approx(alone["permuted_mean"] * 400 / 600, rel=0.05)
    worse = gap(
        np.concatenate([right, np.random.default_rng(3).random(400) > 0.4 * (of_single == "b")]), patients, values
    )
    assert worse["p"] < 0.01
    assert gap(np.ones(400, dtype=bool) & (single % 3 > 0), single, of_single)["several"] == 0


def test_quartiles_of_dates_and_of_numbers_that_lack(phantom_shards: Path) -> None:
    """Dates have eight digits, and a table of another program writes nan for a missing number."""
    dataset = open_dataset(phantom_shards)
    rows = np.arange(40)

    def values(each: list[Any]) -> np.ndarray:
        attributes = dataset.columns["attributes"].copy()
        attributes[rows] = [json.dumps({"x": value}) for value in each]
        changed = replace(dataset, columns=dataset.columns | {"attributes": attributes})
        table = predictions_from_logits(changed, rows, np.zeros((40, 4)), run="run", step=1)
        return attribute_values("x", table, changed)

    dates = values([20190101 + number for number in rows.tolist()])
    names, count = np.unique(dates.astype(str), return_counts=True)
    assert count.tolist() == [10, 10, 10, 10]
    assert names[0] == "20190101 to 20190110.75"
    for missing in (float("nan"), "nan", "", None):
        lacking = values([missing if number % 4 == 0 else float(number) for number in rows.tolist()])
        np.testing.assert_array_equal(lacking == UNKNOWN, rows % 4 == 0)
        assert sorted(np.unique(lacking.astype(str), return_counts=True)[1]) == [7, 7, 8, 8, 10]
    assert set(values(["none", "contrast"] * 20)) == {"none", "contrast"}  # a value like others


def test_subgroups_are_in_the_order_of_their_numbers() -> None:
    value = np.array(["above 16 to 24", "0.5 to 8.25", UNKNOWN, "above 8.25 to 16"], dtype=object)
    table = subgroup_table(np.zeros(4, dtype=int), np.tile([0.8, 0.2], (4, 1)), np.arange(4).astype(str), value)
    assert [row["name"] for row in table["rows"]] == ["0.5 to 8.25", "above 8.25 to 16", "above 16 to 24", UNKNOWN]
