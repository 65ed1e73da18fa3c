"""The folder of a benchmark: benchmark.json, the runs of its cells, the costs of its models, and its tables.

=====================================  ======================================================================
``benchmark.json``                     the grid, see :meth:`brain_dist.benchmarking.grid.Grid.record`
``cross_plan.json``                    of `benchmark cross`: what is tested on what, and why not
``cells/KEY.yaml``, ``cells/KEY.log``  the settings of a cell, and what its commands printed
``cells/KEY/``                         the run of a cell, with its predictions
``rates.json``                         the grid of the learning rates that were tried; runs in ``cells/``, too
``costs/NETWORK-KEY.json``             measured costs of a network with these settings
``table.parquet``, ``cells.parquet``   results; the same cells give the same bytes
``costs.parquet``, ``table.md``        measured costs; everything in one page
=====================================  ======================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_dist.benchmarking.grid import Cell, Grid
from brain_dist.common.files import check_writable, write_atomically, write_together, writing
from brain_dist.common.locks import Busy, take_lock
from brain_dist.common.records import read_record
from brain_dist.config import dump
from brain_dist.errors import UserError
from brain_dist.judging.predictions import read_version

RECORD, PLAN = "benchmark.json", "cross_plan.json"
GRID = {
    **dict.fromkeys(("models", "seeds", "sources", "cells"), list),
    **dict.fromkeys(("common", "learning_rates"), dict),
}  # keys of benchmark.json of every version, and their types
LOCK_TIME = 60.0  # seconds; a training that was interrupted may still save


@dataclass(frozen=True)
class Folder:
    """The folder ``out`` of a benchmark; ``record_file`` is where its grid is."""

    out: Path
    record_file: str = RECORD

    @property
    def cells(self) -> Path:
        """Folder of the cells."""
        return self.out / "cells"

    def run(self, key: str) -> Path:
        """Folder of a cell's run."""
        return self.cells / key

    def settings(self, key: str) -> Path:
        """File with the settings of a cell."""
        return self.cells / f"{key}.yaml"

    def log(self, key: str) -> Path:
        """What the commands of a cell printed."""
        return self.cells / f"{key}.log"

    def predictions(self, key: str, test: str = "test") -> Path:
        """A predictions table of a cell."""
        return self.run(key) / "predictions" / f"{test}.parquet"

    def costs(self, record: Mapping[str, Any], model: str) -> Path | None:
        """File of the measured costs of a model of a record; None if the record is of a version without their names."""
        name = record.get("costs", {}).get(model)
        return None if name is None else self.out / "costs" / f"{name}.json"

    def is_evaluated(self, key: str, test: str, version: str | None) -> bool:
        """Whether an evaluation of a cell is there, of shards of this version; None is any version.

        Raises:
            UserError: the predictions table is damaged.
        """
        file = self.predictions(key, test)
        if not (file.is_file() and file.with_suffix(".json").is_file()):
            return False
        return version is None or read_version(file) == version

    def is_finished(self, cell: Cell) -> bool:
        """Whether all evaluations of a cell are there. They are written when its training is complete."""
        return all(self.is_evaluated(cell.key, test.name, test.version) for test in cell.tests)

    def recorded(self, record: Mapping[str, Any], key: str, test: str) -> bool:
        """:meth:`is_evaluated` for a cell of a record, by the version of the test's shards in that record."""
        return self.is_evaluated(key, test, record.get("test_versions", {}).get(test))

    def record(self) -> dict[str, Any]:
        """The grid in benchmark.json.

        Raises:
            UserError: the file is missing or damaged.
        """
        file = self.out / self.record_file
        if not file.is_file():
            raise UserError(f"{file} does not exist; start the benchmark with `brain-dist benchmark run {self.out}`")
        return read_record(file, "delete it and give the same command again, which keeps finished cells", GRID)

    def claim(self, grid: Grid, command: str, plan: str | None = None) -> None:
        """Write benchmark.json and the settings of all cells, or check that the folder belongs to the same conditions.

        Models, seeds and folds may be added or removed; cells that exist are kept.

        Args:
            grid: the grid.
            command: the command line, for the table.
            plan: content of cross_plan.json, for `benchmark cross`.

        Raises:
            UserError: the folder holds cells of other shards or conditions, or is not writable.
            Fault: the disk is full.
        """
        record = json.loads(json.dumps({"command": command, **grid.record()}))
        if (self.out / self.record_file).is_file():
            _require_same(self.record(), record, self.out)
        check_writable(self.out, "choose another folder")
        plans = {} if plan is None else {self.out / PLAN: plan}
        with writing(self.out):
            self.cells.mkdir(parents=True, exist_ok=True)
            write_together({**plans, self.out / self.record_file: json.dumps(record, indent=1) + "\n"})
            for cell in grid.cells:
                write_atomically(self.settings(cell.key), dump(cell.config))

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Keep other processes from running cells here; yields a file descriptor that children may hold open.

        Raises:
            UserError: another process runs this benchmark, or the folder is not writable.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            file = take_lock(self.out / ".lock", timeout=LOCK_TIME, required=False)
        except Busy:
            raise UserError(
                f"another process runs the benchmark in {self.out}; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise UserError(f"{self.out} cannot be written ({error.strerror}); choose another folder") from None
        with file:
            yield file.fileno()


def _require_same(stored: Mapping[str, Any], current: Mapping[str, Any], out: Path) -> None:
    """Raise UserError unless two records have the same shards, conditions and, unless SLURM decides, number of ranks.

    A setting that one of them lacks counts as off, see :func:`.keys.settings_key`.
    """
    versions = {source["name"]: source["version"] for source in stored["sources"]}
    for source in current["sources"]:
        version = versions.get(source["name"], source["version"])
        if version != source["version"]:
            raise UserError(
                f"the cells in {out} were trained on version {version[:12]} of {source['name']}, and"
                f" {', '.join(source['shards'])} is version {source['version'][:12]}; use those shards, or choose"
                " another folder"
            )
    pairs = [(f"{key} is", stored["common"].get(key), current["common"].get(key))
             for key in dict.fromkeys([*stored["common"], *current["common"]])]  # fmt: skip
    if stored["processes"] and current["processes"]:
        pairs.append(("the number of processes is", stored["processes"], current["processes"]))
    for name, before, now in pairs:
        if (before or None) != (now or None):
            raise UserError(
                f"the conditions are not unified: {name} {before} in {out} and {now} in this command; give the same"
                " value, or choose another folder"
            )
