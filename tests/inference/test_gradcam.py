"""Grad-CAM: equal to a closed form if there is one; otherwise its peak is at the planted evidence."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression

from brain_dist.errors import UserError
from brain_dist.inference.gradcam import gradcam, target_layer

SIDE, PATCH = 128, 24


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_equals_the_class_activation_map_of_a_pooled_linear_classifier(name: str) -> None:
    """With global average pooling and one linear layer, Grad-CAM is CAM (Zhou et al. 2016): relu(sum_k w_ck A_k)."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    images, targets = torch.randn(2, 3, 96, SIDE), [2, 0]
    with torch.no_grad():
        features = model.forward_features(images)
        raw = torch.einsum("bkhw,bk->bhw", features, model.get_classifier().weight[targets]).relu()
        raw = raw - raw.amin((1, 2), keepdim=True)
        full = torch.nn.functional.interpolate(raw[:, None], (96, SIDE), mode="bilinear", align_corners=False)[:, 0]
        expected = full / full.amax((1, 2), keepdim=True)
    maps = gradcam(model, images, targets)
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
    maps = gradcam(model, images[positive], [1] * 32)
    peak = np.stack(np.unravel_index(maps.reshape(32, -1).argmax(1), (SIDE, SIDE)), axis=1)
    distance = np.abs(peak - centre[positive].numpy()).max(axis=1)
    others = np.abs(peak - centre[positive].roll(1, 0).numpy()).max(axis=1)
    # the last feature map has 4 x 4 cells of 32 pixels, so a peak cannot be more exact than one cell
    assert (distance <= 32).mean() >= 0.85
    assert (others <= 32).mean() < 0.5


FAMILIES = ["convnext_atto", "resnet18", "tf_efficientnetv2_b0", "mobilenetv3_small_050", "vgg11"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_a_map_and_leaves_the_model_unchanged(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4).eval().requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        maps = gradcam(model, torch.randn(1, 3, 64, 64).expand(4, -1, -1, -1), range(4))
    assert maps.shape == (4, 64, 64)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert 0.999 < maps.max() <= 1  # the class that this image supports most
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not target_layer(model)._forward_hooks


def test_gradient_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = gradcam(model, images, [1])
    model.set_grad_checkpointing(True)
    np.testing.assert_array_equal(gradcam(model, images, [1]), expected)


def test_an_unsupported_family_is_named() -> None:
    with pytest.raises(UserError, match="VisionTransformer"):
        target_layer(timm.create_model("vit_tiny_patch16_224"))
