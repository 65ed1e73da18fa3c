"""Log a run to Weights & Biases: one W&B run per attempt, grouped by experiment, with the seed as job type."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.config import Config, to_dict

if TYPE_CHECKING:
    from brain_dist.judging.examples import Example

INIT_TIMEOUT = 15.0  # seconds until W&B counts as unreachable; its default is 90
FINISHED = "FINISHED"  # marks an offline run that is complete, for `brain-dist sync`
FLUSH_INTERVAL = 1  # seconds between W&B's writes to disk; its default is 15
FINISH_TIMEOUT = 120.0  # seconds for the last uploads; the jobs in slurm/ are warned five minutes before their end
_NOT_LOGGED = ("kind", "step", "split", "time", "per_class", "confusion")


class WandbLog:
    """An open W&B run.

    W&B writes in a separate process, and SLURM may send its SIGTERM to every process of a step. Rows that W&B does not
    accept, or may not have written when its process ended, are kept, and sent when the run finishes: after the
    checkpoint, which must not wait for them. Some of these rows can then appear twice. No error of W&B ends a training,
    whatever its type.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """``settings``: arguments of ``wandb.init``."""
        self.settings = settings
        self.unsent: list[tuple[dict[str, Any], Sequence[Example]]] = []
        self.unwritten: deque[tuple[float, dict[str, Any], Sequence[Example]]] = deque()  # with the time of sending
        self._open()

    def _open(self) -> None:
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            x_transaction_log_flush_interval=FLUSH_INTERVAL,
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,  # without a network the job must still end
        )
        try:
            self.run = wandb.init(**self.settings, settings=settings)
        except Exception as error:
            if self.settings["mode"] != "online":
                raise
            _print_line(f"logging offline, as W&B did not answer ({_one_line(error)}); upload with `brain-dist sync`")
            self.settings["mode"] = "offline"
            self._end_service()
            self.run = wandb.init(**self.settings, settings=settings)
        self.run.define_metric("*", step_metric="step")

    def log_row(self, row: dict[str, Any], examples: Sequence[Example] = ()) -> None:
        """Log a row of metrics.jsonl, or keep it until the end if W&B does not respond."""
        if not self.unsent:
            try:
                self._send(row, examples)
                return self._remember(row, examples)
            except Exception:  # mostly the connection to W&B's process is broken
                pass
        self.unsent.append((row, examples))

    def _remember(self, row: dict[str, Any], examples: Sequence[Example]) -> None:
        """Keep a row until W&B has written it to disk."""
        now = time.monotonic()
        self.unwritten.append((now, row, examples))
        while now - self.unwritten[0][0] > 3 * FLUSH_INTERVAL:
            self.unwritten.popleft()

    def _send(self, row: dict[str, Any], examples: Sequence[Example]) -> None:
        """Log a row as ``train/loss``, ``val/accuracy``, ``val/glioma/f1``, …, over the optimiser step."""
        import wandb

        prefix = "train" if row["kind"] == "train" else row["split"]
        values = {f"{prefix}/{name}": value for name, value in row.items() if name not in _NOT_LOGGED}
        for name, metrics in row.get("per_class", {}).items():
            values |= {f"{prefix}/{name}/{metric}": value for metric, value in metrics.items()}
        values = {name: value for name, value in values.items() if value is not None}
        if "confusion" in row:
            values[f"{prefix}/confusion"] = _confusion_plot(row["confusion"], list(row["per_class"]), prefix)
        if examples:
            values[f"{prefix}/examples"] = [
                wandb.Image(example.image, caption=_caption(example)) for example in examples
            ]
        self.run.log({**values, "step": row["step"]})

    def finish(self, code: int) -> str | None:
        """Send the remaining rows, finish the run, and mark it as complete for `brain-dist sync`.

        Returns:
            What went wrong, in one line, or None. The exit code of the training and metrics.jsonl do not depend on W&B.
        """
        folders, problem = {Path(self.run.settings.sync_dir)}, None
        if self.unsent or not self._finish_run(code):
            try:
                problem = self._resend()
                self.run.finish(exit_code=code)
            except Exception as error:
                problem = f"W&B ended before this run did ({_one_line(error)}); its last rows may be missing there"
                self._end_service()
        for folder in folders | {Path(self.run.settings.sync_dir)}:
            with contextlib.suppress(OSError):  # it does not exist
                (folder / FINISHED).touch()
        return problem

    def _finish_run(self, code: int) -> bool:
        """Finish the W&B run; False if W&B's process has ended."""
        try:
            self.run.finish(exit_code=code)
        except Exception:
            return False
        return True

    def _resend(self) -> str | None:
        """Continue the same W&B run in a new file, and send the rows that W&B did not accept or write."""
        self._end_service()
        self.settings |= {"id": self.run.id, "resume": "allow"}
        self._open()
        problem = None
        for row, examples in [*((row, examples) for _, row, examples in self.unwritten), *self.unsent]:
            try:
                self._send(row, examples)
            except Exception as error:
                problem = f"W&B lacks the row of step {row['step']} ({_one_line(error)})"
        return problem

    def _end_service(self) -> None:
        """End W&B's process, so that a new one can start."""
        import wandb

        with contextlib.suppress(Exception):
            wandb.teardown()


