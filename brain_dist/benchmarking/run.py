"""``brain-dist benchmark run``: check the grid, train and evaluate the cells that are missing, write the table."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.benchmarking.folder import RECORD, Folder
from brain_dist.benchmarking.grid import OWN_TEST, PUBLISHED, Grid, Source, Test, plan
from brain_dist.benchmarking.rates import best_rates, parse_rates, plan_trials, read_trials, run_trials
from brain_dist.common.commands import ArgumentParser
from brain_dist.common.text import nearest
from brain_dist.config import Config, load
from brain_dist.errors import EXIT_PREEMPTED, Fault, UserError
from brain_dist.judging.predictions import reasons_text

if TYPE_CHECKING:
    from brain_dist.store.dataset import Dataset

PROG = "brain-dist benchmark run"
DESCRIPTION = (
    "Train and evaluate models × seeds × folds under the same conditions: their settings may differ in model.* and the"
    " learning rate only. Takes every setting of a run. A benchmark that was interrupted goes on with the same command;"
    " finished cells are kept."
)


def argument_parser(prog: str = PROG, description: str = DESCRIPTION) -> ArgumentParser:
    """Options besides the settings of a run."""
    parser = ArgumentParser(prog=prog, description=description, add_help=False)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the benchmark")
    parser.add_argument(
        "--models", metavar="A,B", required=True,
        help="timm models, or YAML files with the settings model.* and perhaps optim.lr of one",
    )  # fmt: skip
    parser.add_argument("--seeds", default="0,1,2", help="seeds of each model (default: 0,1,2)")
    parser.add_argument("--folds", type=int, metavar="K", help="train once for each fold of shards built as K folds")
    parser.add_argument(
        "--lr", action="append", default=[], metavar="MODEL=X",
        help="peak learning rate of one model; may be repeated (default: optim.lr for all)",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=int, metavar="N",
        help="ranks of each training on this machine (default: one per GPU, else one)",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", action="store_true",
        help="submit the missing cells as one job array of slurm/benchmark.sh, and return",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code, 75 if the benchmark was asked to stop.

    Raises:
        UserError: an option, a setting or the data cannot be used, or the conditions are not unified.
        Fault: a cell failed; the table of the others is written.
    """
    about = "Train and evaluate several models under the same conditions."
    parser = argument_parser()
    parser.add_argument(
        "--rates", metavar="X,Y",
        help="choose every model's learning rate from this list: one training each with the first seed, judged by"
        " train.best on the validation split",
    )  # fmt: skip
    arguments, settings = parser.parse_with_settings(argv, lambda: load(["--help"], PROG, about))
    if arguments.processes is not None and arguments.processes < 1:
        raise UserError(f"--processes {arguments.processes}: must be ≥ 1")
    variants = read_variants(arguments.models, arguments.lr, settings)
    folder = Folder(arguments.out)
    source, folds = open_source(next(iter(variants.values())), arguments.folds, folder)
    check_networks(variants, len(source.classes))
    processes = None if arguments.slurm else arguments.processes or default_processes(variants, folder)
    command, trials = shlex.join(["brain-dist", "benchmark", "run", *argv]), None
    if arguments.rates is not None:
        rates = parse_rates(arguments.rates, variants, arguments.lr, folds)
        candidates = plan_trials(variants, rates, seeds(arguments.seeds)[0], source, folder, processes)
        code = run_trials(candidates, folder, command, slurm=arguments.slurm)
        if code is not None:
            return code
        trials = read_trials(candidates, variants, rates, folder)
        variants = best_rates(trials, variants)
    grid = plan(variants, seeds(arguments.seeds), folds, [source], folder.out, processes)
    return run_grid(replace(grid, trials=trials), folder, command, slurm=arguments.slurm)


