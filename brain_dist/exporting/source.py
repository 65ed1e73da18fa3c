"""What the writers of exports have: the opened network, and images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brain_dist.prediction.torch_model import TorchModel


@dataclass(frozen=True)
class Source:
    """A network to export.

    Attributes:
        model: the network, on the CPU.
        pixels: the run's test images, uint8 [N, 1 or 3, S, S].
    """

    model: TorchModel
    pixels: np.ndarray
