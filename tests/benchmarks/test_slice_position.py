"""Pairs of slices at the same place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers import in_process
from pictures import write_lgg

from benchmarks.slice_position import eccentricities, pair_auc
from brain_dist.store.dataset import open_dataset


def test_a_score_that_is_the_position_ranks_well_until_the_position_is_the_same() -> None:
    place = np.tile([0.0, 0.1, 0.2, 0.3, 0.4], 4)
    patient = np.repeat([0, 1], 10)
    tumour = np.isin(np.arange(20) % 10, [0, 1, 2, 6])  # mostly in the middle
    assert (pair_auc(-place, tumour, patient, place, 1.0) > 0.75).all()
    np.testing.assert_array_equal(pair_auc(-place, tumour, patient, place, 0.01), [0.5, 0.5])
    np.testing.assert_array_equal(pair_auc(tumour * 1.0, tumour, patient, place, 0.01), [1.0, 1.0])
    alone = pair_auc(-place, tumour, np.where(patient == 1, np.arange(20), 0), place, 0.01)
    assert np.isnan(alone[1:]).all(), "a patient without a pair has no value"


def test_the_place_of_a_slice_is_read_from_its_files_name(tmp_path: Path) -> None:
    write_lgg(tmp_path / "lgg", patients=3, slices=5)
    recipe = ["--recipe", "tcga_lgg_slices", "--split", "test"]
    in_process("shard", "build", "--source", str(tmp_path / "lgg"), "--out", str(tmp_path / "out"), *recipe)
    dataset = open_dataset(tmp_path / "out")
    number = [int(Path(source).stem.rsplit("_", 1)[1]) for source in dataset.columns["source"]]
    np.testing.assert_allclose(eccentricities(dataset), np.abs(np.array(number) - 3) / 4)
