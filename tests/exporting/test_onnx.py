"""The ONNX export: it needs no torch, says what the run says, and its maps are class activation maps."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import command, in_process
from pictures import draw
from PIL import Image

import brain_dist
from brain_dist.checkpoints.choice import weights_file
from brain_dist.errors import UserError
from brain_dist.explaining.cams import cam_maps
from brain_dist.explaining.layers import Layer
from brain_dist.exporting.graph import class_maps, has_maps, maps_add_up
from brain_dist.prediction.maps import class_heat
from brain_dist.prediction.onnx_model import OnnxModel

# of `pip install`: what containers/serve.in does not list; importing it raises ImportError
MISSING = ("torch", "torchvision", "timm", "deepspeed", "nvidia", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib")
WITHOUT_TORCH = f"""
import sys
sys.modules.update(dict.fromkeys({MISSING}))
from brain_dist.cli import entry
entry()
"""


def test_it_predicts_without_torch(trained_run: Path, onnx_export: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        draw(number).save(images / f"{number}.png")
    (images / "empty.png").touch()
    tables, maps = [tmp_path / "with.csv", tmp_path / "without.csv"], tmp_path / "maps"
    arguments = ["predict", str(onnx_export / "model.onnx"), str(images), "--out"]
    in_process(*arguments, str(tables[0]), expect=3)
    options = [str(tables[1]), "--explain", str(maps)]
    command([sys.executable, "-c", WITHOUT_TORCH, *arguments, *options], expect=3)
    assert tables[1].read_bytes() == tables[0].read_bytes()
    assert len(list(maps.iterdir())) == 4
    expected = brain_dist.load(trained_run).predict(images)
    with tables[1].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["error"] for row in rows] == [each.error or "" for each in expected]
    for row, each in zip(rows[:4], expected[:4], strict=True):
        assert (row["label"], row["set"].split("|"), row["verdict"]) == (each.label, list(each.set or ()), each.verdict)
        assert float(row["probability"]) == pytest.approx(each.probability, abs=1e-5)


def test_what_needs_torch_or_pyarrow_says_so(
    trained_run: Path, onnx_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    paths, out = [str(tmp_path), "--out", str(tmp_path / "p.csv")], str(tmp_path / "p.parquet")
    draw(0).save(tmp_path / "0.png")
    reason = "needs torch, which cannot be imported (import of torch halted; None in sys.modules); install it, or"
    error = in_process("predict", str(trained_run), *paths, expect=2).err
    assert (
        error == f"brain-dist: error: {trained_run} {reason} give an ONNX export (`brain-dist export RUN --to onnx`)\n"
    )
    error = in_process("predict", str(onnx_export), str(tmp_path), "--out", out, expect=2).err
    assert error.endswith("pyarrow is not installed; run `pip install pyarrow`, or choose .csv or .json\n")
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    error = in_process("predict", str(onnx_export), *paths, expect=2).err
    assert error == f"brain-dist: error: a prediction on several ranks {reason} start one process\n"


def test_any_batch_gives_the_logits_features_and_maps_of_the_network(trained_run: Path, onnx_export: Path) -> None:
    model, run = brain_dist.load(onnx_export).model, brain_dist.load(trained_run).model
    assert isinstance(model, OnnxModel)
    contract = model.contract
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, contract.size, contract.size), dtype=np.uint8)
    for count in (1, 3, 8):
        actual, expected = model.outputs(pixels[:count]), run.outputs(pixels[:count])
        np.testing.assert_allclose(actual.logits, expected.logits, atol=1e-4)
        np.testing.assert_allclose(actual.features, expected.features, atol=1e-4)
    maps = model.outputs(pixels).maps
    assert maps is not None
    assert maps.shape[:2] == (8, len(contract.classes))
    assert maps_add_up(maps, model.outputs(pixels).logits) < 1e-4
    parity = json.loads((onnx_export / "parity.json").read_text())
    assert (parity["maps"], parity["other_labels"]) == (True, 0)
    assert b"site-packages" not in (onnx_export / "model.onnx").read_bytes()


def test_an_export_explains_by_its_own_maps(onnx_export: Path, tmp_path: Path) -> None:
    draw(1).save(tmp_path / "slice.png")
    in_process("predict", str(onnx_export), str(tmp_path / "slice.png"), "--explain", str(tmp_path / "maps"))
    (picture,) = (tmp_path / "maps").iterdir()
    seen, with_map = np.split(np.asarray(Image.open(picture)), 2, axis=1)
    model = brain_dist.load(onnx_export).model
    maps = model.outputs(np.zeros((1, 1, 32, 32), dtype=np.uint8)).maps
    assert maps is not None
    assert maps.shape[2:] == (1, 1)
    np.testing.assert_array_equal(with_map, seen, "a map of one cell says nothing of a place")
    assert seen.max() > 100


def test_a_map_for_display_is_scaled_and_empty_if_it_says_nothing() -> None:
    heat = class_heat(np.array([[-1.0, 0.0], [0.0, 4.0]], dtype=np.float32), 32)
    assert heat.shape == (32, 32)
    assert (heat.min(), heat.max()) == (0, 1)
    assert heat[-1, -1] == 1
    assert heat[0, 0] == 0
    for value in (3.0, 0.0, -2.0):
        assert not class_heat(np.full((5, 5), value, dtype=np.float32), 160).any()


@pytest.mark.parametrize(("name", "layer"), [("test_resnet", "layer4"), ("test_efficientnet", "bn2")])
def test_maps_are_grad_cams_where_pooling_is_followed_by_a_linear_layer(name: str, layer: str) -> None:
    torch.manual_seed(0)
    network: Any = timm.create_model(name, num_classes=4).eval()
    images = torch.randn(3, 3, 64, 64)
    assert has_maps(network, images)
    with torch.no_grad():
        cells = network.forward_features(images)
        maps = class_maps(network, cells, network.forward_head(cells, pre_logits=True))
    assert maps is not None
    targets = [3, 0, 1]
    expected = cam_maps(network, images, targets, "gradcam", Layer(layer, 32))
    for number, target in enumerate(targets):
        np.testing.assert_allclose(class_heat(maps[number, target].numpy(), 64), expected[number], atol=1e-4)
    assert expected.max() == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("test_convnext", True), ("convnext_zepto_rms_ols", True), ("test_vit", False), ("mobilenetv3_small_050", False)],
)
def test_networks_with_another_head_have_no_maps(name: str, expected: bool) -> None:
    torch.manual_seed(0)
    network: Any = timm.create_model(name, num_classes=4).eval()
    side = network.default_cfg["input_size"][-1] if name == "test_vit" else 64
    assert has_maps(network, torch.randn(4, 3, side, side)) is expected


def test_mistakes_are_one_line(onnx_export: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(onnx_export, tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes((onnx_export / "model.onnx").read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be opened by ONNX Runtime"):
        brain_dist.load(damaged)
    with pytest.raises(UserError, match="install onnxruntime-gpu"):
        brain_dist.load(onnx_export, device="cuda")
    with pytest.raises(UserError, match="use the run, or `export RUN --to hf`"):
        weights_file(onnx_export)
    with pytest.raises(UserError, match="is an export, which has only one"):
        brain_dist.load(onnx_export, step=3)
