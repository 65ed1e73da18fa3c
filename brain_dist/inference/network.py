"""Open a run's network without its shards, and keep the run's preprocessing contract complete."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.calibration.record import read_calibration
from brain_dist.checkpoints.choice import choose_step
from brain_dist.checkpoints.layout import EMA, MODEL, checkpoint_folder, complete_steps, read_marker
from brain_dist.common.files import write_atomically
from brain_dist.errors import Fault, UserError
from brain_dist.inference.run import load_checkpoint, read_environment
from brain_dist.stream.contract import FILE, CalibrationEntry, Contract, WeightsEntry, read_contract

if TYPE_CHECKING:
    import torch

    from brain_dist.stream.normalize import Normalize

SETS = "lac"  # the method of the sets that prediction shows: the smallest ones, and without a random draw


@dataclass(frozen=True)
class OpenNetwork:
    """A trained network, ready for images.

    Attributes:
        model: the network in evaluation mode, fp32; [B, C, H, W] → logits [B, K].
        normalize: uint8 images [B, 1 or 3, H, W] → the network's input.
        contract: how an image file becomes such an image, and what the logits mean.
        device: the device of the network.
        options: arguments of timm that the network was made with, besides its name and classes.
    """

    model: torch.nn.Module
    normalize: Normalize
    contract: Contract
    device: torch.device
    options: dict[str, Any]


def open_network(run: Path, *, step: int | str | None = None, device: str = "cpu") -> OpenNetwork:
    """Open the network of a run at a checkpoint. Its shards are not needed.

    Args:
        run: the run's folder.
        step: see :func:`brain_dist.inference.run.load_run`.
        device: torch device.

    Raises:
        UserError: the run or a complete checkpoint is missing.
        Fault: the weights are damaged.
    """
    import torch

    from brain_dist import config
    from brain_dist.networks.create import create_network
    from brain_dist.stream.normalize import Normalize

    environment = read_environment(run)
    settings = config.read(run / "config.yaml")
    model = create_network(settings.model, len(environment["classes"]), seed=0, load_weights=False)
    loaded = load_checkpoint(model, run, settings, step, "auto")
    target = torch.device(device)
    normalize = Normalize(settings.data, settings.model.in_chans, target, torch.float32)
    options = dict(settings.model.options)
    return OpenNetwork(model.to(target).eval(), normalize, run_contract(run, loaded), target, options)


def run_contract(run: Path, step: int | None) -> Contract:
    """The contract of a run at the checkpoint of ``step``.

    Args:
        run: the run's folder.
        step: optimiser steps; None takes the step that the run is calibrated for, else that of :func:`open_network`,
            or leaves the weights out if that checkpoint does not exist yet.

    Raises:
        UserError: the run is missing, or a file of it cannot be read.
        Fault: the checkpoint is damaged.
    """
    from brain_dist import config

    contract = read_contract(run)
    settings = config.read(run / "config.yaml")
    if contract is None:  # the run is older than this file
        environment = read_environment(run)
        contract = Contract.of(settings, tuple(environment["classes"]), environment["dataset_version"])
    calibration = _calibration(run)
    if step is None:
        steps = complete_steps(run / "checkpoints")
        if calibration is not None and calibration.step in steps:
            step = calibration.step
        else:
            with suppress(UserError):  # the training has not come to a checkpoint or to an evaluation yet
                step = choose_step(run, None, settings.train.best)
    weights = None if step is None else _weights(checkpoint_folder(run / "checkpoints", step), step)
    return dataclasses.replace(contract, weights=weights, calibration=calibration)


def write_contract(run: Path) -> None:
    """Write ``preprocess.json`` of a run again, see :func:`run_contract`."""
    write_atomically(run / FILE, run_contract(run, None).to_json())


def _weights(folder: Path, step: int) -> WeightsEntry:
    try:
        files = read_marker(folder)["files"]
        return WeightsEntry(step, files[EMA if EMA in files else MODEL]["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise Fault(f"{folder} is unreadable ({error}); use another --step") from None


def _calibration(run: Path) -> CalibrationEntry | None:
    calibration = read_calibration(run)
    if calibration is None:
        return None
    thresholds = calibration.thresholds[SETS]
    return CalibrationEntry(
        step=calibration.step,
        temperature=1.0 if isinstance(calibration.temperature, str) else calibration.temperature,
        alpha=calibration.alpha,
        threshold=None if isinstance(thresholds, str) else thresholds[0].value,
    )
