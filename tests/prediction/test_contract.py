"""The preprocessing contract: the pixels of evaluation, and what preprocess.json says."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import command, in_process
from pictures import draw
from PIL import Image

import brain_dist
from benchmarks import parity
from brain_dist.checkpoints.layout import complete_steps
from brain_dist.common.files import sha256_file
from brain_dist.config import Config, DataConfig, ModelConfig
from brain_dist.errors import UserError
from brain_dist.prediction.outputs import stack_pixels
from brain_dist.prediction.reading import array_slices, image_slices, read_slices
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.stream.contract import FILE, Contract, read_contract


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """Files that a build stores in different ways: kept, made smaller, encoded again, gray and in colour."""
    root = tmp_path_factory.mktemp("varied")
    for label, kind in enumerate(("glioma", "notumor")):
        (root / "images" / kind).mkdir(parents=True)
        for number in range(24):
            head = draw(100 * label + number, size=(60, 96, 150, 330)[number % 4])
            wide = head.resize((head.width + 31, head.height))
            path = root / "images" / kind / f"{number:02d}"
            if number % 3 == 0:
                colours = (wide, wide.transpose(Image.Transpose.FLIP_LEFT_RIGHT), wide)
                Image.merge("RGB", colours).save(f"{path}.jpg", quality=90)
            elif number % 3 == 1:
                wide.save(f"{path}.jpg", quality=85)
            else:
                Image.fromarray(np.asarray(wide).astype(np.uint16) * 250).save(f"{path}.png")
    options = ["--fractions", "0.4,0.2,0.4", "--max-side", "300", "--allow-missing"]
    in_process("shard", "build", "--source", str(root / "images"), "--out", str(root / "shards"), *options)
    return root / "images", open_dataset(root / "shards")


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize(("size", "head_crop", "stretch"), [(32, True, False), (100, False, True)])
def test_prediction_sees_the_pixels_of_evaluation(
    varied: tuple[Path, Dataset], size: int, head_crop: bool, stretch: bool, color: str
) -> None:
    images, dataset = varied
    data = DataConfig(size=size, head_crop=head_crop, stretch=stretch, color=color)  # type: ignore[arg-type]
    contract = Contract.of(Config(data=data, model=ModelConfig()), dataset.classes, dataset.version, dataset)
    assert contract.max_side == 300
    settings = {"normalize": False, "size": size, "head_crop": head_crop, "stretch": stretch, "color": color}
    batches = list(brain_dist.batches(dataset, "test", loader="opencv", **settings))
    loaded = np.concatenate([batch.image.numpy() for batch in batches])
    paths = [images / dataset.columns["source"][row] for batch in batches for row in batch.row.tolist()]
    assert len(paths) > 8
    pieces = [read_slices(path.read_bytes(), path.name, contract, list)[0].pixels for path in paths]
    np.testing.assert_array_equal(stack_pixels([piece for piece in pieces if piece is not None], contract), loaded)


def test_prediction_takes_the_channel_of_the_training(tmp_path: Path) -> None:
    for label, kind in enumerate(("glioma", "notumor")):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for number in range(12):
            channels = [draw(1000 * label + 10 * number + channel, size=80) for channel in range(3)]
            Image.merge("RGB", channels).save(tmp_path / "images" / kind / f"{number:02d}.tif")
    (tmp_path / "recipe.yaml").write_text("name: three\nparts: [{channel: 2}]\n")
    options = ["--recipe", str(tmp_path / "recipe.yaml"), "--fractions", "0.4,0.2,0.4", "--allow-missing"]
    in_process("shard", "build", "--source", str(tmp_path / "images"), "--out", str(tmp_path / "shards"), *options)
    dataset = open_dataset(tmp_path / "shards")
    data = DataConfig(size=32)
    contract = Contract.of(Config(data=data, model=ModelConfig()), dataset.classes, dataset.version, dataset)
    assert contract.channel == 2
    (tmp_path / FILE).write_text(contract.to_json())
    assert read_contract(tmp_path) == contract
    (batch,) = brain_dist.batches(dataset, "test", loader="opencv", normalize=False, size=32)
    paths = [tmp_path / "images" / dataset.columns["source"][row] for row in batch.row.tolist()]
    for path, pixels in zip(paths, batch.image.numpy(), strict=True):
        (each,) = read_slices(path.read_bytes(), path.name, contract, list)
        np.testing.assert_array_equal(each.pixels, pixels[0])
        with Image.open(path) as image:
            np.testing.assert_array_equal(image_slices(image, contract)[0].pixels, pixels[0])
            np.testing.assert_array_equal(array_slices(np.asarray(image), contract, list)[0].pixels, pixels[0])
            gray = image.split()[2]  # a gray picture has nothing to choose from
        np.testing.assert_array_equal(image_slices(gray, contract)[0].pixels, pixels[0])
    four = dataclasses.replace(contract, channel=3)
    (each,) = read_slices(paths[0].read_bytes(), paths[0].name, four, list)
    assert each.error == "has the channels R, G, B, but the model was trained on channel 3"


def test_contract_of_a_run_names_its_weights_and_its_calibration(trained_run: Path) -> None:
    contract = read_contract(trained_run)
    assert contract is not None
    (step,) = complete_steps(trained_run / "checkpoints")[-1:]
    weights, calibration = contract.weights, contract.calibration
    assert weights is not None
    assert weights.step == step
    assert weights.sha256 == sha256_file(trained_run / "checkpoints" / f"{step:08d}" / "model.safetensors")
    assert (contract.size, contract.head_crop, contract.color, contract.channels) == (32, True, "gray", 3)
    assert contract.classes == ("glioma", "meningioma", "notumor", "pituitary")
    written = json.loads((trained_run / "calibration.json").read_text())
    assert calibration is not None
    assert (calibration.step, calibration.alpha) == (step, 0.3)
    assert calibration.threshold == written["thresholds"]["lac"][0]["value"]
    assert contract.dataset_version == written["dataset_version"]


def test_damaged_contract_is_one_line(trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    path = tmp_path / "run" / FILE
    for text, message in (
        ("{", r"is damaged \(it is not JSON\); copy or export the model again"),
        ("[]", r"is damaged \(it is not a JSON object\); copy or export the model again"),
        ('{"schema": 99}', "has schema 99"),
        (
            path.read_text().replace('"size": 32', '"size": "big"'),
            "size must be an integer.*; copy or export the model again",
        ),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            brain_dist.load(tmp_path / "run")
    path.unlink()  # a run of an earlier version
    assert brain_dist.load(tmp_path / "run").contract.size == 32


def test_contract_needs_no_torch() -> None:
    code = (
        "import sys, brain_dist.prediction.reading; print([m for m in ('torch', 'timm', 'pandas') if m in sys.modules])"
    )
    assert command([sys.executable, "-c", code]).out == "[]\n"


@pytest.mark.slow
def test_parity_of_a_run(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(trained_run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[4:]}
    assert set(rows) == {"opencv", "torch", "dali"}
    assert rows["opencv"] == ["0", "0.0000", "0.0e+00", "0"]
    assert all(int(row[0]) <= 3 and float(row[2]) < 0.02 and row[3] == "0" for row in rows.values())
