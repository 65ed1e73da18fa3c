"""Read weights from a file and load them into a network."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError, print_once

if TYPE_CHECKING:
    import torch

# of training checkpoints, which hold more than weights; first the average of the weights in those of timm
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, Lightning


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from a torch file without running code that it may contain.

    Returns:
        Name → tensor, of any shape [...]. In a training checkpoint, it is the entry state_dict, model or the like; in
        one of timm, the average of the weights if it has one.

    Raises:
        UserError: the file is missing, unreadable, not a state dict, or a pickle that would run code.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"model.weights={path}: no such file")
    try:
        state: Any = None
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # timm's checkpoints have the options
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"model.weights={path} is not a plain file of tensors; only such files are read") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"model.weights={path} is not a readable weights file: {error}") from error
    while isinstance(state, Mapping) and (entry := next((key for key in _ENTRIES if key in state), None)):
        state = state[entry]
    if not isinstance(state, Mapping) or not all(hasattr(value, "shape") for value in state.values()):
        raise UserError(f"model.weights={path} is not a state dict (a mapping of names to tensors)")
    return dict(state)


def apply_weights(model: torch.nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Load ``state`` into ``model``: by name, or by order if another library gave the same tensors other names.

    Prefixes that wrappers of networks give to all names are dropped. The classifier keeps its initial weights, which is
    reported in one line, if the file has none or one of another number of classes. For a network that takes one
    channel, a first convolution [C, 3, h, w] is summed over its input channels (timm's rule).

    Args:
        model: the network to fill.
        state: name → tensor.
        source: the file of ``state``, for messages.

    Raises:
        UserError: a tensor does not fit.
    """
    from timm.models import adapt_input_conv

    target, state = _without_counters(model.state_dict()), _without_counters(state)
    while prefix := next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), None):
        if set(state) <= set(target):
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    classifier = {f"{module}.{kind}" for module in classifier_names(model) for kind in ("weight", "bias")}
    if not set(target) - classifier <= set(state) <= set(target):
        # other names: the order of registration is the order of the layers, and every shape is checked below
        if len(state) != len(target):
            raise UserError(f"{source} has {len(state)} tensors, the model has {len(target)}: another model's weights?")
        if source.endswith(".safetensors"):
            raise UserError(
                f"{source} names tensors otherwise ({next(iter(state))}) than the model ({next(iter(target))}), and"
                " safetensors do not keep their order; rename them, or save them with torch.save"
            )
        state = dict(zip(target, state.values(), strict=True))
    fitting = {}
    for name, value in state.items():
        shape = target[name].shape
        if value.ndim == len(shape) == 4 and shape[1] == 1 and value.shape[1] == 3:
            value = adapt_input_conv(1, value)
        if value.shape == shape:
            fitting[name] = value
        elif name not in classifier:
            raise UserError(
                f"{source}: {name} has shape {list(value.shape)}, but the model needs {list(shape)}:"
                " another model's weights?"
            )
    model.load_state_dict(fitting, strict=False)
    if set(target) - set(fitting):
        print_once(f"{source} has no classifier of this number of classes; the classifier starts from run.seed")


def classifier_names(model: torch.nn.Module) -> list[str]:
    """Names of the modules that map features to logits; timm's models have one, distilled ones two."""
    names = getattr(model, "default_cfg", {}).get("classifier") or []
    return [names] if isinstance(names, str) else list(names)


def _without_counters(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without BatchNorm's counters of batches, which some libraries do not save."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
