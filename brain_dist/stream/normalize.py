"""From uint8 images to the network's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import DataConfig

if TYPE_CHECKING:
    import torch


class Normalize:
    """Normalise images with ``data.mean`` and ``data.std`` and cast them, on the device.

    uint8 [B, 1 or 3, H, W] → ``dtype`` [B, in_chans, H, W], channels-last. A gray image broadcasts against three means
    and standard deviations: it becomes three channels here, and needs one channel of memory until then.

    Args:
        config: ``mean`` and ``std``, for pixels in [0, 1]; their averages are used if ``in_chans`` is 1.
        in_chans: input channels of the network, 1 or 3.
        device: device of the images.
        dtype: type of the network's input.
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
        """Normalise ``image``. Channels-last is the fast layout for convolutions, and all ZeRO stages accept it.

        The network's weights keep their layout: DeepSpeed needs them contiguous, and oneDNN reorders them anyway.
        """
        import torch

        normalized = torch.addcmul(self.offset, image.float(), self.scale)
        return normalized.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def to_gray(self, normalized: torch.Tensor) -> np.ndarray:
        """Undo the normalisation, for display: uint8 [B, H, W]."""
        pixels = (normalized.float() - self.offset) / self.scale
        return pixels.mean(dim=1).round().clamp(0, 255).to("cpu").numpy().astype(np.uint8)
