"""Maps of all families: equal to a closed form if there is one; otherwise their peak is at the planted evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression

from brain_dist.errors import UserError
from brain_dist.explaining.cams import TITLES, cam_maps
from brain_dist.explaining.layers import Layer, choice, choose_layer, layers

SIDE, PATCH = 128, 24
SMALL: dict[str, dict[str, Any]] = {
    "convnext_atto": {},
    "resnet18": {},
    "tf_efficientnetv2_b0": {},
    "mobilenetv3_small_050": {},
    "vgg11": {"mlp_ratio": 1 / 16},
    "densenet121": {"block_config": (2, 2, 2, 2), "growth_rate": 8},
    "swin_tiny_patch4_window7_224": {
        "window_size": 4, "embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8),
    },
    "test_vit": {"patch_size": 8},
    "test_vit2": {"patch_size": 8},
}  # fmt: skip


def small_network(name: str, size: int) -> torch.nn.Module:
    """An untrained network of a family, with as few layers as the family allows."""
    torch.manual_seed(0)
    options = SMALL[name] | ({"img_size": size} if "swin" in name or "vit" in name else {})
    return timm.create_model(name, num_classes=4, **options).eval()


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer4"), pytest.param("tf_efficientnet_lite0", "bn2", marks=pytest.mark.slow)]
)
def test_equals_the_class_activation_map_of_a_pooled_linear_classifier(name: str, layer: str) -> None:
    """With global average pooling and one linear layer, Grad-CAM is CAM (Zhou et al. 2016): relu(sum_k w_ck A_k).

    HiResCAM is the same there (Draelos and Carin 2020).
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    images, targets = torch.randn(2, 3, 96, SIDE), [2, 0]
    with torch.no_grad():
        features = model.forward_features(images)
        raw = torch.einsum("bkhw,bk->bhw", features, model.get_classifier().weight[targets]).relu()
        raw = raw - raw.amin((1, 2), keepdim=True)
        full = torch.nn.functional.interpolate(raw[:, None], (96, SIDE), mode="bilinear", align_corners=False)[:, 0]
        expected = full / full.amax((1, 2), keepdim=True)
    for method in ("gradcam", "hirescam"):
        maps = cam_maps(model, images, targets, method, Layer(layer, 32))
        assert (maps.shape, maps.dtype) == ((2, 96, SIDE), np.float32)
        np.testing.assert_allclose(maps, expected.numpy(), atol=1e-4)


def noise_with_patch(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise images [n, 3, S, S], those of class 1 with a bright square; labels [n]; centres of the squares [n, 2]."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.randn(n, 1, SIDE, SIDE, generator=generator)
    corner = torch.randint(0, SIDE - PATCH + 1, (n, 2), generator=generator)
    label = torch.arange(n) % 2
    for image, (y, x), has_patch in zip(images, corner.tolist(), label.tolist(), strict=True):
        image[:, y : y + PATCH, x : x + PATCH] += 2.0 * has_patch
    return images.expand(-1, 3, -1, -1), label, corner + PATCH / 2


def test_peaks_at_the_decisive_patch() -> None:
    """A convnext_atto whose classifier was fitted to detect a bright square: the peak is at the square."""
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=2).eval()
    images, label, _ = noise_with_patch(128, seed=1)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True).numpy()
        mean, scale = features.mean(0), features.std(0)
        fitted = LogisticRegression(C=0.01).fit((features - mean) / scale, label)
        weight = fitted.coef_[0] / scale
        bias = fitted.intercept_[0] - weight @ mean
        model.head.fc.weight.copy_(torch.from_numpy(np.stack([-weight, weight])))
        model.head.fc.bias.copy_(torch.tensor([-bias, bias]))
    images, label, centre = noise_with_patch(64, seed=1000)
    with torch.no_grad():
        assert (model(images).argmax(1) == label).float().mean() > 0.7
    positive = label == 1
    maps = cam_maps(model, images[positive], [1] * 32, "gradcam", layers(model)[-1])
    peak = np.stack(np.unravel_index(maps.reshape(32, -1).argmax(1), (SIDE, SIDE)), axis=1)
    distance = np.abs(peak - centre[positive].numpy()).max(axis=1)
    others = np.abs(peak - centre[positive].roll(1, 0).numpy()).max(axis=1)
    # the last feature map has 4 x 4 cells of 32 pixels, so a peak cannot be more exact than one cell
    assert (distance <= 32).mean() >= 0.85
    assert (others <= 32).mean() < 0.5


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SMALL)
def test_every_family_gives_maps_and_leaves_the_network_unchanged(name: str, size: int) -> None:
    model = small_network(name, size).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)).expand(4, -1, -1, -1)
    for method in TITLES:
        with torch.no_grad():
            maps = cam_maps(model, images, range(4), method)
        assert maps.shape == (4, size, size)
        assert np.isfinite(maps).all()
        assert maps.min() >= 0
        assert 0.999 < maps.max() <= 1, method  # of the class that this image supports most
        layer = choose_layer(model, size, method)
        assert not model.get_submodule(layer.name)._forward_hooks
        assert size // layer.reduction >= 4  # a map of 1 × 1 cells would be empty
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_the_cells_of_tokens_are_where_their_patches_are(name: str) -> None:
    """The map of one token's activation is bright at the patch that the token was made from."""
    model = small_network(name, 64)
    layer = layers(model)[0]
    seen: dict[str, torch.Tensor] = {}
    model.get_submodule(layer.name).register_forward_hook(lambda module, inputs, output: seen.update(out=output))
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
        plain = layer.as_map(seen["out"])
        image = torch.zeros(1, 3, 64, 64)
        image[:, :, 8:16, 40:48] = 1.0
        model(image)
        change = (layer.as_map(seen["out"]) - plain).abs().sum(dim=1)[0]
    cells = 64 // layer.reduction
    assert change.shape == (cells, cells)
    y, x = divmod(int(change.argmax()), cells)
    assert 8 <= (y + 0.5) * layer.reduction < 16
    assert 40 <= (x + 0.5) * layer.reduction < 48


@pytest.mark.parametrize("name", SMALL)
def test_layers_have_the_resolution_that_timm_says(name: str) -> None:
    model = small_network(name, 64)
    sizes: dict[str, int] = {}
    known = layers(model)
    for layer in known:
        model.get_submodule(layer.name).register_forward_hook(
            lambda module, inputs, output, layer=layer: sizes.update({layer.name: layer.as_map(output).shape[-1]})
        )
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert sizes == {layer.name: 64 // layer.reduction for layer in known}


def test_the_layer_follows_the_size_of_the_input() -> None:
    model = small_network("resnet18", 64)
    needed = choice(model).cells["gradcam"]
    for size in (32, 64, 224):
        layer = choose_layer(model, size, "gradcam")
        assert size // layer.reduction >= needed
        deeper = [each for each in layers(model) if each.reduction > layer.reduction]
        assert all(size // each.reduction < needed for each in deeper)


def test_gradient_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = cam_maps(model, images, [1], "layercam")
    model.set_grad_checkpointing(True)
    np.testing.assert_array_equal(cam_maps(model, images, [1], "layercam"), expected)


def test_maps_are_the_same_on_the_device(device: torch.device) -> None:
    model, images = small_network("resnet18", 64), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = cam_maps(model, images, [1, 2], "layercam")
    np.testing.assert_allclose(cam_maps(model.to(device), images.to(device), [1, 2], "layercam"), expected, atol=1e-3)


def test_a_network_without_known_stages_is_refused() -> None:
    with pytest.raises(UserError, match="stages timm lists, unlike Sequential"):
        layers(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))
