"""DeepSpeed's configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from brain_dist.config import Config, TrainConfig
from brain_dist.errors import UserError
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
    settings = deepspeed_config(with_file(tmp_path / "ds.json", text), 1)
    assert settings["zero_optimization"] == {"stage": 1, "overlap_comm": False}
    assert settings["wall_clock_breakdown"] is True
    assert settings["gradient_accumulation_steps"] == 3
