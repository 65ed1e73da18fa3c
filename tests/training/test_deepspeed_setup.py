"""DeepSpeed's configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from engine_cases import new_engine, noise_batches, with_stage

from brain_dist.config import Config, TrainConfig
from brain_dist.errors import UserError
from brain_dist.ranks.world import World
from brain_dist.training import deepspeed_setup
from brain_dist.training.deepspeed_setup import deepspeed_config

CONFIG = Config(train=TrainConfig(global_batch=12, micro_batch=4, precision="fp32", zero_stage=1))


def with_file(path: Path, text: str) -> Config:
    path.write_text(text)
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, deepspeed=str(path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train_batch_size": 4}', r"follows from train\.global_batch"),
        ('{"zero_optimization": {"stage": 3}}', r"sets ZeRO stage 3, but train\.zero_stage=1"),
        ('{"zero_optimization": {"compute_grad_norm": false}}', r"compute_grad_norm.* remove it"),
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_contradicting_file_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        deepspeed_config(with_file(tmp_path / "ds.json", text), 1)


def test_missing_file_is_rejected() -> None:
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, deepspeed="absent.json"))
    with pytest.raises(UserError, match=r"train\.deepspeed=absent\.json: no such file"):
        deepspeed_config(config, 1)


def test_file_is_merged_into_our_settings(tmp_path: Path) -> None:
    text = '{"zero_optimization": {"overlap_comm": false}, "wall_clock_breakdown": true}'
    settings = deepspeed_config(with_file(tmp_path / "ds.json", text), 3)
    assert settings["zero_optimization"] == {"stage": 1, "overlap_comm": False}
    assert settings["wall_clock_breakdown"] is True
    assert settings["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize("micro_batch", [12, 4])
@pytest.mark.parametrize(
    ("zero_stage", "precision", "stage"),
    [(1, "bf16", 1), (1, "amp", 1), (2, "bf16", 1), (2, "fp32", 1), (2, "amp", 2)],
)
def test_one_rank_leaves_out_communication_and_gets_the_same_bits(
    world: World, device: torch.device, monkeypatch: pytest.MonkeyPatch,
    zero_stage: int, precision: str, stage: int, micro_batch: int,
) -> None:  # fmt: skip
    config = with_stage(zero_stage, precision=precision, micro_batch=micro_batch)
    batches, weights, parts = noise_batches(36, device, micro_batch=micro_batch), [], 12 // micro_batch
    for spared in (True, False):
        if not spared:
            monkeypatch.setattr(deepspeed_setup, "_spare_one_rank", lambda zero, precision: None)
        engine = new_engine(config, world, device)
        optimizer = engine.deepspeed.optimizer
        assert engine.deepspeed.zero_optimization_stage() == (stage if spared else zero_stage)
        assert optimizer.contiguous_gradients is not spared
        for step in range(3):
            engine.step(batches[parts * step : parts * (step + 1)], lr=1e-2)
        weights.append(engine.weights())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_what_a_file_sets_is_kept_on_one_rank(tmp_path: Path) -> None:
    text = '{"zero_optimization": {"stage": 1, "contiguous_gradients": true}}'
    assert deepspeed_config(with_file(tmp_path / "ds.json", text), 1)["zero_optimization"]["contiguous_gradients"]
