"""Which checkpoint of a run is used: the best by ``train.best``, the newest, or that of a step."""

from __future__ import annotations

from pathlib import Path

from brain_dist import config
from brain_dist.checkpoints.evaluations import Evaluations
from brain_dist.checkpoints.layout import MARKER, MODEL, checkpoint_folder, complete_steps, intact_weights
from brain_dist.errors import UserError

_HUB = (MODEL, "pytorch_model.bin")  # weights in a folder of the Hugging Face hub's layout, beside config.json
_PROGRAMS = ("model.onnx", "model.pt2")  # exports without a state dict


def choose_step(run: Path, step: int | str | None, metric: str | None) -> int:
    """The step of a run's complete checkpoint.

    Args:
        run: the run's folder.
        step: optimiser steps, "best", "newest", or None for the best if the run has a ``metric``, else the newest.
        metric: the run's ``train.best``.

    Raises:
        UserError: the run has no such checkpoint.
    """
    steps = complete_steps(run / "checkpoints")
    if not steps:
        raise UserError(f"{run} has no complete checkpoint yet; train it with `python -m brain_dist.train`")
    if step is None:
        step = "best" if metric else "newest"
    if step == "newest":
        return steps[-1]
    if step == "best":
        return best_step(run, metric, steps)
    if step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return int(step)


def best_step(run: Path, metric: str | None, saved: list[int]) -> int:
    """The step of a run's best checkpoint.

    Args:
        run: the run's folder.
        metric: the run's ``train.best``.
        saved: steps of the run's checkpoints.

    Raises:
        UserError: the run watched no metric, has no evaluation yet, or its best checkpoint is missing.
    """
    if metric is None:
        raise UserError(f"{run} was trained without train.best, so it has no best checkpoint; use another --step")
    step = Evaluations.read(run, metric, 0).best
    if step is None:
        raise UserError(f"{run} has no evaluation with {metric} yet, so no best checkpoint; use --step newest")
    if step not in saved:
        raise UserError(f"{run}: step {step} was best, but its checkpoint is missing; use another --step")
    return step


def weights_file(path: Path) -> Path:
    """The intact file of weights of a run or of a checkpoint: the EMA's if there is one.

    Args:
        path: the folder of a run (its best checkpoint by ``train.best``, else its newest), that of a checkpoint, or one
            in the layout of the Hugging Face hub.

    Raises:
        UserError: it is none of these, or the run has no such checkpoint.
        Fault: the checkpoint is damaged.
    """
    if (path / "config.json").is_file():
        for name in _HUB:
            if (path / name).is_file():
                return path / name
    if any((path / name).is_file() for name in _PROGRAMS):
        raise UserError(
            f"{path} is a program whose weights have lost their names; use the run, or `export RUN --to hf`"
        )
    if complete_steps(path / "checkpoints"):
        metric = config.read(path / "config.yaml").train.best
        return intact_weights(checkpoint_folder(path / "checkpoints", choose_step(path, None, metric)))
    if not (path / MARKER).is_file():
        raise UserError(
            f"{path} is neither the folder of a run with a checkpoint, nor that of a checkpoint, nor one with"
            f" config.json and {' or '.join(_HUB)}"
        )
    return intact_weights(path)
