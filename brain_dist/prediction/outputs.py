"""What every model of prediction offers, and how images become its input."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from brain_dist.ood.record import Detector
from brain_dist.stream.contract import Contract


class Outputs(NamedTuple):
    """What a model says about B images.

    Attributes:
        logits: float32 [B, K].
        features: float32 [B, D], the input of the classifier.
        maps: class activation maps float32 [B, K, h, w] (Zhou et al. 2016): what each cell of the last feature map adds
            to the logit of each class. Their mean over the cells is the logit, but for a constant of the class. None if
            the model does not give them.
    """

    logits: np.ndarray
    features: np.ndarray
    maps: np.ndarray | None = None


class Model(Protocol):
    """A network with its contract, and its detector of outliers if one was fitted."""

    contract: Contract
    detector: Detector | None

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """The outputs for images uint8 [B, 1 or 3, S, S]."""
        ...


def stack_pixels(images: list[np.ndarray], contract: Contract) -> np.ndarray:
    """Images uint8 [S, S] or [S, S, 3] → uint8 [B, 1, S, S], or [B, 3, S, S] for ``color: rgb``."""
    if contract.color == "gray":
        return np.stack(images)[:, None]
    return np.stack([np.broadcast_to(each if each.ndim == 3 else each[..., None], (*each.shape[:2], 3))
                     for each in images]).transpose(0, 3, 1, 2)  # fmt: skip
