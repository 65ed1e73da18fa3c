"""A network trained on phantoms, whose tumours are known: its maps show them, and it needs them to be right."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, command, in_process, verb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet that was trained until it classifies phantoms well, with predictions of the test split."""
    base = tmp_path_factory.mktemp("trained")
    size = ["--patients", "320", "--slices", "4", "--size", "96", "--planes", "axial"]
    in_process("shard", "phantom", "--out", str(base / "images"), *size)
    source = ["--recipe", str(ROOT / "shards/datasets/phantom.yaml"), "--source", str(base / "images")]
    in_process("shard", "build", *source, "--out", str(base / "shards"))
    settings = ["--config", str(ROOT / "configs/bench/demo.yaml"), "--model.name", "resnet10t", "--train.epochs", "9"]
    paths = ["--data.shards", str(base / "shards"), "--run.dir", str(base), "--run.name", "run"]
    command([sys.executable, "-m", "brain_dist.train", *settings, *paths], timeout=3000)
    verb("evaluate", str(base / "run"))
    return base / "run"


def summary_of(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "explanations" / f"{name}.json").read_text())


def test_a_trained_network_points_into_the_tumour_and_an_untrained_one_does_not(run: Path) -> None:
    in_process("explain", str(run), "--methods", "gradientshap", "--limit", "40", "--samples", "50")
    summary = summary_of(run, "test")
    pointing = summary["measures"]["pointing game"]
    trained, centre = pointing["methods"]["gradientshap"], pointing["references"]["centre"]
    assert trained["value"] >= 0.8
    assert trained["minus"]["centre"]["value"] >= 0.3
    low, high = centre["interval"]
    assert low <= pointing["untrained"]["gradientshap"]["value"] <= high
    assert summary["verdicts"]["gradientshap"]["better"]
    assert summary["cascade"]["gradientshap"]["depends"]


def test_a_trained_network_needs_the_tumour(run: Path) -> None:
    from brain_dist.explaining.evidence import evidence

    evidence(run)
    total = summary_of(run, "test-evidence")["all"]
    assert total["survive"]["value"] < 0.3
    assert total["survive_control"]["value"] > 0.9
    assert total["fall_difference"]["interval"][0] > 0.3
