"""The learning rate, the parameter groups and the EMA, as numbers."""

import itertools

import pytest
import torch

from brain_dist.config import ModelConfig, OptimConfig, TrainConfig
from brain_dist.networks.create import create_network
from brain_dist.training.ema import Ema
from brain_dist.training.optim import create_optimizer
from brain_dist.training.schedule import Schedule


def learning_rate(config: OptimConfig, step: int) -> float:
    """Learning rate in a training of 5 epochs of 10 steps."""
    return Schedule(TrainConfig(epochs=5), config, steps_per_epoch=10, has_validation=False).learning_rate(step)


def test_warm_up_is_linear_and_the_cosine_ends_at_min_lr() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_epochs=1.0)
    rates = [learning_rate(config, step) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[30] == pytest.approx(0.55)
    assert rates[49] == pytest.approx(0.1, abs=2e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_without_warm_up_the_peak_comes_first() -> None:
    assert learning_rate(OptimConfig(lr=0.5, warmup_epochs=0), 0) == 0.5


def test_biases_and_norms_have_no_weight_decay() -> None:
    model = create_network(ModelConfig(name="test_convnext"), 4, seed=0)
    groups = create_optimizer(OptimConfig(weight_decay=0.3), model).param_groups
    not_decayed = [p for g in groups if g["weight_decay"] == 0 for p in g["params"]]
    decayed = [p for g in groups if g["weight_decay"] == 0.3 for p in g["params"]]
    assert not_decayed
    assert all(p.ndim <= 1 for p in not_decayed)
    assert all(p.ndim > 1 for p in decayed)
    assert len(not_decayed) + len(decayed) == len(list(model.parameters()))


def test_ema_of_bf16_weights_follows_its_formula_in_fp32() -> None:
    model = torch.nn.Linear(3, 2).bfloat16()
    ema = Ema(0.9, model)
    expected = {name: value.float().clone() for name, value in model.state_dict().items()}
    for update in range(30):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(update)).bfloat16() * 0.01)
        ema.update(model.state_dict().items())
        decay = min(0.9, (1 + update) / (10 + update))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.float()
    for name, value in ema.state.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name])
