"""A model that prediction uses: opened from the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from brain_dist.errors import UserError, print_once
from brain_dist.inference.features import forward
from brain_dist.ood.record import Detector, read_detector
from brain_dist.stream.contract import Contract

if TYPE_CHECKING:
    from brain_dist.inference.network import OpenNetwork


class Outputs(NamedTuple):
    """What a model says about B images: logits float32 [B, K], and the features before its classifier [B, D]."""

    logits: np.ndarray
    features: np.ndarray


class Model(Protocol):
    """A network with its contract, and its detector of outliers if one was fitted."""

    contract: Contract
    detector: Detector | None

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """The outputs for images uint8 [B, 1 or 3, S, S]."""
        ...


class TorchModel:
    """The network of a run."""

    def __init__(self, opened: OpenNetwork, detector: Detector | None) -> None:
        self.opened, self.contract, self.detector = opened, opened.contract, detector

    def inputs(self, pixels: np.ndarray) -> Any:
        """The network's input, a tensor [B, C, S, S] on its device."""
        import torch

        return self.opened.normalize(torch.from_numpy(pixels).to(self.opened.device))

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """The outputs for images uint8 [B, 1 or 3, S, S]."""
        features, logits = forward(self.opened.model, self.inputs(pixels))
        return Outputs(logits, features)


def open_model(path: Path, *, step: int | str | None = None, device: str = "auto") -> TorchModel:
    """Open a model for prediction.

    Args:
        path: the folder of a run.
        step: optimiser steps of a run's checkpoint, or "best" (default: the newest).
        device: auto, cpu or cuda.

    Raises:
        UserError: it is not a model, or has no complete checkpoint.
        Fault: its weights are damaged.
    """
    from brain_dist.inference.network import open_network
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.world import discover

    if not path.is_dir():
        raise UserError(f"{path} is not the folder of a run; give one, such as runs/NAME")
    opened = open_network(path, step=step, device=str(choose_device(discover(), device)))
    calibration, weights, detector = opened.contract.calibration, opened.contract.weights, read_detector(path)
    if detector is not None and weights is not None and detector.weights != weights.sha256:
        print_once(f"{path}: its detector of outliers belongs to another step; fit it again with `brain-dist outliers`")
        detector = None
    if calibration is not None and weights is not None and calibration.step != weights.step:
        print_once(
            f"{path} is calibrated for step {calibration.step}, and this is step {weights.step}: its probabilities are"
            f" not calibrated; add --step {calibration.step}, or calibrate again"
        )
    return TorchModel(opened, detector)


def stack_pixels(images: list[np.ndarray], contract: Contract) -> np.ndarray:
    """Images uint8 [S, S] or [S, S, 3] → uint8 [B, 1, S, S], or [B, 3, S, S] for ``color: rgb``."""
    if contract.color == "gray":
        return np.stack(images)[:, None]
    return np.stack([np.broadcast_to(each if each.ndim == 3 else each[..., None], (*each.shape[:2], 3))
                     for each in images]).transpose(0, 3, 1, 2)  # fmt: skip
