"""The probe of a source in features: what it finds, what it must not find, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from brain_dist.judging.probe import source_probe
from brain_dist.judging.refusal import Refusal

GROUPS, EACH = 60, 4
RNG = np.random.default_rng(0)
CLUSTER = np.repeat(np.arange(GROUPS), EACH)
SOURCE = np.array(["a", "b"], dtype=object)[CLUSTER % 2]


def test_a_source_in_one_feature_is_found() -> None:
    features = RNG.normal(size=(GROUPS * EACH, 8))
    features[:, 3] += 6.0 * (SOURCE == "b")
    result = source_probe(features, SOURCE, CLUSTER)
    assert result["balanced_accuracy"] > 0.97
    assert result["chance"] == 0.5
    assert result["images"] == {"a": 120, "b": 120}
    assert result["groups"] == {"a": 30, "b": 30}


def test_knowing_the_patient_is_not_knowing_the_source() -> None:
    patients = RNG.normal(size=(GROUPS, 200))  # every patient can be told from all others
    features = patients[CLUSTER] + 0.01 * RNG.normal(size=(GROUPS * EACH, 200))
    assert source_probe(features, SOURCE, CLUSTER)["balanced_accuracy"] < 0.7  # not grouped, it would be 1


def test_chance_without_a_signal_even_if_one_source_is_rare() -> None:
    source = np.where(CLUSTER % 6 == 0, "rare", "common").astype(object)
    result = source_probe(np.zeros((GROUPS * EACH, 3)), source, CLUSTER)
    assert result["balanced_accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full(GROUPS * EACH, "a", dtype=object), "images of one source only"),
        (np.where(CLUSTER < 4, "few", "many").astype(object), "few has 4 groups; the probe needs 5"),
    ],
)
def test_refusals(source: np.ndarray, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        source_probe(np.zeros((GROUPS * EACH, 2)), source, CLUSTER)
