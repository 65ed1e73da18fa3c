"""Open a model for prediction from the folder of a run or of an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.errors import UserError, print_once
from brain_dist.ood.record import Detector, read_detector
from brain_dist.prediction.onnx_model import GRAPH, REPOSITORY, OnnxModel
from brain_dist.prediction.outputs import Model
from brain_dist.prediction.torch_model import ProgramModel, TorchModel, open_hub
from brain_dist.ranks.device import choose_device, require_torch
from brain_dist.ranks.world import discover
from brain_dist.stream.contract import FILE, Contract, read_contract

if TYPE_CHECKING:
    import torch

PROGRAM, HUB = "model.pt2", "config.json"  # with those of ONNX, the files that tell the kind of an export
CERTIFICATE = "parity.json"  # how an export compares with its run


def open_model(path: Path, *, step: int | str | None = None, device: str = "auto") -> Model:
    """Open a model for prediction. An ONNX export needs neither torch nor timm.

    Args:
        path: the folder of a run or of an export, or the .onnx file of an export.
        step: of a run's checkpoint, see :func:`brain_dist.inference.run.load_run`.
        device: auto, cpu or cuda.

    Raises:
        UserError: it is not a model, has no complete checkpoint, or needs torch, which is not installed.
        Fault: its weights are damaged.
    """
    path = model_folder(path)
    if not path.is_dir():
        raise UserError(f"{path} is not the folder of a run or of an export; give one, such as runs/NAME")
    exported = next((name for name in (GRAPH, REPOSITORY, PROGRAM, HUB) if (path / name).is_file()), None)
    if exported is not None and step is not None:
        raise UserError(f"--step {step}: {path} is an export, which has only one")
    if exported not in (GRAPH, REPOSITORY):
        require_torch(str(path), "give an ONNX export (`brain-dist export RUN --to onnx`)")
    if exported is None:
        from brain_dist.inference.network import open_network

        opened = open_network(path, step=step, device=str(_torch_device(device)))
        return TorchModel(opened, _detector(path, opened.contract))
    contract = read_contract(path)
    if contract is None:
        raise UserError(f"{path} has no {FILE}; export the run again with `brain-dist export`")
    detector = _detector(path, contract)
    _say_if_not_ready(path / CERTIFICATE)
    if exported in (GRAPH, REPOSITORY):
        return OnnxModel(path / exported, contract, detector, device)
    if exported == PROGRAM:
        return ProgramModel(path / PROGRAM, contract, detector, _torch_device(device))
    return TorchModel(open_hub(path, contract, _torch_device(device)), detector)


def model_folder(path: Path) -> Path:
    """The folder of a model that is given by its folder or by its .onnx file."""
    return path.parent if path.name == GRAPH and path.is_file() else path


def _detector(path: Path, contract: Contract) -> Detector | None:
    """The detector of outliers that belongs to the weights; what does not belong to them is said once."""
    calibration, weights, detector = contract.calibration, contract.weights, read_detector(path)
    if detector is not None and weights is not None and detector.weights != weights.sha256:
        print_once(f"{path}: its detector of outliers belongs to another step; fit it again with `brain-dist outliers`")
        detector = None
    if calibration is not None and weights is not None and calibration.step != weights.step:
        print_once(
            f"{path} is calibrated for step {calibration.step}, and this is step {weights.step}: its probabilities are"
            f" not calibrated; add --step {calibration.step}, or calibrate again"
        )
    return detector


def _say_if_not_ready(certificate: Path) -> None:
    """Say once that an export may be worse than its run, if its certificate says so."""
    try:
        content = json.loads(certificate.read_text(encoding="utf-8"))
        reason = content.get("reason")
    except (OSError, ValueError, AttributeError):
        return  # an export without a readable certificate claims nothing
    if reason:
        print_once(f"{certificate.parent} is not ready for use: {reason}")


def _torch_device(name: str) -> torch.device:
    return choose_device(discover(), name)