def _print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _confusion_plot(confusion: list[list[int]], classes: list[str], title: str) -> Any:
    """W&B's plot of a confusion matrix [K][K], rows true, columns predicted."""
    import wandb

    counts = np.asarray(confusion)
    true, predicted = (np.repeat(index, counts.ravel()) for index in np.indices(counts.shape).reshape(2, -1))
    return wandb.plot.confusion_matrix(y_true=true.tolist(), preds=predicted.tolist(), class_names=classes, title=title)


def _caption(example: Example) -> str:
    return f"{example.key}: {example.true}, predicted {example.predicted} at {example.probability:.0%}"


def has_key() -> bool:
    """Whether W&B finds an account without a prompt: in its variables, its settings or .netrc; it needs no network."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.Error:
        return True  # an invalid key: W&B says so when it is used


def open_log(config: Config, path: Path, attempt: int) -> WandbLog | None:
    """Start the W&B run of an attempt (1, 2, …) in ``path``/wandb.

    WANDB_MODE can turn W&B off or keep it offline, as for any program that uses it.

    Returns:
        None if ``track.wandb`` is off, or if W&B cannot be started: then a line says why.
    """
    if config.track.wandb == "off":
        return None
    mode = os.environ.get("WANDB_MODE")
    try:
        _choose_folders(path)
        if mode != "disabled":
            online = config.track.wandb == "auto" and mode in (None, "online") and has_key()
            mode = "online" if online else "offline"
        return WandbLog(
            {
                "project": config.track.project,
                "group": config.track.group or config.run.name,
                "job_type": f"seed {config.run.seed}",
                "name": config.run.name if attempt == 1 else f"{config.run.name} (attempt {attempt})",
                "dir": str(path),
                "config": {**to_dict(config), "attempt": attempt, "slurm_job": os.environ.get("SLURM_JOB_ID")},
                "mode": mode,
            }
        )
    except Exception as error:
        _print_line(f"not logging to W&B, only to metrics.jsonl: W&B did not start ({_one_line(error)})")
        return None


def _choose_folders(run: Path) -> None:
    """Put the folders that W&B needs besides the run's into the run's, if the home folder is not writable."""
    import platformdirs

    for kind in ("cache", "config", "data"):
        variable, folder = f"WANDB_{kind.upper()}_DIR", Path(getattr(platformdirs, f"user_{kind}_dir")("wandb"))
        if variable in os.environ or (folder / "settings").exists():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError:
            os.environ[variable] = str((run / "wandb" / kind).absolute())
