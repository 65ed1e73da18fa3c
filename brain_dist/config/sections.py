"""The sections of a run's configuration: every setting with its meaning, default and range.

The docstrings are the help texts of the command line and the source of ``docs/configuration.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from brain_dist.config.checks import BatchSize, Count, Fraction, PositiveCount, Range, Section, require
from brain_dist.errors import UserError

Precision = Literal["auto", "fp32", "bf16", "fp16", "amp"]
Balance = Literal["none", "weights", "sampling", "collections"]
# Metrics of the validation split that an evaluation during training computes
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


@dataclass(frozen=True)
class RunConfig(Section):
    """The run as a whole: folder, seed, device.

    Args:
        name: Name of the run and of its folder in `run.dir`. Letters, digits, "_", "-" and "."; not "-" or "." first.
        dir: Folder of all runs.
        seed: Integer ≥ 0 that determines the initial weights, the order of samples, augmentation, dropout and
            stochastic depth.
        resume: `auto` continues from the newest complete checkpoint of the run. `never` requires a new folder.
        device: `auto` uses a GPU if there is one, else the CPU. `cpu` and `cuda` require that device.
        deterministic: Use torch's deterministic kernels, so that the same command on the same machines gives the same
            bits. Slower on a GPU; an operation without a deterministic kernel is an error. On the CPU, runs are
            reproducible without it.
    """

    name: str = "run"
    dir: str = "runs"
    seed: Count = 0
    resume: Literal["auto", "never"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expand_home("dir")
        require(
            bool(re.fullmatch(r"\w[\w.-]*", self.name)),
            "run.name",
            self.name,
            "may contain letters, digits, '_', '-' and '.', and must not begin with '-' or '.'",
        )

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return Path(self.dir) / self.name


@dataclass(frozen=True)
class DataConfig(Section):
    """The data, and how it becomes batches.

    Args:
        shards: Folder or URL of shards, made by `brain-dist shard build` or `brain-dist shard join`. Either this
            setting or `data.sources` is required.
        sources: Two or more such folders, joined for this run. A training image is left out if its patient or a copy of
            it is in the validation or test split of another folder.
        leave_out: Name of one of `data.sources` to test on as a whole; the run trains on the others.
        fold: Fold to test on, ≥ 0 and < K, of shards built with `--split kfold --folds K`. The next fold (after the
            last one, the first) is the validation split.
        loader: Which library decodes and augments. `auto` is `dali` if the network is on a GPU, else `opencv`. `dali`
            works on the GPU, or on the CPU if there is no GPU. `opencv` works on the CPU. `torch` is a slow reference.
            All make the same images but for rounding. `synthetic` makes noise, to measure the speed of training without
            loading.
        size: Height and width of the network's input in pixels, in [32, 4096].
        color: `gray` decodes one channel; the device repeats it if the network takes three. `rgb` decodes three.
        head_crop: Crop every image to the box around the head, so that borders carry no information.
        stretch: Stretch the gray levels of every image, in training and in use, so that the darkest and the brightest
            percent of its tissue become black and white. Changes of brightness and contrast then have little effect.
        threads: Decoding threads (`dali`, `opencv`) or worker processes (`torch`) per rank, in [1, 1024].
        prefetch: Number of batches prepared in advance, in [1, 1024]; with `torch` by each worker process. `dali` and
            `opencv` read as many more, and four, from storage before these.
        window: Shards whose samples are shuffled together, ≥ 0; 0 is all of them. Use a window for data larger than
            memory.
        cache_dir: Folder on a disk of the node to which shards are copied, once per node, before they are read;
            environment variables are expanded. `off` reads shards in place. If not set, it is `$SLURM_TMPDIR` where
            that exists, else `off`. Shards at a URL need a folder.
        mean: Mean of each RGB channel, in [0, 1], that is subtracted from pixels in [0, 1].
        std: Standard deviation of each RGB channel, in [0.001, 1], that pixels in [0, 1] are divided by.
    """

    shards: str = ""
    sources: tuple[str, ...] = ()
    leave_out: str | None = None
    fold: Annotated[int | None, Range(0)] = None
    loader: Literal["auto", "dali", "opencv", "torch", "synthetic"] = "auto"
    size: Annotated[int, Range(32, 4096, "[]")] = 224
    color: Literal["gray", "rgb"] = "gray"
    head_crop: bool = False
    stretch: bool = False
    threads: Annotated[int, Range(1, 1024, "[]")] = 2
    prefetch: Annotated[int, Range(1, 1024, "[]")] = 2
    window: Count = 0
    cache_dir: str | None = None
    mean: Annotated[tuple[float, float, float], Range(0, 1, "[]")] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[float, float, float], Range(0.001, 1, "[]")] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expand_home("shards", "sources")
        if self.shards and self.sources:
            raise UserError(
                f"data.shards={self.shards} and data.sources={list(self.sources)} are both set; keep one of them"
            )
        require(
            len(self.sources) != 1, "data.sources", self.sources, "needs two or more folders; for one, set data.shards"
        )
        if self.leave_out is not None and not self.sources:
            raise UserError(f"data.leave_out={self.leave_out} needs data.sources; it must be the name of one of them")
        if self.fold is not None and self.sources:
            raise UserError(f"data.fold={self.fold} needs data.shards; data.sources have no folds")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network, from timm.

    Args:
        name: Name of a timm model, such as convnext_base, resnet50, efficientnet_b0, vgg16_bn or mobilenetv3_large_100.
        pretrained: Start from timm's ImageNet weights; download them once with `brain-dist weights`.
        weights: Initial weights: a .safetensors file, a .pth file, which is read with weights_only=True, or the folder
            of another run (its best checkpoint by its `train.best`, else its newest), of one of its checkpoints, or of
            a model of the Hugging Face hub (config.json beside the weights). Of a training checkpoint of timm, the
            average of the weights is taken.
        in_chans: Number of input channels of the network, 1 or 3. With 3, gray images are repeated in each channel.
        drop_path: Stochastic depth rate of the last block, in [0, 1). 0 leaves the network's own default, which is 0.1
            for Swin and a few others of timm; `options: {drop_path_rate: 0.0}` turns it off there, too.
        drop: Dropout rate before the classifier, in [0, 1).
        grad_checkpointing: Recompute activations in the backward pass: less memory, more time.
        sync_batchnorm: Compute BatchNorm statistics over the micro-batches of all ranks instead of each rank alone.
        compile: Compile the network with torch.compile for training; evaluations are not compiled. The first step takes
            minutes; later steps are faster. It needs a C compiler and Python's headers on a GPU, a C++ compiler on the
            CPU. Not with `train.zero_stage: 3`.
        options: Further arguments of the timm model, such as `{ls_init_value: 0.1}`. timm ignores those that are null.
    """

    name: str = "convnext_base"
    pretrained: bool = False
    weights: str | None = None
    in_chans: Literal[1, 3] = 3
    drop_path: Fraction = 0.0
    drop: Fraction = 0.0
    grad_checkpointing: bool = False
    sync_batchnorm: bool = False
    compile: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expand_home("weights")
        if self.pretrained and self.weights:
            raise UserError(f"model.pretrained=true and model.weights={self.weights} are both set; keep one of them")


