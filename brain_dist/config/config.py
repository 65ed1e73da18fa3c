"""The whole configuration of a run, and the checks that span several sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from brain_dist.config.augment import AugmentConfig
from brain_dist.config.sections import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrackConfig,
    TrainConfig,
)
from brain_dist.errors import UserError


@dataclass(frozen=True)
class Config:
    """One training run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        if self.optim.ema and self.train.zero_stage == 3:
            raise UserError(
                "optim.ema needs whole weights, which ZeRO stage 3 shards; set train.zero_stage=2 or optim.ema=0"
            )
        if self.model.compile and self.train.zero_stage == 3:
            raise UserError(
                "model.compile does not go with ZeRO stage 3, which swaps weights in the middle of what would be"
                " compiled; set train.zero_stage=2 or model.compile=false"
            )
        if self.model.compile and self.train.freeze_epochs and self.train.zero_stage == 2:
            raise UserError(
                "model.compile with train.freeze_epochs leaves gradients out that ZeRO stage 2 waits for;"
                " set train.zero_stage=1 or model.compile=false"
            )
        if self.train.patience and not (self.train.best and self.train.eval_every):
            raise UserError(
                f"train.patience={self.train.patience} needs train.best, the metric to watch, and train.eval_every"
            )
        if (self.augment.mixup or self.augment.cutmix) and self.train.micro_batch % 2:
            raise UserError(
                f"train.micro_batch={self.train.micro_batch}: mixup and cutmix pair neighbours; use an even micro-batch"
            )
        if self.data.color == "rgb" and self.model.in_chans == 1:
            raise UserError("data.color=rgb does not fit model.in_chans=1; use data.color=gray or model.in_chans=3")
