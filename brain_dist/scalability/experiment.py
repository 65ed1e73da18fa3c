"""The folder of a scaling experiment: its settings, the files of its cases, its table, its page and its plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_dist.common.board import Board
from brain_dist.common.children import last_error
from brain_dist.common.files import write_atomically
from brain_dist.common.locks import Busy, take_lock
from brain_dist.config import dump
from brain_dist.errors import UserError
from brain_dist.scalability.cases import Case

EXPERIMENT, PARQUET, PAGE, PLOT = "experiment.json", "scaling.parquet", "scaling.md", "scaling.png"


@contextmanager
def claim_folder(out: Path, experiment: Mapping[str, Any]) -> Iterator[None]:
    """Create the folder of an experiment, or check that it belongs to the same one; hold it during a ``with`` block.

    Args:
        out: The folder.
        experiment: Settings that must match on resume; stored as experiment.json.

    Raises:
        UserError: the folder cannot be written to, another process measures into it, or it holds another experiment.
    """
    file = out / EXPERIMENT
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = take_lock(out / ".lock", required=False)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    except Busy:
        raise UserError(f"another process measures into {out}; wait for it or choose another --out") from None
    with lock:
        if not file.is_file():
            write_atomically(file, json.dumps(experiment, indent=1) + "\n")
        try:
            stored = json.loads(file.read_text())
        except ValueError:
            raise UserError(f"{file} is not valid JSON; choose another --out") from None
        current = json.loads(json.dumps(experiment))
        if stored != current:
            difference = _first_difference(stored, current)
            raise UserError(f"{out} holds another experiment ({difference}); choose another --out, or its settings")
        yield


def _first_difference(stored: Any, current: Any, name: str = "") -> str:
    """Describe the first setting in which two experiments differ."""
    if isinstance(stored, dict) and isinstance(current, dict):
        for key in dict.fromkeys([*stored, *current]):
            if stored.get(key) != current.get(key):
                return _first_difference(stored.get(key), current.get(key), f"{name}.{key}" if name else key)
    if name == "settings":
        if len(stored) == len(current):
            return next(_first_difference(old, new) for old, new in zip(stored, current, strict=True) if old != new)
        return "its models or ZeRO stages differ"
    return f"its {name} is {stored}, now it is {current}"


@dataclass(frozen=True)
class CaseFolder:
    """Settings, profile and log of each case. A case with a complete profile is done and never run again.

    Attributes:
        path: The folder ``cases`` of the experiment.
        steps: Number of steps that each profile measures.
    """

    path: Path
    steps: int

    def settings(self, case: Case) -> Path:
        """File with the settings of a case."""
        return self.path / f"{case.name}.yaml"

    def profile(self, case: Case) -> Path:
        """File with the profile of a case."""
        return self.path / f"{case.name}.json"

    def log(self, case: Case) -> Path:
        """Log file of a case."""
        return self.path / f"{case.name}.log"

    def arguments(self, case: Case) -> list[str]:
        """Arguments of ``brain-dist profile`` for a case."""
        return ["--config", str(self.settings(case)), "--steps", str(self.steps), "--out", str(self.profile(case))]

    def prepare(self, case: Case) -> None:
        """Write the settings of a case and delete an incomplete profile."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.profile(case).unlink(missing_ok=True)
        self.settings(case).write_text(dump(case.config))

    def read_profile(self, case: Case) -> dict[str, Any] | None:
        """The profile of a case; None if it is missing or incomplete."""
        try:
            profile = json.loads(self.profile(case).read_text())
        except (OSError, ValueError):
            return None
        return profile if isinstance(profile, dict) and "images_per_s" in profile else None

    def finish(self, case: Case, succeeded: bool, board: Board) -> None:
        """Report the end of a case on the board; delete the profile if the case failed."""
        profile = self.read_profile(case)
        if succeeded and profile:
            board.update(case.name, "done", result=rate_text(profile))
            return
        self.profile(case).unlink(missing_ok=True)
        board.update(case.name, "failed", note=last_error(self.log(case)))


def rate_text(profile: Mapping[str, Any]) -> str:
    """The rate of a profile with its unit."""
    return f"{profile['images_per_s']:,.1f} images/s"


def write_results(
    out: Path, rows: Sequence[dict[str, Any]], *, command: str, note: str, failed: Mapping[str, str]
) -> None:
    """Write the page and, if there are rows, the table and the plot; print the tables.

    Args:
        out: Folder of the experiment.
        rows: Rows of :func:`~brain_dist.scalability.results.profile_row`.
        command: The command that ran, for the page.
        note: What a node is, for the page.
        failed: Name of each failed case → its last error.
    """
    from brain_dist.scalability import page, plot, results

    curves = results.measured_curves(rows)
    write_atomically(out / PAGE, page.markdown(curves, command=command, note=note, plot=PLOT, failed=failed))
    written = [out / PAGE]
    if rows:
        results.write(out / PARQUET, rows)
        plot.draw(curves, out / PLOT)
        written += [out / PARQUET, out / PLOT]
    page.print_tables(curves)
    print(f"wrote {', '.join(map(str, written))}")
