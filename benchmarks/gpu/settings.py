"""Settings of the product, as flags of its command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.frame import Check

if TYPE_CHECKING:
    from brain_dist.config import Config

# Short names of settings, which are also columns of results.jsonl; `batch` and `micros` set two batch sizes
FLAGS = {
    "shards": "data.shards",
    "loader": "data.loader",
    "color": "data.color",
    "threads": "data.threads",
    "prefetch": "data.prefetch",
    "compile": "model.compile",
    "ema": "optim.ema",
    "layer_decay": "optim.layer_decay",
    "zero": "train.zero_stage",
    "precision": "train.precision",
    "deepspeed": "train.deepspeed",
}
FLAGSHIP = {"zero": 2, "ema": 0.999, "layer_decay": 0.925}  # configs/convnext_base.yaml: 76 parameter groups and EMA


def create_config(check: Check, settings: Mapping[str, Any]) -> Config:
    """The configuration of a training that never ends, on noise images unless ``settings`` has a loader.

    Args:
        check: its sizes are the defaults.
        settings: ``batch`` (images per micro-batch), ``micros`` (micro-batches per step), and names in ``FLAGS``.
    """
    from brain_dist.config import load

    sizes = check.sizes
    batch = settings.get("batch", sizes.batch)
    return load(
        flags(
            {
                **common_settings(check),
                "data.loader": "synthetic",
                "data.size": sizes.size,
                "data.head_crop": True,
                "augment.scale": [0.6, 1.0],
                "augment.erase": 0.25,
                "model.name": sizes.model,
                "model.drop_path": 0.2,
                "train.precision": "bf16",  # what train.precision=auto, which only a whole run can choose, means here
                "train.epochs": 1_000_000,
                "train.micro_batch": batch,
                "train.global_batch": batch * settings.get("micros", 1),
                **{FLAGS[name]: value for name, value in settings.items() if name in FLAGS},
            }
        )
    )


def common_settings(check: Check) -> dict[str, Any]:
    """Settings of every configuration and command."""
    return {
        "run.dir": check.kit / "runs",
        "run.device": "cpu" if check.dry else "cuda",
        "data.shards": check.shards,
        "data.loader": check.loader,
        "data.threads": check.sizes.threads,
        "track.wandb": "off",
    }


def command(verb: str, *arguments: str, settings: Mapping[str, Any] | None = None) -> list[str]:
    """A command of the product: ``python -m brain_dist.VERB``."""
    return [sys.executable, "-m", f"brain_dist.{verb}", *arguments, *flags(settings or {})]


def flags(settings: Mapping[str, Any]) -> list[str]:
    """``{"optim.lr": 1e-4}`` as ``["--optim.lr", "0.0001"]``; booleans as in YAML."""
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
    ]
