"""DeepSpeed's own configuration and import, as this project uses it."""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.ranks.world import World
from brain_dist.stream.plan import accumulation

if TYPE_CHECKING:
    import torch


# DeepSpeed settings that follow from ours: a second place to set them would be a place to contradict them
_OWNED = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch and train.micro_batch",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim.name",
    "scheduler": "optim.warmup_epochs and optim.min_lr",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
}


def deepspeed_config(config: Config, world: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for this run: ours, plus what ``train.deepspeed`` adds."""
    train = config.train
    settings: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation(train.global_batch, train.micro_batch, world),
        "gradient_clipping": config.optim.clip,  # DeepSpeed's own default is 1.0, so it is always said
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
    }
    if train.precision == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}  # a step that is no number is skipped
    elif train.precision == "fp16":
        settings["fp16"] = {"enabled": True}
    elif train.precision == "amp":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if train.deepspeed:
        for key, value in _read_json(Path(train.deepspeed)).items():
            if key in _OWNED:
                raise UserError(
                    f"{train.deepspeed}: '{key}' follows from {_OWNED[key]}; remove it and set that instead"
                )
            if key == "zero_optimization" and value.get("stage", train.zero_stage) != train.zero_stage:
                raise UserError(
                    f"{train.deepspeed} says ZeRO stage {value['stage']}, train.zero_stage={train.zero_stage}"
                )
            both = isinstance(value, dict) and isinstance(settings.get(key), dict)
            settings[key] = {**settings[key], **value} if both else value
    if settings["zero_optimization"].get("compute_grad_norm") is False:
        raise UserError(f"{train.deepspeed}: compute_grad_norm tells a step that is no number from others; remove it")
    if "offload_optimizer" in settings["zero_optimization"]:
        settings["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW steps on the host too, and compiles nothing
    return settings


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"train.deepspeed={path}: no such file; configs/deepspeed/ holds examples") from None
    except json.JSONDecodeError as error:
        raise UserError(f"train.deepspeed={path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"train.deepspeed={path} is not a JSON object")
    return found


def import_deepspeed(world: World, device: torch.device) -> Any:
    """DeepSpeed, on the device we chose, saying warnings on the main rank only, and compiling nothing."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = (
            "cpu"  # else DeepSpeed looks for itself, and may find a GPU we were told to leave
        )
    level = "warning" if world.is_main else "error"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", level)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "no CUDA runtime", which we know
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    import deepspeed

    with (
        _no_compiler(),
        suppress(ImportError),
    ):  # any start loads its Muon optimiser, and that all of torch's compiler: a second, for nothing
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    logging.getLogger("DeepSpeed").setLevel(level.upper())
    if device.type == "cpu":
        # Its shared-memory collectives are compiled at the first start of every machine (a minute, and a C++ compiler)
        # and choose their kernels by the processor; gloo is there already and sums in one order everywhere.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _no_compiler() -> Iterator[None]:
    """torch.compile, as a decorator, leaves functions as they are."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def compute_dtype(precision: str) -> torch.dtype:
    """Type of the network's input; autocast takes fp32 and casts where it pays."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