def run_grid(grid: Grid, folder: Folder, command: str, *, slurm: bool, cross: str | None = None) -> int:
    """Train and evaluate what is missing, measure the costs of the models, and write the tables; or submit all of it.

    With SLURM the tables are written if no cell is missing.

    Args:
        grid: the grid.
        folder: the benchmark's folder.
        command: the command line, for the table.
        slurm: submit the missing cells as a job array.
        cross: content of cross_plan.json, for `benchmark cross`.

    Returns:
        The exit code: 75 if the benchmark was asked to stop.

    Raises:
        UserError: the folder holds other conditions, a training refuses its settings, or jobs cannot be submitted.
        Fault: a cell failed; the tables of the others are written.
    """
    from brain_dist.benchmarking.conditions import require_same_conditions
    from brain_dist.benchmarking.measured import measure_missing
    from brain_dist.benchmarking.slurm import require_slurm, submit_cells
    from brain_dist.benchmarking.table import write_results
    from brain_dist.benchmarking.trainings import Commands, cell_board, run_cells

    with folder.locked() as lock:
        finished = sum(map(folder.is_finished, grid.cells))
        waiting = len(grid.cells) - finished
        if slurm and waiting:
            require_slurm(folder)
        require_same_conditions(grid.record(), folder)
        folder.claim(grid, command, cross)
        if slurm:
            if waiting:
                job, table = submit_cells(grid, folder), f"brain-dist benchmark table {shlex.quote(str(folder.out))}"
                print(f"job {job}: {waiting} cells, one task each; then `{table}`")
            else:
                print("all cells are finished")
                write_results(folder)
            return 0
        print(f"{len(grid.cells)} cells, {finished} of them finished", file=sys.stderr, flush=True)
        with Commands(lock).forwarding() as commands:
            with cell_board(grid, folder) as board:
                run_cells(grid, folder, commands, board)
            models = dict.fromkeys(cell.model for cell in grid.cells if folder.is_finished(cell))
            unmeasured = measure_missing(list(models), folder, commands)
        if commands.stop_requested:
            print(
                f"stopped: {board.ended()} of {len(grid.cells)} cells have ended; the same command goes on",
                file=sys.stderr,
            )
            return EXIT_PREEMPTED
        if models:
            write_results(folder)
    if board.failed:
        first = board.failed[0]
        raise Fault(f"{len(board.failed)} of {len(grid.cells)} cells failed, first {first}: {board.note[first]}")
    if unmeasured:
        raise Fault(f"the costs of {', '.join(unmeasured)} could not be measured; logs are in {folder.out / 'costs'}")
    return 0


def read_variants(
    models: str, rates: Sequence[str], settings: Sequence[str], methods: str | None = None
) -> dict[str, Config]:
    """What the table calls each model, or each method, → the settings of its trainings.

    Args:
        models: value of ``--models``.
        rates: values of ``--lr``.
        settings: the settings of all models, as words of a command line.
        methods: YAML files of methods, separated by commas: each is a variant of the one model.

    Raises:
        UserError: a setting is invalid, two models or methods have one name, a rate is for no model, or there are
            methods and several models.
    """
    words: dict[str, list[str]] = {}
    for entry in filter(None, models.split(",")):
        is_file = entry.endswith((".yaml", ".yml"))
        name = Path(entry).stem if is_file else entry
        if name in words:
            raise UserError(f"--models {models}: two of them are called {name}; the name of a file is its model's name")
        words[name] = ["--config", entry] if is_file else ["--model.name", entry]
    if not words:
        raise UserError("--models is empty; give timm models, such as convnext_atto,resnet18")
    for rate in rates:
        name, equals, value = rate.partition("=")
        if not equals or name not in words:
            raise UserError(f"--lr {rate}{nearest(name, words)}: must be MODEL=X, with one of {', '.join(words)}")
        words[name] += ["--optim.lr", value]
    if methods is not None:
        words = _of_methods(methods, words)
    return {name: load([*settings, *own, "--run.resume", "auto"], PROG) for name, own in words.items()}


