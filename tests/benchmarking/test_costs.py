"""Measured costs of networks, beside published numbers."""

from __future__ import annotations

import math

import pytest
import torch

from brain_dist.benchmarking.costs import count_gmacs, measure_costs, percentile_95
from brain_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from brain_dist.networks.create import create_network

CLASSES = 4
PARAMETERS_1000, GMACS_1000, FEATURES = 11_689_512, 1.814, 512  # ResNet-18 of 1000 classes at 224² (He et al. 2016)


def test_parameters_and_operations_of_resnet18() -> None:
    model = create_network(ModelConfig(name="resnet18"), CLASSES, seed=0).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == PARAMETERS_1000 - (1000 - CLASSES) * (FEATURES + 1)
    with torch.inference_mode():
        one, three = (count_gmacs(model, torch.zeros(batch, 3, 224, 224)) for batch in (1, 3))
    assert one == pytest.approx(GMACS_1000 - (1000 - CLASSES) * FEATURES / 1e9, abs=5e-4)
    assert three == pytest.approx(one, rel=1e-9)


def test_operations_of_attention_count() -> None:
    """DeiT-tiny (Touvron et al. 2021): 12 blocks of width 192 on 196 patches of 16² pixels and a class token."""
    model = create_network(ModelConfig(name="deit_tiny_patch16_224"), CLASSES, seed=0).eval()
    assert any(getattr(module, "fused_attn", False) for module in model.modules())
    with torch.inference_mode():
        gmacs = count_gmacs(model, torch.zeros(1, 3, 224, 224))
    tokens, width = 197, 192
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # projections and perceptron; attention
    expected = 12 * block + 196 * 3 * 16**2 * width + width * CLASSES
    assert gmacs == pytest.approx(expected / 1e9, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "amp", "bf16"])
def test_measured_costs_are_sane(precision: str) -> None:
    config = Config(
        model=ModelConfig(name="test_convnext"), data=DataConfig(shards="x", size=32),
        train=TrainConfig(precision=precision),  # type: ignore[arg-type]
    )  # fmt: skip
    costs = measure_costs(config, CLASSES, torch.device("cpu"))
    assert costs["parameters"] == sum(p.numel() for p in create_network(config.model, CLASSES, seed=0).parameters())
    assert 0 < costs["gmacs"] < 0.1
    assert 0 < costs["latency_ms"] <= costs["latency_p95_ms"]
    assert 0 < costs["batch_ms"] <= costs["batch_p95_ms"]
    assert math.log2(costs["best_batch"]).is_integer()
    assert costs["images_per_s"] == pytest.approx(1e3 * costs["best_batch"] / costs["batch_ms"])
    assert costs["peak_memory_mb"] > 100  # of a process that has imported torch
    assert costs["joules_per_image"] is None  # there is no GPU
    assert (costs["size"], costs["precision"]) == (32, precision)


def test_percentile() -> None:
    assert percentile_95([float(number) for number in range(101)]) == 95
