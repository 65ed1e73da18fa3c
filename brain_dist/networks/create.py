"""Create networks from timm, with weights from a file, from timm's hub cache, or from the seed."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.common.progress import show_activity
from brain_dist.common.text import nearest
from brain_dist.config import Config, ModelConfig
from brain_dist.errors import Fault, UserError, print_once
from brain_dist.networks.weights import apply_weights, read_weights
from brain_dist.ranks.device import is_out_of_memory
from brain_dist.ranks.group import is_connection_loss

if TYPE_CHECKING:
    import torch

_PROJECT = Path(__file__).parents[1]


def import_timm() -> Any:
    """Import timm without wandb, which it loads only for scripts of its own, and which takes a second."""
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("timm")
    finally:
        if hidden:
            del sys.modules["wandb"]


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
    import torch

    timm = import_timm()

    if not timm.is_model(config.name):
        hint = nearest(config.name, timm.list_models())
        raise UserError(f"model.name={config.name}: timm has no such model{hint}; timm.list_models() lists all")
    torch.manual_seed(seed)
    model = _create(config, classes, pretrained=config.pretrained and load_weights)
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise UserError(
                f"model.grad_checkpointing=true: timm's {config.name} does not support it ({error}); set it to false"
            ) from error
    if config.weights and load_weights:
        apply_weights(model, read_weights(Path(config.weights)), source=config.weights)
    return model


def print_ignored(config: ModelConfig) -> None:
    """Print which of ``model.options`` timm ignores because they are null, if any."""
    ignored = [name for name, value in config.options.items() if value is None]
    if ignored:
        print_once(f"model.options: timm ignores {', '.join(ignored)}, which is null; leave it out")


def _create(config: ModelConfig, classes: int, *, pretrained: bool) -> Any:
    """``timm.create_model``, with its errors in one line."""
    timm = import_timm()

    arguments: dict[str, Any] = {"num_classes": classes, "in_chans": config.in_chans, "drop_rate": config.drop}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    try:
        return timm.create_model(config.name, pretrained=pretrained, **arguments, **config.options)
    except Exception as error:  # whatever timm raises about its arguments, as an assertion, a KeyError, …
        if not pretrained:
            raise UserError(
                f"model.name={config.name} does not accept these settings ({type(error).__name__}: {error});"
                " change model.options or model.drop_path"
            ) from error
        _create(config, classes, pretrained=False)  # if the settings are wrong, that is the reason
        raise UserError(
            f"the ImageNet weights of {config.name} are not in the hub cache and can't be downloaded"
            f" ({type(error).__name__}); run `python -m brain_dist.weights {config.name}` on a machine with network"
            " access and share its HF_HOME, or set model.pretrained=false or model.weights=FILE"
        ) from error


def has_batchnorm(model: torch.nn.Module) -> bool:
    """Whether ``model`` has a BatchNorm layer, also one that spans all ranks."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) for module in model.modules())


def uses_batchnorm(config: ModelConfig) -> bool:
    """Whether the network has BatchNorm; its weights are not allocated.

    Raises:
        UserError: as :func:`create_network`.
    """
    import torch

    with torch.device("meta"):
        return has_batchnorm(create_network(config, 2, seed=0, load_weights=False))


@contextmanager
def explain_errors(config: Config) -> Iterator[None]:
    """Turn what a library raises in the first step of a network into one line.

    The settings are then the likely reason: a size that the network does not accept, too few images for BatchNorm.

    Raises:
        UserError: a library raised an error.
    """
    try:
        yield
    except (UserError, Fault):
        raise
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        by_library = not Path(frame.f_code.co_filename).is_relative_to(_PROJECT)
        if not by_library or is_out_of_memory(error) or is_connection_loss(error) or "CUDA error" in str(error):
            raise
        settings = ["data.size", "train.micro_batch", "model.options"]
        settings += [name for name in ("compile", "sync_batchnorm") if getattr(config.model, name)]
        advice = f"change {', '.join(f'model.{name}' if '.' not in name else name for name in settings)}"
        if "more than 1 value per channel" in str(error):
            advice = "raise train.micro_batch or data.size, or set model.sync_batchnorm=true"
        elif config.run.deterministic and "deterministic" in str(error):
            advice = "set run.deterministic=false"
        raise UserError(
            f"model.name={config.model.name} cannot be trained on {config.train.micro_batch} images of"
            f" {config.data.size} × {config.data.size} per micro-batch ({type(error).__name__}: {error}); {advice}"
        ) from error


def cache_weights(names: list[str]) -> None:
    """Download the ImageNet weights of timm's models into the hub cache, if they are missing, and print their sources.

    Raises:
        UserError: an unknown name, or weights that can't be downloaded.
    """
    for name in names:
        with show_activity(f"downloading the weights of {name}"):
            model = create_network(ModelConfig(name=name, pretrained=True), 1000, seed=0)
        settings: Any = getattr(model, "pretrained_cfg", {})
        source = settings.get("hf_hub_id") or settings.get("url")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {parameters / 1e6:.1f} M parameters from {source}")
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    print(f"cached in {cache}; on compute nodes set HF_HUB_OFFLINE=1 and the same HF_HOME")
