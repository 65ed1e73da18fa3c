"""Networks from timm, with weights from a file, from timm's hub cache, or from the seed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.config import ModelConfig
from brain_dist.errors import UserError

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


def create(config: ModelConfig, classes: int, *, seed: int, load_weights: bool = True) -> torch.nn.Module:
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
        raise UserError(unavailable(config.name, error)) from error
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


def unavailable(name: str, error: Exception) -> str:
    """One line for ImageNet weights that can't be had."""
    return (
        f"the ImageNet weights of {name} are not in the hub cache and can't be fetched from here"
        f" ({type(error).__name__}); run `python -m brain_dist.weights {name}` on a machine with network access"
        " and share its HF_HOME, or set model.pretrained=false or model.weights=FILE"
    )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from .safetensors, or from a torch file without running any code that it holds."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"model.weights={path}: no such file")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise UserError(f"model.weights={path} is not a plain file of tensors; only such files are read") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"model.weights={path} is not a readable weights file: {error}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(hasattr(value, "shape") for value in state.values()):
        raise UserError(f"model.weights={path} holds no state dict (a mapping of names to tensors)")
    return dict(state)


def load_into(model: torch.nn.Module, state: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Fill ``model`` from ``state``: by name, or by order where another library named the same tensors otherwise.

    The classifier keeps its fresh start when its number of classes differs. A first convolution for three channels is
    summed for a network that takes one (timm's rule). Anything else that does not fit is a UserError.
    """
    from timm.models import adapt_input_conv

    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    if set(given) != set(own):
        # Another library's names: the order of registration is the order of the layers, and every shape must agree.
        if len(given) != len(own):
            raise UserError(f"{where} holds {len(given)} tensors, the model has {len(own)}: another model's weights?")
        given = dict(zip(own, given.values(), strict=True))
    head = {f"{module}.{kind}" for module in classifiers(model) for kind in ("weight", "bias")}
    chosen = {}
    for name, value in given.items():
        if value.ndim == own[name].ndim == 4 and own[name].shape[1] == 1 and value.shape[1] == 3:
            value = adapt_input_conv(1, value)
        if value.shape == own[name].shape:
            chosen[name] = value
        elif name not in head:
            raise UserError(
                f"{where}: {name} is {list(value.shape)}, the model wants {list(own[name].shape)}:"
                " another model's weights?"
            )
    model.load_state_dict(chosen, strict=False)


def classifiers(model: torch.nn.Module) -> list[str]:
    """Names of the modules that make logits of features; timm's models have one, distilled ones two."""
    found = getattr(model, "default_cfg", {}).get("classifier") or []
    return [found] if isinstance(found, str) else list(found)