@dataclass(frozen=True)
class OptimConfig(Section):
    """Optimiser and learning rate schedule.

    Args:
        name: `adamw` (decoupled weight decay) or `adam` (L2 penalty).
        lr: Peak learning rate, in (0, 100].
        min_lr: Learning rate at the end of the cosine schedule, ≥ 0 and ≤ `optim.lr`.
        warmup_epochs: Epochs of linear warm-up from zero, ≥ 0; may be a fraction.
        layer_decay: Learning rate of each layer as a fraction of the next layer's, in (0, 1], so that pretrained early
            layers change least; 1 is the same rate everywhere. Layers are counted as in timm; in ConvNeXt each block is
            one.
        weight_decay: Weight decay, in [0, 100]; not applied to biases and normalisation weights.
        betas: Decay rates of Adam's two moments, each in [0, 1).
        clip: Largest gradient norm, ≥ 0; 0 turns clipping off.
        label_smoothing: Fraction of the target that is spread evenly over the classes, in [0, 1).
        ema: Decay of the exponential moving average of the weights, in [0, 1). Evaluations use the average. 0 turns it
            off.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: Annotated[float, Range(0, 100, "(]")] = 1e-4
    min_lr: Annotated[float, Range(0)] = 0.0
    warmup_epochs: Annotated[float, Range(0)] = 1.0
    layer_decay: Annotated[float, Range(0, 1, "(]")] = 1.0
    weight_decay: Annotated[float, Range(0, 100, "[]")] = 0.05
    betas: Annotated[tuple[float, float], Range(0, 1, "[)")] = (0.9, 0.999)
    clip: Annotated[float, Range(0)] = 1.0
    label_smoothing: Fraction = 0.1
    ema: Fraction = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.min_lr <= self.lr, "optim.min_lr", self.min_lr, f"must be in [0, optim.lr={self.lr}]")


@dataclass(frozen=True)
class TrainConfig(Section):
    """The training loop.

    Args:
        epochs: Passes over the training split, ≥ 1. All learning rates depend on it, so a run cannot resume with
            another number. To train longer, start another run with `model.weights` set to this run's folder.
        freeze_epochs: Epochs at the start that train only the classifier, ≥ 0. Until then all other weights, and the
            running statistics of BatchNorm, stay as loaded.
        global_batch: Images per optimiser step over all ranks and micro-steps, in [1, 1000000]; independent of the
            number of ranks.
        micro_batch: Images that a rank computes at once, in [1, 1000000]. The number of accumulated micro-batches
            follows from `train.global_batch`, `train.micro_batch` and the number of ranks.
        precision: `bf16` and `fp16` compute with 16-bit weights; DeepSpeed's optimiser keeps fp32 master weights. `amp`
            is autocast to bf16 over fp32 weights, which networks with BatchNorm need. `fp32` uses no 16-bit numbers.
            `auto` chooses when the run begins, and the run keeps the choice: on a GPU `bf16` (`amp` with BatchNorm), or
            `fp16` if it has no bf16 (`fp32` with BatchNorm); on a CPU `amp` if the processor multiplies bf16 fast, else
            `fp32`.
        zero_stage: DeepSpeed ZeRO stage. 0 shards nothing; 1 shards optimiser states over the ranks, 2 also gradients,
            3 also weights.
        balance: How classes of unequal size are made to count equally. `none` does nothing. `weights` weights the loss.
            `sampling` visits samples of small classes several times per epoch, each time with different augmentation,
            and leaves out some samples of large classes. `collections` does so for the classes of each collection.
        deepspeed: JSON file of further DeepSpeed settings (offload, buckets, communication); examples are in
            configs/deepspeed/.
        eval_every: Epochs between evaluations of the validation split, ≥ 0; 0 evaluates only at the end.
        save_every: Optimiser steps between checkpoints, ≥ 0; 0 saves after every epoch.
        keep: Number of newest checkpoints to keep, ≥ 1.
        best: Validation metric that selects the best checkpoint, which is kept too and which all
            commands use unless `--step newest` or a step is given. Images of the validation split then count as known
            to training. One of `loss` (lower is better), `accuracy`, `sensitivity_macro`,
            `specificity_macro`, `precision_macro`, `f1_macro`, `auc_macro` and `kappa` (higher is better).
        patience: Stop after this number of evaluations without a better `train.best`, ≥ 0; 0 never stops early.
        log_every: Optimiser steps between lines of metrics.jsonl, ≥ 1.
        timeout: Seconds without progress after which the run ends and reports the rank that is stuck, in [1, 1000000].
        skip_limit: Number of consecutive steps with a non-finite loss or gradient after which the run ends, ≥ 1. Such
            steps are skipped.
    """

    epochs: PositiveCount = 20
    freeze_epochs: Count = 0
    global_batch: BatchSize = 64
    micro_batch: BatchSize = 32
    precision: Precision = "auto"
    zero_stage: Literal[0, 1, 2, 3] = 2
    balance: Balance = "none"
    deepspeed: str | None = None
    eval_every: Count = 1
    save_every: Count = 0
    keep: PositiveCount = 2
    best: Metric | None = None
    patience: Count = 0
    log_every: PositiveCount = 1
    timeout: Annotated[float, Range(1, 1_000_000, "[]")] = 600.0
    skip_limit: PositiveCount = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expand_home("deepspeed")


@dataclass(frozen=True)
class TrackConfig(Section):
    """Weights & Biases. The run folder contains metrics.jsonl in any case.

    Args:
        wandb: `auto` logs online if there is an API key, else offline. `offline` writes to the run folder; upload it
            later with `brain-dist sync`. `off` logs nothing to W&B. None of them asks for a key.
        project: W&B project.
        group: W&B group, shared by the seeds and attempts of one experiment. If not set, it is `run.name`.
        examples: Number of validation images to log to W&B with their predictions, the most confident errors first, in
            [0, 200]. This uploads images, so it is off by default.
    """

    wandb: Literal["auto", "offline", "off"] = "auto"
    project: str = "brain_dist"
    group: str | None = None
    examples: Annotated[int, Range(0, 200, "[]")] = 0
