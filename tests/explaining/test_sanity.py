"""Random weights from the output to the input."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from brain_dist.explaining.cams import cam_maps
from brain_dist.explaining.references import edges
from brain_dist.explaining.sanity import STEPS, cascade, depends_on_weights, parts_from_the_top, randomised


def network(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=4).eval()


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_efficientnet", "test_vit"])
def test_every_weight_is_replaced_once_and_the_output_first(name: str) -> None:
    trained, untrained = network(name, 0), network(name, 1)
    names = list(untrained.state_dict())
    parts = parts_from_the_top(names)
    assert len(parts) <= STEPS
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert names[-1] in parts[0]
    assert names[0] in parts[-1]
    shares = []
    for share, mixed in randomised(trained, untrained):
        shares.append(share)
        state = mixed.state_dict()
        changed = [key for key in names if torch.equal(state[key], untrained.state_dict()[key])]
        assert {name for part in parts[: len(shares)] for name in part} <= set(changed)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(mixed(images), untrained(images))
        assert not torch.equal(trained(images), mixed(images)), "the trained network itself stays"


def test_a_map_that_ignores_the_network_is_found_out() -> None:
    trained, untrained = network("test_resnet", 0), network("test_resnet", 1)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    drawn = np.stack([edges(image.numpy()[0]) for image in images])
    drawn /= drawn.max()
    steps = cascade(trained, untrained, lambda model: drawn)
    assert all(step["spearman"] == pytest.approx(1) and step["ssim"] == pytest.approx(1) for step in steps)
    assert not depends_on_weights(steps)

    def explain(model: torch.nn.Module) -> np.ndarray:
        return cam_maps(model, images, [0, 1, 2], "gradcam")

    steps = cascade(trained, untrained, explain)
    assert steps[-1]["random"] == 1
    assert steps[-1]["spearman"] < 0.9
