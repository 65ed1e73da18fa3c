"""Networks from timm, with weights from a file, from timm's hub cache, or from the seed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.config import ModelConfig
from brain_dist.errors import UserError
from brain_dist.networks.weights import load_into, read_weights

if TYPE_CHECKING:
    import torch


@contextmanager
def _without_wandb() -> Iterator[None]:
    """timm looks for W&B, which takes half a second to load, for a logger that nobody here uses."""
    absent = "wandb" not in sys.modules
    if absent:
        sys.modules["wandb"] = None  # type: ignore[assignment]  # Python's own way to say that it is not there
    try:
        yield
    finally:
        if absent:
            del sys.modules["wandb"]


def create_network(config: ModelConfig, classes: int, *, seed: int, load_weights: bool = True) -> torch.nn.Module:
    """The network with ``classes`` outputs, fp32, on the CPU.

    Args:
        config: name, first weights and regularisation.
        classes: number of classes K; the network maps [B, C, H, W] to logits [B, K].
        seed: decides the start of every weight that is not loaded.
        load_weights: False leaves ImageNet weights away, for a network that a checkpoint will fill.

    Raises:
        UserError: an unknown name, weights that do not fit or can't be had.
    """
    with _without_wandb():
        import timm
    import torch

    if not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name.split('_')[0]}*")[:5]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise UserError(f"model.name={config.name}: timm has no such model{hint}")
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "num_classes": classes,
        "in_chans": config.in_chans,
        "drop_rate": config.drop,
        **config.options,
    }
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    pretrained = config.pretrained and load_weights
    try:
        model = timm.create_model(config.name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise UserError(
            f"model.name={config.name} does not take these settings ({error}); change model.options or model.drop_path"
        ) from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(weights_unavailable(config.name, error)) from error
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        except AssertionError as error:
            raise UserError(
                f"model.grad_checkpointing: timm's {config.name} has none ({error}); set it to false"
            ) from error
    if config.weights and load_weights:
        load_into(model, read_weights(Path(config.weights)), where=config.weights)
    return model


def weights_unavailable(name: str, error: Exception) -> str:
    """One line for ImageNet weights that can't be had."""
    return (
        f"the ImageNet weights of {name} are not in the hub cache and can't be fetched from here"
        f" ({type(error).__name__}); run `python -m brain_dist.weights {name}` on a machine with network access"
        " and share its HF_HOME, or set model.pretrained=false or model.weights=FILE"
    )
