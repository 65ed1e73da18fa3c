"""Exports: what they say is what the run says, and prediction accepts them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import google.protobuf.text_format
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import timm
import torch
from helpers import in_process, verb
from pictures import draw
from safetensors.torch import load_file, save_file

import brain_dist
from brain_dist.checkpoints.choice import weights_file
from brain_dist.checkpoints.layout import complete_steps
from brain_dist.errors import UserError
from brain_dist.exporting import export
from brain_dist.exporting.source import Source
from brain_dist.prediction.model import open_model
from brain_dist.prediction.torch_model import TorchModel
from brain_dist.stream.contract import FILE, read_contract

pytestmark = pytest.mark.slow


FORMATS = ["hf", "onnx", "int8", "pt2", "triton"]
EXACT = ["hf", "onnx", "pt2", "triton"]


@pytest.fixture(scope="module")
def exports(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "out"
    result = verb("export", str(trained_run), "--to", ",".join(FORMATS), "--out", str(out))
    for target in FORMATS:
        (row,) = [line for line in result.out.splitlines() if line.split("┃")[0].split("│")[0].strip() == target]
        assert row.count("│") == 7
    return out


def test_exports_predict_what_the_run_predicts(trained_run: Path, exports: Path) -> None:
    images = [draw(number) for number in range(5)]
    expected = brain_dist.load(trained_run).predict(images)
    for target in EXACT:
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
        assert parity["ready"]
        assert [speed["batch"] for speed in parity["speed"]] == [1, 8, 32]
        assert all(0 < speed["median"] <= speed["p95"] for speed in parity["speed"])
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


def test_the_hub_folder_has_the_options_of_the_network(trained_run: Path, tmp_path: Path) -> None:
    model = brain_dist.load(trained_run).model
    assert isinstance(model, TorchModel)
    options = {"ls_init_value": None, "kernel_sizes": 3}
    network = timm.create_model("test_convnext", num_classes=4, **options)
    opened = dataclasses.replace(model.opened, model=network.eval(), options=options)
    empty = np.zeros(0)
    source = Source(TorchModel(opened, None), brain_dist.load_run(trained_run), empty, empty, empty)
    export.WRITERS["hf"](source, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_the_hub_folder_of_one_channel_is_normalised_as_the_run(trained_run: Path, tmp_path: Path) -> None:
    """One channel takes the average of the three means, in the run and in what timm reads."""
    model = brain_dist.load(trained_run).model
    assert isinstance(model, TorchModel)
    mean, std = (0.1, 0.2, 0.6), (0.2, 0.3, 0.4)
    contract = dataclasses.replace(model.contract, channels=1, mean=mean, std=std)
    network = timm.create_model("test_convnext", num_classes=4, in_chans=1).eval()
    opened = dataclasses.replace(model.opened, model=network, contract=contract, options={})
    empty = np.zeros(0)
    source = Source(TorchModel(opened, None), brain_dist.load_run(trained_run), empty, empty, empty)
    export.WRITERS["hf"](source, tmp_path)
    (tmp_path / FILE).write_text(contract.to_json())
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(loaded)
    np.testing.assert_allclose([*config["mean"], *config["std"]], [0.3, 0.3])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32), np.uint8)
    with torch.no_grad():
        logits = loaded((torch.from_numpy(pixels) / 255 - config["mean"][0]) / config["std"][0])
    np.testing.assert_allclose(open_model(tmp_path, device="cpu").outputs(pixels).logits, logits, atol=1e-5)


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
        (
            [str(trained_run), "--to", "onx", "--out", str(tmp_path)],
            "'onx' is unknown; choose from hf, onnx, int8, pt2, triton",
        ),
        ([str(trained_run), "--to", "hf", "--out", str(exports)], "exists; remove it"),
        ([str(trained_run), "--to", "hf,pt2,hf", "--out", str(tmp_path / "out")], "'hf' is named twice"),
        ([str(trained_run), "--to", "hf", "--out", str(tmp_path / "out"), "--batch", "0"], "--batch 0: must be ≥ 1"),
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


def test_int8_quantises_convolutions_and_leaves_the_maps(trained_run: Path, exports: Path) -> None:
    graph = onnx.load(exports / "int8" / "model.onnx").graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    quantised = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    of_maps = [node for node in quantised if producer[node.input[0]].op_type != "DequantizeLinear"]
    assert len(of_maps) == 1  # the classifier's weights, applied to each cell
    weights = [producer[node.input[1]] for node in quantised if node is not of_maps[0]]
    assert {node.op_type for node in weights} == {"DequantizeLinear"}
    assert {constants[node.input[0]].dtype for node in weights} == {np.dtype(np.int8)}
    assert max(constants[node.input[1]].size for node in weights) > 1  # a scale for each channel
    certificate = json.loads((exports / "int8" / "parity.json").read_text())
    assert certificate["max_logit"] > 0
    assert certificate["maps"]
    assert certificate["ready"] == (certificate["reason"] is None)
    assert certificate["size"] < json.loads((exports / "onnx" / "parity.json").read_text())["size"]
    run = brain_dist.load(trained_run).predict([draw(number) for number in range(5)])
    small = brain_dist.load(exports / "int8").predict([draw(number) for number in range(5)])
    for each, other in zip(small, run, strict=True):
        assert each.probability == pytest.approx(other.probability, abs=0.2)


def test_an_export_that_is_not_ready_says_so_when_opened(exports: Path, tmp_path: Path, capfd: Any) -> None:
    worse = shutil.copytree(exports / "int8", tmp_path / "worse")
    content = json.loads((worse / "parity.json").read_text())
    (worse / "parity.json").write_text(json.dumps({**content, "ready": False, "reason": "it may lose 2 points"}))
    brain_dist.load(worse)
    assert f"{worse} is not ready for use: it may lose 2 points\n" in capfd.readouterr().err


def test_tritons_schema_accepts_the_configuration(trained_run: Path, exports: Path) -> None:
    contract = read_contract(trained_run)
    assert contract is not None
    text = (exports / "triton" / "brain_dist" / "config.pbtxt").read_text()
    config = google.protobuf.text_format.Parse(text, triton_schema().ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("brain_dist", "onnxruntime", 64)
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [("pixels", 2, [1, 32, 32])]
    assert [each.name for each in config.output] == ["logits", "features", "maps"]
    assert list(config.output[0].dims) == [len(contract.classes)]
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]
    assert (exports / "triton" / "brain_dist" / "1" / "model.onnx").is_file()


def triton_schema() -> Any:
    """Triton's schema of model configurations, without its client, which needs gRPC."""
    (origin,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    spec = importlib.util.spec_from_file_location("schema", Path(origin) / "grpc" / "model_config_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return schema
