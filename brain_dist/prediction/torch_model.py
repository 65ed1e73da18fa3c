"""Models that torch computes: the network of a run, of the Hugging Face hub's layout, or a program of torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.inference.features import forward
from brain_dist.ood.record import Detector
from brain_dist.prediction.outputs import Outputs
from brain_dist.stream.contract import Contract

if TYPE_CHECKING:
    import torch

    from brain_dist.inference.network import OpenNetwork
    from brain_dist.stream.normalize import Normalize


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


def open_hub(path: Path, contract: Contract, device: torch.device) -> OpenNetwork:
    """The network in a folder of the Hugging Face hub's layout.

    Raises:
        UserError: timm cannot open it.
    """
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
