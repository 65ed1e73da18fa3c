"""GradientSHAP: exact for a linear network, complete for others, and the same whenever it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from brain_dist.explaining.shap import gradient_shap


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=4).eval().requires_grad_(False)
    with torch.no_grad():
        model.head.fc.weight.mul_(20)  # scores that differ, as those of a trained network do
    return model


def pictures(count: int, seed: int, size: int = 32) -> torch.Tensor:
    """Smooth images, as brains are compared with noise."""
    rough = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, size=size, mode="bicubic")


def test_a_linear_network_is_explained_exactly() -> None:
    """Then the values are w · (x − mean of the baselines), for any α."""
    weight = torch.randn(2, 3 * 36, generator=torch.Generator().manual_seed(0))
    images, baselines = pictures(2, 1, 6), pictures(5, 2, 6)
    result = gradient_shap(
        lambda x: x.flatten(1) @ weight.T, images, [1, 0], baselines, names=[7, 9], samples=20, micro_batch=6
    )
    for value, image, target in zip(result.values, images, (1, 0), strict=True):
        expected = (weight[target].reshape(3, 6, 6) * (image - baselines.mean(0))).sum(0)
        np.testing.assert_allclose(value, expected, atol=1e-5)
    assert result.error.max() < 1e-4
    assert result.maps().max(axis=(1, 2)) == pytest.approx([1, 1])
    assert (result.maps()[result.values < 0] == 0).all()


def test_fewer_samples_than_baselines_may_be_any_of_them() -> None:
    """Baselines are in the order of the index, where joined collections follow each other."""
    image, baselines = torch.full((1, 1, 2, 2), 9.0), torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    means = []
    for name in range(50):
        result = gradient_shap(lambda x: x.sum((2, 3)), image, [0], baselines, names=[name], samples=2)
        assert result.error.max() < 1e-5
        means.append(9 - float(result.values[0, 0, 0]))  # of the two baselines that were drawn
    assert {round(mean, 3) for mean in means} == {0.5, 1.0, 1.5, 2.0, 2.5}


@pytest.mark.slow
def test_completeness(network: torch.nn.Module) -> None:
    """The values add up to f(x) − mean f(b); more samples come nearer."""
    images, baselines = pictures(4, 1), pictures(20, 2)
    targets, names = [0, 1, 2, 3], [1, 2, 3, 4]
    with torch.no_grad():
        expected = network(images)[range(4), targets] - network(baselines).mean(0)[targets]
    few, many = (
        gradient_shap(network, images, targets, baselines, names=names, samples=samples) for samples in (20, 200)
    )
    np.testing.assert_allclose(many.difference, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(many.error, np.abs(many.values.sum((1, 2)) - many.difference))
    assert many.error.mean() < few.error.mean()
    assert many.error.max() < 0.1 * np.abs(many.difference).max()


def test_the_draws_depend_on_the_seed_and_the_name_only(network: torch.nn.Module) -> None:
    images, baselines = pictures(3, 1), pictures(6, 2)

    def explain(part: slice, seed: int = 0, micro_batch: int = 32) -> np.ndarray:
        return gradient_shap(
            network, images[part], [1, 2, 3][part], baselines,
            names=[4, 5, 6][part], samples=24, seed=seed, micro_batch=micro_batch,
        ).values  # fmt: skip

    whole = explain(slice(0, 3))
    np.random.seed(1)  # the global generators of NumPy and torch do not matter
    torch.manual_seed(1)
    np.testing.assert_array_equal(explain(slice(0, 3)), whole)
    np.testing.assert_allclose(explain(slice(1, 2)), whole[1:2], atol=1e-6)
    np.testing.assert_allclose(explain(slice(0, 3), micro_batch=5), whole, atol=1e-6)
    assert np.abs(explain(slice(0, 3), seed=1) - whole).max() > 1e-4


def test_the_same_on_the_device(network: torch.nn.Module, device: torch.device) -> None:
    images, baselines = pictures(2, 1), pictures(6, 2)
    arguments = {"names": [0, 1], "samples": 24}
    expected = gradient_shap(network, images, [1, 2], baselines, **arguments).values  # type: ignore[arg-type]
    result = gradient_shap(network.to(device), images.to(device), [1, 2], baselines.to(device), **arguments).values  # type: ignore[arg-type]
    network.to("cpu")
    np.testing.assert_allclose(result, expected, atol=1e-3)
