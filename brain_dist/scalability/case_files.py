"""The files of the cases of an experiment: settings, profile and log of each.

A case is done if its profile is complete; it is never run again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_dist.config import dump
from brain_dist.scalability.board import Board
from brain_dist.scalability.cases import Case

# The most informative lines of a log, best first: the program's own error, an exception, SLURM's error, any line
ERROR_LINES = (
    r"(brain-dist: )?error\b.*: |launch: process",
    r"(\[rank\d+\]: )?[\w.]*(Error|Exception)\b",
    r"(srun|slurmstepd|sbatch): error",
    r".",
)


@dataclass(frozen=True)
class CaseFolder:
    """The folder ``cases`` of an experiment.

    Attributes:
        path: The folder.
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
            board.update(case, "done", rate=profile["images_per_s"])
            return
        self.profile(case).unlink(missing_ok=True)
        board.update(case, "failed", note=last_error(self.log(case)))


def last_error(log: Path) -> str:
    """The line of a log that describes the failure best."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.is_file() else []
    for pattern in ERROR_LINES:
        matches = [line for line in lines if re.match(pattern, line)]
        if matches:
            return matches[-1].removeprefix("brain-dist: error: ")
    return f"it ended without a message; its log is {log}"
