"""The folder of a scaling experiment: its settings, its table, its page and its plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError

EXPERIMENT, PARQUET, PAGE, PLOT = "experiment.json", "scaling.parquet", "scaling.md", "scaling.png"


def claim_folder(out: Path, experiment: Mapping[str, Any]) -> None:
    """Create the folder of an experiment, or check that it belongs to the same one.

    Args:
        out: The folder.
        experiment: Settings that must match on resume; stored as experiment.json.

    Raises:
        UserError: the folder cannot be written to, or holds another experiment.
    """
    file = out / EXPERIMENT
    if not file.is_file():
        try:
            out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(experiment, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
        return
    try:
        stored = json.loads(file.read_text())
    except ValueError:
        raise UserError(f"{file} is not valid JSON; choose another --out") from None
    current = json.loads(json.dumps(experiment))
    if stored != current:
        difference = _first_difference(stored, current)
        raise UserError(f"{out} holds another experiment ({difference}); choose another --out, or its settings")


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


def write_results(
    out: Path, rows: Sequence[dict[str, Any]], *, command: str, note: str, failed: Mapping[str, str]
) -> None:
    """Write the page and, if there are rows, the table and the plot; print the tables.

    Args:
        out: Folder of the experiment.
        rows: Rows of :func:`results.profile_row`.
        command: The command that ran, for the page.
        note: What a node is, for the page.
        failed: Name of each failed case → its last error.
    """
    from brain_dist.scalability import page, plot, results
    from brain_dist.scalability.curves import measured_curves

    curves = measured_curves(rows)
    (out / PAGE).write_text(page.markdown(curves, command=command, note=note, plot=PLOT, failed=failed))
    written = [out / PAGE]
    if rows:
        results.write(out / PARQUET, rows)
        plot.draw(curves, out / PLOT)
        written += [out / PARQUET, out / PLOT]
    page.print_tables(curves)
    print(f"wrote {', '.join(map(str, written))}")
