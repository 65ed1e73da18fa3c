"""What the runs of a benchmark recorded about themselves: they must have been trained under the same conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import cell_title
from brain_dist.common.records import read_record
from brain_dist.errors import UserError

ENVIRONMENT = {"dataset_version": str, "precision": str, "world_size": int, "versions": dict}
SAME = {"precision": "train.precision", "world_size": "the number of ranks"}  # key of environment.json → its name


def require_same_conditions(record: Mapping[str, Any], folder: Folder) -> None:
    """Check environment.json of every run that has started.

    Args:
        record: the grid, see :meth:`brain_dist.benchmarking.grid.Grid.record`.
        folder: the benchmark's folder.

    Raises:
        UserError: a file is damaged, or a cell was trained on other shards than the grid's, or with another precision
            or number of ranks than another cell or, unless SLURM decides, the grid.
    """
    versions = {source["name"]: source["version"] for source in record["sources"]}
    first: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None
    for cell, environment in environments(record, folder):
        version = versions[cell["source"]]
        if environment["dataset_version"] != version:
            raise UserError(
                f"cell {cell['cell']} ({title(cell)}) was trained on version {environment['dataset_version'][:12]} of"
                f" {cell['source']}, and the benchmark is of version {version[:12]}; delete {folder.run(cell['cell'])},"
                " and run the benchmark again"
            )
        first = first or (cell, environment)
        for key, name in SAME.items():
            if environment[key] != first[1][key]:
                raise UserError(
                    f"the conditions are not unified: {name} was {first[1][key]} for {title(first[0])} and"
                    f" {environment[key]} for {title(cell)}; delete {folder.run(cell['cell'])}, and run the benchmark"
                    " again as before"
                )
    if first is not None and record["processes"] not in (None, ranks := first[1]["world_size"]):
        raise UserError(
            f"the conditions are not unified: the number of ranks was {ranks} for {title(first[0])} and would be"
            f" {record['processes']} now; give --processes {ranks}, or choose another folder"
        )


def environments(record: Mapping[str, Any], folder: Folder) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """(cell, content of environment.json) of the cells whose training has started.

    Raises:
        UserError: a file is damaged.
    """
    files = [(cell, folder.run(cell["cell"]) / "environment.json") for cell in record["cells"]]
    return [
        (cell, read_record(file, f"delete {file.parent}, and run the benchmark again", ENVIRONMENT))
        for cell, file in files
        if file.is_file()
    ]


def differing(record: Mapping[str, Any], folder: Folder) -> list[str]:
    """Machines and versions of packages in which the runs differ, as sentences for the reader of the table."""
    runs = [environment for _, environment in environments(record, folder)]
    notes = _note("devices", [str(run.get("devices")) for run in runs])
    notes += _note("versions of the code", [str(run.get("git_commit"))[:12] for run in runs])
    for package in runs[0]["versions"] if runs else ():
        notes += _note(f"versions of {package}", [str(run["versions"].get(package)) for run in runs])
    return notes


def _note(name: str, values: Sequence[str]) -> list[str]:
    different = sorted(set(values))
    return [f"the cells were trained with several {name}: {', '.join(different)}"] if len(different) > 1 else []


def title(cell: Mapping[str, Any]) -> str:
    """A cell of benchmark.json in words."""
    return cell_title(cell["model"], cell["seed"], cell["fold"])
