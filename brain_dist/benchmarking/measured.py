"""``brain-dist benchmark costs``: measure each model in a process of its own, and keep the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.trainings import Commands
from brain_dist.common.commands import ArgumentParser
from brain_dist.common.files import check_writable, write_atomically, writing
from brain_dist.common.records import Kind, read_record
from brain_dist.common.text import nearest
from brain_dist.errors import Fault, UserError

_NUMBER = (int, float)
COSTS: dict[str, Kind] = {
    **dict.fromkeys(("parameters", "best_batch", "size", "threads"), int),
    **dict.fromkeys(("gmacs", "latency_ms", "latency_p95_ms", "batch_ms", "batch_p95_ms", "images_per_s"), _NUMBER),
    **dict.fromkeys(("peak_memory_mb", "cpu_share"), _NUMBER),
    **dict.fromkeys(("precision", "device", "torch"), str),
    "joules_per_image": (int, float, type(None)),
    "busy": bool,
}  # keys of a file of costs, and their types


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    Raises:
        UserError: the folder has no benchmark, or the benchmark has no such model.
        Fault: a model could not be measured, or the memory of the device is full.
    """
    parser = ArgumentParser("brain-dist benchmark costs", description=__doc__.partition(": ")[2])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the benchmark")
    parser.add_argument("--model", help="measure this model again (default: those that were not measured undisturbed)")
    arguments = parser.parse_args(list(argv))
    folder = Folder(arguments.out)
    record = folder.record()
    if arguments.model is not None:
        if arguments.model not in record["models"]:
            raise UserError(
                f"--model {arguments.model}{nearest(arguments.model, record['models'])}: the models are"
                f" {', '.join(record['models'])}"
            )
        measure_model(record, arguments.model, folder)
        return 0
    with folder.locked() as lock, Commands(lock).forwarding() as commands:
        failed = measure_missing(record["models"], folder, commands, undisturbed=True)
    if failed:
        raise Fault(f"{', '.join(failed)} could not be measured; logs are in {folder.out / 'costs'}")
    return 0


def measure_missing(
    models: Sequence[str], folder: Folder, commands: Commands, *, undisturbed: bool = False
) -> list[str]:
    """Measure the models without costs, or with damaged ones, each in a process of its own; returns those that failed.

    With ``undisturbed`` also those again whose measurement other processes disturbed.

    Raises:
        UserError: as :func:`measure_model`.
    """
    failed, record = [], folder.record()
    for model in models:
        file = _file(record, model, folder)
        if is_measured(file, undisturbed=undisturbed) or commands.stop_requested:
            continue
        file.parent.mkdir(exist_ok=True)
        print(f"measuring the costs of {model}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "brain_dist.benchmark", "costs", str(folder.out), "--model", model]
        log = file.with_suffix(".log")
        log.unlink(missing_ok=True)
        if commands.run(command, log):
            failed += [] if commands.stop_requested else [model]
    return failed


def is_measured(file: Path | None, *, undisturbed: bool = False) -> bool:
    """Whether a file of costs is there and intact and, with ``undisturbed``, no other process disturbed it."""
    if file is None or not file.is_file():
        return False
    try:
        return not (read_costs(file)["busy"] and undisturbed)
    except UserError:
        return False


def read_costs(file: Path) -> dict[str, Any]:
    """Measured costs of a model.

    Raises:
        UserError: the file is damaged.
    """
    advice = f"measure it again with `brain-dist benchmark costs {file.parents[1]}`"
    return read_record(file, advice, COSTS)


def measure_model(record: Mapping[str, Any], model: str, folder: Folder) -> None:
    """Measure a model of a benchmark on this machine, and write its costs.

    Raises:
        UserError: the benchmark is of a version that did not name costs by what they depend on, or is not writable.
        Fault: the memory of the device or the disk is full.
    """
    import torch

    from brain_dist.benchmarking.costs import measure_costs
    from brain_dist.config import read
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import clear_faults
    from brain_dist.ranks.threads import choose_threads
    from brain_dist.ranks.world import discover

    file = _file(record, model, folder)
    check_writable(file.parent, "make it writable")
    cell = next(cell for cell in record["cells"] if cell["model"] == model)
    source = next(source for source in record["sources"] if source["name"] == cell["source"])
    config = read(folder.settings(cell["cell"]))
    world = discover({})
    device = choose_device(world, config.run.device)
    torch.set_num_threads(choose_threads(world).count)
    with clear_faults(f"lower data.size={config.data.size}"):
        costs = measure_costs(config, len(source["classes"]), device)
    with writing(file):
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, json.dumps(costs, indent=1) + "\n")


def _file(record: Mapping[str, Any], model: str, folder: Folder) -> Path:
    file = folder.costs(record, model)
    if file is None:
        raise UserError(
            f"{folder.out / folder.record_file} is of an earlier version; give the command of the benchmark again,"
            " which keeps finished cells and measures the costs"
        )
    return file