def _of_methods(methods: str, words: dict[str, list[str]]) -> dict[str, list[str]]:
    """Name of each method → the words of the one model, and the method's file."""
    if len(words) != 1:
        raise UserError(f"--methods compares trainings of one model; --models names {', '.join(words)}")
    files = [entry for entry in methods.split(",") if entry]
    names = [Path(entry).stem for entry in files]
    if len(set(names)) < len(names) or not names:
        raise UserError(f"--methods {methods}: must be YAML files with different names, which are the methods' names")
    (own,) = words.values()
    return {name: [*own, "--config", file] for name, file in zip(names, files, strict=True)}


def seeds(text: str) -> list[int]:
    """Parse ``--seeds``.

    Raises:
        UserError: it is not a list of different integers ≥ 0.
    """
    words = text.split(",")
    if not all(re.fullmatch(r"\d+", word) for word in words) or len(set(map(int, words))) < len(words):
        raise UserError(f"--seeds {text}: must be different integers ≥ 0 separated by commas, such as 0,1,2")
    return [int(word) for word in words]


def open_source(config: Config, folds: int | None, folder: Folder) -> tuple[Source, int | None]:
    """Open the training shards of a configuration, and check their splits; returns them and the number of folds.

    Raises:
        UserError: the data cannot be opened, a split is missing, or ``--folds`` does not fit.
    """
    from brain_dist.store.access import open_data, open_shards

    data = replace(config.data, fold=None)
    whole = (
        open_data(data, folder.cells) if data.sources or not data.shards else open_shards(data.shards, data.cache_dir)
    )
    if (folds or 0) != whole.folds:
        built = f"was built as {whole.folds} folds" if whole.folds else "was built without folds"
        advice = f"give --folds {whole.folds}" if whole.folds else "leave --folds out, or build it with --split kfold"
        raise UserError(f"{whole.root} {built}; {advice}")
    dataset = whole.of_fold(0) if whole.folds else whole
    for split in ("train", "test", *(("val",) if config.train.best else ())):
        if not len(dataset.rows(split)):
            raise UserError(f"{dataset.root} has no {split} split; rebuild it with other --fractions")
    return Source(
        dataset.name, dataset.version, dataset.classes, data, own_tests(dataset, selected=bool(config.train.best))
    ), folds


def own_tests(dataset: Dataset, *, selected: bool) -> tuple[Test, ...]:
    """The evaluations of the test split: twice if training knows some of it, without these images and as published.

    ``selected`` is that of :func:`brain_dist.inference.known.known_within`.

    Raises:
        UserError: training knows every test image.
    """
    from brain_dist.inference.known import known_within

    known = known_within(dataset, dataset.rows("test"), selected=selected)
    if not any(known):
        return OWN_TEST
    if all(known):
        raise UserError(
            f"training knows every test image of {dataset.root}: {reasons_text(known)}; build it with --split grouped"
        )
    return (*OWN_TEST, Test(PUBLISHED, allow_known=True))


def check_networks(variants: dict[str, Config], classes: int) -> None:
    """Create every network without allocating its weights, to fail before the first cell starts.

    Raises:
        UserError: as :func:`brain_dist.networks.create.create_network`.
    """
    import torch

    from brain_dist.networks.create import create_network

    for config in variants.values():
        with torch.device("meta"):
            create_network(config.model, classes, seed=0, load_weights=False)


def default_processes(variants: dict[str, Config], folder: Folder) -> int:
    """As many ranks as a cell of the folder was trained with, or one rank per GPU that the runs may use, or one."""
    import torch

    from brain_dist.benchmarking.conditions import environments

    started = environments(folder.record(), folder) if (folder.out / RECORD).is_file() else []
    if started:
        return int(started[0][1]["world_size"])
    devices = {config.run.device for config in variants.values()}
    return 1 if devices == {"cpu"} else max(1, torch.cuda.device_count())
