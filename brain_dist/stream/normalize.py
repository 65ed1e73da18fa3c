"""uint8 images to the network's input: normalise, widen to three channels, cast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import DataConfig

if TYPE_CHECKING:
    import torch


class Normalize:
    """uint8 [B, 1 or 3, H, W] → the network's input [B, in_chans, H, W], on the device.

    Normalising one gray channel with three means and deviations widens it in the same operation, so a gray image
    crosses memory as one channel until the very last step.
    """

    def __init__(self, config: DataConfig, in_chans: int, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        if in_chans == 1:
            mean, std = mean.mean().reshape(1), std.mean().reshape(1)
        self.scale = (1 / (255 * std)).reshape(1, -1, 1, 1).to(device)
        self.offset = (-mean / std).reshape(1, -1, 1, 1).to(device)
        self.dtype = dtype

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise, widen, cast; channels-last, which convolutions want (and all ZeRO stages accept of an input)."""
        import torch

        made = torch.addcmul(self.offset, image.float(), self.scale)
        return made.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def to_gray(self, made: torch.Tensor) -> np.ndarray:
        """Undo the normalisation: uint8 [B, H, W], for showing to a person."""
        undone = (made.float() - self.offset) / self.scale
        return undone.mean(dim=1).round().clamp(0, 255).to("cpu").numpy().astype(np.uint8)
