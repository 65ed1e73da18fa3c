"""DeepSpeed's configuration and import."""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.ranks.world import World
from brain_dist.stream.plan import accumulation_steps

if TYPE_CHECKING:
    import torch


# DeepSpeed's keys that follow from our settings; setting them in a second place could contradict the first
_DERIVED_KEYS = {
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


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration: what follows from our settings, plus the JSON file ``train.deepspeed``.

    Raises:
        UserError: the file is not readable, or contradicts our settings.
    """
    train = config.train
    assert train.precision != "auto", "resolve_precision comes first"
    settings: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(train.global_batch, train.micro_batch, world_size),
        "gradient_clipping": config.optim.clip,  # always set: DeepSpeed's default is 1.0
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a micro-step
    }
    if train.precision == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}  # skip steps with a non-finite gradient
    elif train.precision == "fp16":
        settings["fp16"] = {"enabled": True}
    elif train.precision == "amp":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    if train.deepspeed:
        _add_user_settings(settings, Path(train.deepspeed), train.zero_stage)
    if world_size == 1 and train.zero_stage in (1, 2):
        _spare_one_rank(settings["zero_optimization"], train.precision)
    if "offload_optimizer" in settings["zero_optimization"]:
        settings["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW also runs on the CPU and needs no compiler
    return settings


def _spare_one_rank(zero: dict[str, Any], precision: str) -> None:
    """Leave out what DeepSpeed does only to exchange gradients. The weights get the same bits, in less host time.

    One rank keeps the gradients of stage 2 whole, as stage 1 does. In amp, stage 2 rounds the gradient of each
    micro-batch to bf16 and stage 1 only their sum, so there the stage stays.
    """
    zero.setdefault("contiguous_gradients", False)  # no copy into a buffer for communication, 1 GB by default
    if precision != "amp":
        zero["stage"] = 1


def _add_user_settings(settings: dict[str, Any], path: Path, zero_stage: int) -> None:
    for key, value in _read_json(path).items():
        if key in _DERIVED_KEYS:
            raise UserError(f"{path}: '{key}' follows from {_DERIVED_KEYS[key]}; remove it and set that instead")
        if key == "zero_optimization" and value.get("stage", zero_stage) != zero_stage:
            raise UserError(
                f"{path} sets ZeRO stage {value['stage']}, but train.zero_stage={zero_stage}; make them equal"
            )
        is_section = isinstance(value, dict) and isinstance(settings.get(key), dict)
        settings[key] = {**settings[key], **value} if is_section else value
    if settings["zero_optimization"].get("compute_grad_norm") is False:
        raise UserError(f"{path}: compute_grad_norm=false would hide non-finite gradients; remove it")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"train.deepspeed={path}: no such file; examples are in configs/deepspeed/") from None
    except json.JSONDecodeError as error:
        raise UserError(f"train.deepspeed={path} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"train.deepspeed={path} is not a JSON object")
    return settings


def import_deepspeed(world: World, device: torch.device) -> Any:
    """Import DeepSpeed for ``device``: nothing is compiled, and only the main rank prints warnings."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed would choose a GPU if there is one
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # silences "No CUDA runtime is found"
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    import deepspeed

    _import_muon()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING if world.is_main else logging.ERROR)
    # No operators that have to be compiled: DeepSpeed's shared-memory collectives sum in an order that depends on the
    # CPU, and while it looks for a compiler it redirects standard error, so that a message would be lost.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _import_muon() -> None:
    """Import DeepSpeed's Muon optimiser without torch.compile, which would load the compiler: 2 s of CPU time."""
    set_by_user = "TORCHDYNAMO_DISABLE" in os.environ
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    with suppress(ImportError):
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    if not set_by_user:
        del os.environ["TORCHDYNAMO_DISABLE"]


def compute_dtype(precision: str) -> torch.dtype:
    """Type of the network's input: 16 bits for bf16 and fp16, fp32 otherwise (autocast converts by itself)."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
