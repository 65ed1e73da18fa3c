"""Read weights from a file and load them into a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.errors import UserError

if TYPE_CHECKING:
    import torch


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
