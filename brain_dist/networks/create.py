"""Create networks from timm, with weights from a file, from timm's hub cache, or from the seed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.common.text import nearest
from brain_dist.config import ModelConfig
from brain_dist.errors import UserError
from brain_dist.networks.weights import apply_weights, read_weights

if TYPE_CHECKING:
    import torch


def create_network(config: ModelConfig, classes: int, *, seed: int, load_weights: bool = True) -> torch.nn.Module:
    """The network with ``classes`` outputs, fp32, on the CPU.

    Args:
        config: name, initial weights and regularisation.
        classes: number of classes K; the network maps [B, C, H, W] to logits [B, K].
        seed: initialises every weight that is not loaded.
        load_weights: False skips ``model.pretrained`` and ``model.weights``, for a network that a checkpoint will fill.

    Raises:
        UserError: an unknown name, unsupported settings, or weights that do not fit or are not available.
    """
    import timm
    import torch

    if not timm.is_model(config.name):
        hint = nearest(config.name, timm.list_models())
        raise UserError(f"model.name={config.name}: timm has no such model{hint}; timm.list_models() lists all")
    torch.manual_seed(seed)
    model = _create(config, classes, pretrained=config.pretrained and load_weights)
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except AssertionError as error:
            raise UserError(
                f"model.grad_checkpointing=true: timm's {config.name} does not support it ({error}); set it to false"
            ) from error
    if config.weights and load_weights:
        apply_weights(model, read_weights(Path(config.weights)), source=config.weights)
    return model


def _create(config: ModelConfig, classes: int, *, pretrained: bool) -> Any:
    """``timm.create_model``, with its errors in one line."""
    import timm

    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": config.in_chans, "drop_rate": config.drop}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    try:
        return timm.create_model(config.name, pretrained=pretrained, **arguments, **config.options)
    except TypeError as error:
        raise UserError(
            f"model.name={config.name} does not accept these settings ({error});"
            " change model.options or model.drop_path"
        ) from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"the ImageNet weights of {config.name} are not in the hub cache and can't be downloaded"
            f" ({type(error).__name__}); run `python -m brain_dist.weights {config.name}` on a machine with network"
            " access and share its HF_HOME, or set model.pretrained=false or model.weights=FILE"
        ) from error


def cache_weights(names: list[str]) -> None:
    """Download the ImageNet weights of timm's models into the hub cache, if they are missing, and print their sources.

    Raises:
        UserError: an unknown name, or weights that can't be downloaded.
    """
    for name in names:
        model = create_network(ModelConfig(name=name, pretrained=True), 1000, seed=0)
        settings: Any = getattr(model, "pretrained_cfg", {})
        source = settings.get("hf_hub_id") or settings.get("url")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {parameters / 1e6:.1f} M parameters from {source}")
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    print(f"cached in {cache}; on compute nodes set HF_HUB_OFFLINE=1 and the same HF_HOME")
