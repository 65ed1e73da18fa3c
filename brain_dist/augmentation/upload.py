"""NumPy arrays on the device of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def on_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor with the values and the type of an array [B, ...]; the host does not wait for the device."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # a copy from other memory may wait for what the device does before it
    return tensor.to(device, non_blocking=True)
