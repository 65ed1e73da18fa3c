"""Exports: what they say is what the run says, and prediction accepts them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import in_process
from pictures import draw
from safetensors.torch import load_file, save_file

import brain_dist
from brain_dist.checkpoints.layout import complete_steps, weights_file
from brain_dist.errors import UserError
from brain_dist.exporting import export
from brain_dist.exporting.source import Source
from brain_dist.prediction.torch_model import TorchModel
from brain_dist.stream.contract import FILE, read_contract

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exports(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "out"
    result = in_process("export", str(trained_run), "--to", "hf,pt2", "--out", str(out))
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(out / "hf"), str(out / "pt2")]
    assert all("other labels 0" in line for line in lines)
    return out


def test_exports_predict_what_the_run_predicts(trained_run: Path, exports: Path) -> None:
    images = [draw(number) for number in range(5)]
    expected = brain_dist.load(trained_run).predict(images)
    for target in ("hf", "pt2"):
        model = brain_dist.load(exports / target)
        for batch in (1, 3, 5):
            predictions = model.predict(images, batch=batch)
            assert [(each.label, each.set, each.verdict) for each in predictions] == [
                (each.label, each.set, each.verdict) for each in expected
            ]
            for each, other in zip(predictions, expected, strict=True):
                assert each.probability == pytest.approx(other.probability, abs=1e-5)
        parity = json.loads((exports / target / "parity.json").read_text())
        assert parity["images"] == len(brain_dist.load_run(trained_run).rows("test"))
        assert parity["max_logit"] <= 1e-4
        assert parity["accuracy"] == parity["run_accuracy"]
        assert read_contract(exports / target) == read_contract(trained_run)


def test_the_hub_folder_is_loaded_by_timm(trained_run: Path, exports: Path) -> None:
    network = timm.create_model(f"local-dir:{exports / 'hf'}", pretrained=True).eval()
    model = brain_dist.load(trained_run).model
    assert isinstance(model, TorchModel)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), model.opened.model(images), rtol=0, atol=0)
    config = timm.data.resolve_model_data_config(network)
    assert (config["input_size"], config["crop_mode"], config["crop_pct"]) == ((3, 32, 32), "squash", 1.0)
    np.testing.assert_allclose(config["mean"], model.contract.mean)
    assert json.loads((exports / "hf" / "config.json").read_text())["label_names"] == list(model.contract.classes)


def test_an_export_that_says_something_else_is_not_kept(trained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    write = export.WRITERS["hf"]

    def write_other_weights(source: Source, folder: Path) -> None:
        write(source, folder)
        file = folder / "model.safetensors"
        weights = load_file(file)
        weights["head.fc.bias"] += torch.arange(len(weights["head.fc.bias"]))
        save_file(weights, file, metadata={"format": "pt"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(export.WRITERS, "hf", write_other_weights)
        result = in_process("export", str(run), "--to", "hf", "--out", str(tmp_path / "out"), expect=1)
    assert "hf: a logit differs by 3 from the run's and " in result.err
    assert "so the export is not kept" in result.err
    assert not (tmp_path / "out" / "hf").exists()


def test_mistakes_are_one_line(trained_run: Path, exports: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([str(trained_run), "--to", "onx", "--out", str(tmp_path)], "'onx' is unknown; choose from hf, onnx, pt2"),
        ([str(trained_run), "--to", "hf", "--out", str(exports)], "exists; remove it"),
    ):
        error = in_process("export", *arguments, expect=2).err
        assert message in error
        assert error.count("\n") == 1
    damaged = shutil.copytree(exports, tmp_path / "damaged")
    (damaged / "pt2" / "model.pt2").write_bytes(b"nothing")
    (damaged / "hf" / "model.safetensors").write_bytes(b"nothing")
    for target in ("hf", "pt2"):
        with pytest.raises(UserError, match="export the run again"):
            brain_dist.load(damaged / target)
    (damaged / "pt2" / FILE).unlink()
    with pytest.raises(UserError, match=r"has no preprocess\.json"):
        brain_dist.load(damaged / "pt2")
    with pytest.raises(UserError, match="is an export, which has only one"):
        brain_dist.load(exports / "hf", step=3)


def test_an_export_is_a_source_of_weights(trained_run: Path, exports: Path) -> None:
    step = complete_steps(trained_run / "checkpoints")[-1]
    own = load_file(trained_run / "checkpoints" / f"{step:08d}" / "model.safetensors")
    exported = load_file(weights_file(exports / "hf"))
    assert all(torch.equal(value.float(), own[name].float()) for name, value in exported.items())
