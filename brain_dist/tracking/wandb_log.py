"""A run on Weights & Biases: one W&B run an attempt, joined by group (the experiment) and job type (the seed)."""

from __future__ import annotations

import contextlib
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from brain_dist.config import Config, to_dict

if TYPE_CHECKING:
    from brain_dist.judging.examples import Example

FINISHED = "FINISHED"
FINISH_TIMEOUT = 120.0  # seconds for the last uploads: well below the five minutes that slurm/'s warning leaves
_NOT_LOGGED = ("kind", "step", "split", "time", "per_class", "confusion")


class WandbLog:
    """An open W&B run.

    W&B writes in a process of its own, and SLURM's SIGTERM at pre-emption may go to every process of a step. So rows
    that it does not take are kept, and sent when the run finishes: after the checkpoint, which may not wait for them.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """``settings``: arguments of ``wandb.init``."""
        self.settings = settings
        self.unsent: list[tuple[dict[str, Any], Sequence[Example]]] = []
        self._open()

    def _open(self) -> None:
        import wandb

        # what W&B's process has not written when it is killed is lost: at most a second, not fifteen
        # a network that is down must not hold up the end of a job; metrics.jsonl has every row
        how = wandb.Settings(
            console="off", silent=True, x_transaction_log_flush_interval=1, finish_timeout=FINISH_TIMEOUT
        )
        self.run = wandb.init(**self.settings, settings=how)
        self.run.define_metric("*", step_metric="step")

    def row(self, row: dict[str, Any], examples: Sequence[Example] = ()) -> None:
        """Log a row, or keep it until the end where W&B is gone."""
        if not self.unsent:
            try:
                return self._send(row, examples)
            except OSError:  # a broken connection to W&B's process
                pass
        self.unsent.append((row, examples))

    def _send(self, row: dict[str, Any], examples: Sequence[Example]) -> None:
        """Log ``train/loss``, ``val/accuracy``, ``val/glioma/f1``, …, over the optimiser step.

        Of an evaluation also the confusion matrix, and the ``examples`` as pictures with captions.
        """
        import wandb

        prefix = "train" if row["kind"] == "train" else row["split"]
        told = {f"{prefix}/{name}": value for name, value in row.items() if name not in _NOT_LOGGED}
        for name, values in row.get("per_class", {}).items():
            told |= {f"{prefix}/{name}/{metric}": value for metric, value in values.items()}
        told = {name: value for name, value in told.items() if value is not None}
        if "confusion" in row:
            counts = np.asarray(row["confusion"])
            true, predicted = (np.repeat(index, counts.ravel()) for index in np.indices(counts.shape).reshape(2, -1))
            told[f"{prefix}/confusion"] = wandb.plot.confusion_matrix(
                y_true=true.tolist(), preds=predicted.tolist(), class_names=list(row["per_class"]), title=prefix
            )
        if examples:
            told[f"{prefix}/examples"] = [
                wandb.Image(one.image, caption=f"{one.key}: {one.true}, named {one.predicted} at {one.probability:.0%}")
                for one in examples
            ]
        self.run.log({**told, "step": row["step"]})

    def finish(self, code: int) -> str | None:
        """Write what is left; offline runs wait for `brain-dist sync`, which the marker tells that nobody writes on.

        Returns:
            What went wrong, in one line: the run's own exit code, and metrics.jsonl, do not depend on W&B.
        """
        import wandb

        folders, problem = {Path(self.run.settings.sync_dir)}, None
        try:
            if self.unsent:
                with contextlib.suppress(OSError):
                    wandb.teardown()
                self.settings |= {"id": self.run.id, "resume": "allow"}  # the same run, continued in another file
                self._open()
                for row, examples in self.unsent:
                    self._send(row, examples)
            self.run.finish(exit_code=code)
        except (OSError, wandb.Error) as error:
            problem = (
                f"W&B ended before this run did ({type(error).__name__}: {error}); its last rows may be missing there"
            )
            with contextlib.suppress(OSError, wandb.Error):
                wandb.teardown()
        for folder in folders | {Path(self.run.settings.sync_dir)}:
            if folder.is_dir():
                (folder / FINISHED).touch()
        return problem


def has_key() -> bool:
    """Whether W&B could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        return netrc.netrc().authenticators(urlsplit(address).netloc or address) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def open_log(config: Config, path: Path, attempt: int) -> WandbLog | None:
    """Begin the W&B run of an attempt (1, 2, …) under ``path``/wandb; None when W&B is off."""
    if config.track.wandb == "off":
        return None

    wanted = os.environ.get("WANDB_MODE")
    online = config.track.wandb == "auto" and wanted in (None, "online") and has_key()
    os.environ.setdefault("WANDB_SILENT", "true")
    settings: dict[str, Any] = {
        "project": config.track.project,
        "group": config.track.group or config.run.name,
        "job_type": f"seed {config.run.seed}",
        "name": config.run.name if attempt == 1 else f"{config.run.name} (attempt {attempt})",
        "dir": str(path),
        "config": {**to_dict(config), "attempt": attempt, "slurm_job": os.environ.get("SLURM_JOB_ID")},
        "mode": "disabled" if wanted == "disabled" else "online" if online else "offline",
    }
    return WandbLog(settings)
