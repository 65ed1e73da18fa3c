"""The whole configuration of a run, and the checks that involve several sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from brain_dist.config import sections
from brain_dist.config.augmentation import AugmentConfig
from brain_dist.errors import UserError


@dataclass(frozen=True)
class Config:
    """Configuration of one training run."""

    run: sections.RunConfig = field(default_factory=sections.RunConfig)
    data: sections.DataConfig = field(default_factory=sections.DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: sections.ModelConfig = field(default_factory=sections.ModelConfig)
    optim: sections.OptimConfig = field(default_factory=sections.OptimConfig)
    train: sections.TrainConfig = field(default_factory=sections.TrainConfig)
    track: sections.TrackConfig = field(default_factory=sections.TrackConfig)

    def __post_init__(self) -> None:
        model, train, augment = self.model, self.train, self.augment
        if self.optim.ema and train.zero_stage == 3:
            raise UserError(
                f"optim.ema={self.optim.ema} needs whole weights, but train.zero_stage=3 shards them; set"
                " train.zero_stage=2 or optim.ema=0"
            )
        if model.compile and train.zero_stage == 3:
            raise UserError(
                "model.compile=true does not work with train.zero_stage=3, which replaces weights inside the compiled"
                " graph; set train.zero_stage=2 or model.compile=false"
            )
        if model.compile and train.freeze_epochs and train.zero_stage == 2:
            raise UserError(
                f"model.compile=true with train.freeze_epochs={train.freeze_epochs} omits gradients that"
                " train.zero_stage=2 waits for; set train.zero_stage=1 or model.compile=false"
            )
        if train.patience and not (train.best and train.eval_every):
            raise UserError(
                f"train.patience={train.patience} needs train.best (the metric to watch) and train.eval_every ≥ 1"
            )
        if (augment.mixup or augment.cutmix) and train.micro_batch % 2:
            raise UserError(
                f"train.micro_batch={train.micro_batch}: must be an even micro-batch with augment.mixup or"
                " augment.cutmix, which mix pairs of images"
            )
        if self.data.color == "rgb" and model.in_chans == 1:
            raise UserError("data.color=rgb does not fit model.in_chans=1; set data.color=gray or model.in_chans=3")
