"""The sections of a run's configuration: every setting with its meaning, its default and its range."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from brain_dist.errors import UserError

Precision = Literal["fp32", "bf16", "fp16", "amp"]


# What an evaluation during training tells of the validation split
Metric = Literal[
    "loss",
    "accuracy",
    "sensitivity_macro",
    "specificity_macro",
    "precision_macro",
    "f1_macro",
    "auc_macro",
    "kappa",
]


def _require(condition: bool, setting: str, value: object, mend: str) -> None:
    if not condition:
        raise UserError(f"{setting}={value}: {mend}")


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives and how it repeats.

    Args:
        name: name of the run; its folder is DIR/NAME.
        dir: folder of all runs.
        seed: decides the weights' start, the order of samples, every augmentation and every dropped path.
        resume: auto continues from the newest complete checkpoint; never insists on a new folder.
        device: auto takes the GPU of this process where there is one; cpu or cuda insists.
        deterministic: for the same bits from the same command on the same machines: torch takes its deterministic
            kernels (slower on a GPU) and refuses an operation that has none. On the CPU a run repeats anyway.
    """

    name: str = "run"
    dir: str = "runs"
    seed: int = 0
    resume: Literal["auto", "never"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        _require(
            bool(re.fullmatch(r"\w[\w.-]*", self.name)),
            "run.name",
            self.name,
            "begin with a letter or digit; then also '_', '-' and '.'",
        )
        _require(self.seed >= 0, "run.seed", self.seed, "may not be negative")

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.dir) / self.name


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes batches.

    Args:
        shards: folder made by ``python -m brain_dist.shard build`` or ``join``.
        sources: two or more such folders instead of data.shards, joined for this run: what shares a patient or a
            picture with another one's test or validation images is not trained on.
        leave_out: name of the one of data.sources to test on as a whole; the others are trained on.
        fold: which fold is the test part, of shards built with ``--split kfold``; the next one validates.
        loader: dali decodes and augments on the GPU (on the CPU where there is none); torch is the plain reference;
            synthetic makes noise in memory, the ceiling of speed.
        size: side of the square network input in pixels.
        color: gray decodes to one channel and widens on the device; rgb decodes three.
        head_crop: cut every picture to the box around the head, so that borders say nothing.
        threads: decoding threads (dali) or worker processes (torch) a rank.
        prefetch: batches prepared ahead.
        window: 0 shuffles all samples; W > 0 shuffles inside windows of W shards, for data larger than memory.
        cache_dir: folder on the node's own disk that shards are copied to, once a node, and read from; environment
            variables in it are expanded. Unset: $SLURM_TMPDIR where there is one, else shards are read where they
            lie; "off" always reads them there. Needed where shards is a URL.
        mean: mean to subtract, for pixels in 0..1, one a channel.
        std: standard deviation to divide by, one a channel.
    """

    shards: str = ""
    sources: tuple[str, ...] = ()
    leave_out: str | None = None
    fold: int | None = None
    loader: Literal["dali", "torch", "synthetic"] = "dali"
    size: int = 224
    color: Literal["gray", "rgb"] = "gray"
    head_crop: bool = False
    threads: int = 2
    prefetch: int = 2
    window: int = 0
    cache_dir: str | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _require(self.size >= 32, "data.size", self.size, "needs at least 32 pixels")
        _require(self.threads >= 1, "data.threads", self.threads, "needs at least 1")
        _require(self.prefetch >= 1, "data.prefetch", self.prefetch, "needs at least 1")
        _require(self.window >= 0, "data.window", self.window, "may not be negative")
        _require(min(self.std) > 0, "data.std", list(self.std), "must be positive")
        if self.shards and self.sources:
            raise UserError("data.shards and data.sources are both set; keep one of them")
        _require(len(self.sources) != 1, "data.sources", list(self.sources), "needs two or more; or set data.shards")
        if self.leave_out is not None and not self.sources:
            raise UserError(f"data.leave_out={self.leave_out} needs data.sources, of which it is one")
        if self.fold is not None and self.sources:
            raise UserError(f"data.fold={self.fold} needs data.shards; joined data.sources have no folds")


@dataclass(frozen=True)
class ModelConfig:
    """The network, from timm.

    Args:
        name: timm's name, such as convnext_base, resnet50, efficientnet_b0, vgg16_bn or mobilenetv3_large_100.
        pretrained: begin from timm's ImageNet weights (fetch them once with ``python -m brain_dist.weights``).
        weights: file of weights to begin from (.safetensors, or .pth read with weights_only).
        in_chans: channels the network takes; 3 widens gray images, 1 takes them as they are.
        drop_path: stochastic depth rate of the last block.
        drop: dropout rate before the classifier.
        grad_checkpointing: recompute activations in the backward pass; saves memory, costs time.
        sync_batchnorm: BatchNorm over the images of all ranks in a micro-step, not of each rank alone.
        compile: torch.compile the network: minutes at the first step (and a C++ compiler on the CPU), then faster ones.
        options: further arguments of timm's model, such as {ls_init_value: null}.
    """

    name: str = "convnext_base"
    pretrained: bool = False
    weights: str | None = None
    in_chans: Literal[1, 3] = 3
    drop_path: float = 0.0
    drop: float = 0.0
    grad_checkpointing: bool = False
    sync_batchnorm: bool = False
    compile: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "needs 0 ≤ value < 1")
        _require(0 <= self.drop < 1, "model.drop", self.drop, "needs 0 ≤ value < 1")
        if self.pretrained and self.weights:
            raise UserError("model.pretrained=true and model.weights are both set; keep one of them")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule.

    Args:
        name: adamw (decoupled weight decay) or adam (L2 penalty).
        lr: peak learning rate.
        min_lr: learning rate at the end of the cosine.
        warmup_epochs: epochs of linear warm-up from zero; fractions count.
        layer_decay: each layer's learning rate as a share of the next one's, so that what pretrained early layers know
            changes least; 1 gives all layers the same. Layers as timm counts them, in ConvNeXt every block is one.
        weight_decay: not applied to biases and normalisation weights.
        betas: Adam's two decay rates.
        clip: largest gradient norm; 0 turns clipping off.
        label_smoothing: share of the target spread evenly over the classes.
        ema: decay of an exponential moving average of the weights, which is then what is evaluated; 0 turns it off.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-4
    min_lr: float = 0.0
    warmup_epochs: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    label_smoothing: float = 0.1
    ema: float = 0.0

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", self.lr, "must be positive")
        _require(0 <= self.min_lr <= self.lr, "optim.min_lr", self.min_lr, f"needs 0 ≤ value ≤ optim.lr={self.lr}")
        _require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "may not be negative")
        _require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "needs 0 < value ≤ 1")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "may not be negative")
        _require(all(0 <= b < 1 for b in self.betas), "optim.betas", list(self.betas), "each needs 0 ≤ value < 1")
        _require(self.clip >= 0, "optim.clip", self.clip, "may not be negative")
        _require(0 <= self.label_smoothing < 1, "optim.label_smoothing", self.label_smoothing, "needs 0 ≤ value < 1")
        _require(0 <= self.ema < 1, "optim.ema", self.ema, "needs 0 ≤ value < 1")


@dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Args:
        epochs: passes over the training split.
        freeze_epochs: of those, epochs at the beginning that train the classifier alone, on features that stay as they
            were loaded (BatchNorm's statistics too); then everything.
        global_batch: images an optimiser step, over all ranks and micro-steps; fixed, whatever the number of ranks.
        micro_batch: images a rank computes at once; accumulation follows from global_batch, micro_batch and the world.
        precision: bf16 and fp16 compute in 16-bit weights beside fp32 master weights in DeepSpeed's optimiser; amp
            autocasts to bf16 over fp32 weights, which networks with BatchNorm need; fp32 is plain.
        zero_stage: DeepSpeed ZeRO stage: 1 shards optimiser states over the ranks, 2 also gradients, 3 also weights.
        balance: makes classes of unequal size count alike; weights does it in the loss, sampling by visiting samples of
            small classes more often (each time with other augmentation) and leaving some of large ones out of an epoch.
        deepspeed: JSON file with further DeepSpeed settings (offload, buckets, communication), see configs/deepspeed/.
        eval_every: epochs between evaluations on the validation split; 0 evaluates at the end only.
        save_every: optimiser steps between checkpoints; 0 saves once an epoch.
        keep: newest checkpoints kept.
        best: validation metric; the checkpoint of its best evaluation is kept too, and found by `evaluate RUN --step
            best`. The loss is best when small, the others when large.
        patience: end the training after that many evaluations without a better train.best; 0 never does.
        log_every: optimiser steps between lines of metrics.jsonl.
        timeout: seconds without progress after which a run ends and names the rank that holds it up.
        skip_limit: steps in a row with a loss or gradient that is not finite, all of them skipped, that end the run.
    """

    epochs: int = 20
    freeze_epochs: int = 0
    global_batch: int = 64
    micro_batch: int = 32
    precision: Precision = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 2
    balance: Balance = "none"
    deepspeed: str | None = None
    eval_every: int = 1
    save_every: int = 0
    keep: int = 2
    best: Metric | None = None
    patience: int = 0
    log_every: int = 1
    timeout: float = 600.0
    skip_limit: int = 20

    def __post_init__(self) -> None:
        for name in ("epochs", "global_batch", "micro_batch", "keep", "log_every", "timeout", "skip_limit"):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "needs at least 1")
        for name in ("freeze_epochs", "eval_every", "save_every", "patience"):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "may not be negative")


@dataclass(frozen=True)
class TrackConfig:
    """Weights & Biases; metrics.jsonl is always written.

    Args:
        wandb: auto is online with a key, else offline; off writes nothing. Never a prompt.
        project: W&B project.
        group: W&B group, the experiment; unset: run.name. Seeds and attempts of one experiment share it.
        examples: validation images shown on W&B with what the network said of them, its surest errors first. Images
            leave the house that way, so there are none unless you ask.
    """

    wandb: Literal["auto", "offline", "off"] = "auto"
    project: str = "brain_dist"
    group: str | None = None
    examples: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.examples <= 200, "track.examples", self.examples, "needs 0 ≤ value ≤ 200")


Balance = Literal["none", "weights", "sampling"]
