"""A model that prediction uses: opened from the folder of a run or of an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from brain_dist.errors import UserError, print_once
from brain_dist.inference.features import forward
from brain_dist.ood.record import Detector, read_detector
from brain_dist.stream.contract import FILE, Contract, read_contract

if TYPE_CHECKING:
    import torch

    from brain_dist.inference.network import OpenNetwork
    from brain_dist.stream.normalize import Normalize

PROGRAM, HUB = "model.pt2", "config.json"  # files that tell the kind of an export


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
    """The network of a run, or of an export in the layout of the Hugging Face hub."""

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


class ProgramModel:
    """A program of torch.export. Opening it runs code that the file describes, so open only files that you trust."""

    def __init__(self, path: Path, contract: Contract, detector: Detector | None, device: torch.device) -> None:
        import torch

        self.contract, self.detector, self._device = contract, detector, device
        self._normalize = _normalize(contract, device)
        try:
            self._program: Any = torch.export.load(path).module().to(device)
        except Exception as error:  # whatever torch raises about a damaged file
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} cannot be opened by torch.export ({reason}); export the run again") from None

    def outputs(self, pixels: np.ndarray) -> Outputs:
        """The outputs for images uint8 [B, 1 or 3, S, S]."""
        import torch

        with torch.no_grad():
            features, logits = self._program(self._normalize(torch.from_numpy(pixels).to(self._device)))
        return Outputs(logits.cpu().numpy(), features.cpu().numpy())


def open_model(path: Path, *, step: int | str | None = None, device: str = "auto") -> TorchModel | ProgramModel:
    """Open a model for prediction.

    Args:
        path: the folder of a run or of an export.
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
        raise UserError(f"{path} is not the folder of a run or of an export; give one, such as runs/NAME")
    target = choose_device(discover(), device)
    exported = next((name for name in (PROGRAM, HUB) if (path / name).is_file()), None)
    if exported is not None and step is not None:
        raise UserError(f"--step {step}: {path} is an export, which has only one")
    opened = open_network(path, step=step, device=str(target)) if exported is None else None
    contract = opened.contract if opened is not None else read_contract(path)
    if contract is None:
        raise UserError(f"{path} has no {FILE}; export the run again with `brain-dist export`")
    calibration, weights, detector = contract.calibration, contract.weights, read_detector(path)
    if detector is not None and weights is not None and detector.weights != weights.sha256:
        print_once(f"{path}: its detector of outliers belongs to another step; fit it again with `brain-dist outliers`")
        detector = None
    if calibration is not None and weights is not None and calibration.step != weights.step:
        print_once(
            f"{path} is calibrated for step {calibration.step}, and this is step {weights.step}: its probabilities are"
            f" not calibrated; add --step {calibration.step}, or calibrate again"
        )
    if exported == PROGRAM:
        return ProgramModel(path / PROGRAM, contract, detector, target)
    return TorchModel(opened or _open_hub(path, contract, target), detector)


def _open_hub(path: Path, contract: Contract, device: torch.device) -> OpenNetwork:
    """The network in a folder of the Hugging Face hub's layout."""
    from brain_dist.inference.network import OpenNetwork
    from brain_dist.networks.create import import_timm

    try:
        network = import_timm().create_model(f"local-dir:{path}", pretrained=True)
    except Exception as error:  # whatever timm raises about damaged files
        raise UserError(f"{path} cannot be opened by timm ({error}); export the run again") from None
    return OpenNetwork(network.to(device).eval(), _normalize(contract, device), contract, device, {})


def _normalize(contract: Contract, device: torch.device) -> Normalize:
    import torch

    from brain_dist.config import DataConfig
    from brain_dist.stream.normalize import Normalize

    mean, std = (tuple(values) for values in (contract.mean, contract.std))
    return Normalize(DataConfig(mean=mean, std=std), contract.channels, device, torch.float32)  # type: ignore[arg-type]


def stack_pixels(images: list[np.ndarray], contract: Contract) -> np.ndarray:
    """Images uint8 [S, S] or [S, S, 3] → uint8 [B, 1, S, S], or [B, 3, S, S] for ``color: rgb``."""
    if contract.color == "gray":
        return np.stack(images)[:, None]
    return np.stack([np.broadcast_to(each if each.ndim == 3 else each[..., None], (*each.shape[:2], 3))
                     for each in images]).transpose(0, 3, 1, 2)  # fmt: skip
