"""On phantoms, whose tumours are known, the maps of a trained network show the tumour; an untrained one's do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import ROOT, command, in_process, verb


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_trained_network_points_into_the_tumour_and_an_untrained_one_does_not(tmp_path: Path) -> None:
    size = ["--patients", "320", "--slices", "4", "--size", "96", "--planes", "axial"]
    in_process("shard", "phantom", "--out", str(tmp_path / "images"), *size)
    source = ["--recipe", str(ROOT / "shards/datasets/phantom.yaml"), "--source", str(tmp_path / "images")]
    in_process("shard", "build", *source, "--out", str(tmp_path / "shards"))
    settings = ["--config", str(ROOT / "configs/bench/demo.yaml"), "--model.name", "resnet10t", "--train.epochs", "16"]
    paths = ["--data.shards", str(tmp_path / "shards"), "--run.dir", str(tmp_path), "--run.name", "run"]
    command([sys.executable, "-m", "brain_dist.train", *settings, *paths], timeout=1200)
    run = tmp_path / "run"
    verb("evaluate", str(run))
    in_process("explain", str(run), "--methods", "gradientshap", "--limit", "60")
    summary = json.loads((run / "explanations" / "test.json").read_text())
    pointing = summary["measures"]["pointing game"]
    trained, centre = pointing["methods"]["gradientshap"], pointing["references"]["centre"]
    assert trained["value"] >= 0.8
    assert trained["minus"]["centre"]["value"] >= 0.3
    low, high = centre["interval"]
    assert low <= pointing["untrained"]["gradientshap"]["value"] <= high
    assert summary["verdicts"]["gradientshap"]["better"]
    assert summary["cascade"]["gradientshap"]["depends"]
