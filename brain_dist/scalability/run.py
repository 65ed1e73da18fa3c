"""``brain-dist scaling run``: measure the cases that are missing, then write the table, the page and the plot."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_dist.common.board import Board
from brain_dist.common.commands import ArgumentParser
from brain_dist.config import Config, load, to_dict
from brain_dist.errors import Fault, UserError
from brain_dist.scalability.cases import MODES, Case, case_board, integers, plan
from brain_dist.scalability.experiment import CaseFolder, claim_folder, rate_text, write_results
from brain_dist.scalability.launchers import Launcher, choose_launcher
from brain_dist.scalability.results import profile_row

PROG = "brain-dist scaling run"
DESCRIPTION = (
    "Measure how a training step speeds up over nodes. Every case is one `brain-dist profile`: a step inside a SLURM"
    " allocation, a job from a login node, or processes of this machine. Takes every setting of a run. An interrupted"
    " experiment continues with the same command; finished cases are kept."
)


def argument_parser() -> ArgumentParser:
    """Options besides the settings of a run."""
    parser = ArgumentParser(prog=PROG, description=DESCRIPTION, add_help=False)
    parser.add_argument("--nodes", default="1,2", help="numbers of nodes (default: 1,2)")
    parser.add_argument("--per-node", type=int, metavar="K", help="ranks per node (default: one per GPU, or one)")
    parser.add_argument("--mode", choices=("weak", "strong", "both"), default="both",
                        help="weak: the global batch grows with the ranks; strong: the global batch is constant, and"
                             " micro-batches shrink if necessary (default: both). train.global_batch is that of the"
                             " smallest number of ranks")  # fmt: skip
    parser.add_argument("--models", metavar="A,B", help="timm model names (default: model.name)")
    parser.add_argument("--zero", metavar="0,2", help="ZeRO stages (default: train.zero_stage)")
    parser.add_argument("--steps", type=int, default=20, help="steps per measurement (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements per case (default: 3)")
    parser.add_argument("--where", choices=("auto", "local", "slurm"), default="auto",
                        help="auto: in the SLURM allocation around this process; by sbatch if this machine belongs to a"
                             " cluster (SBATCH_PARTITION and similar variables choose the queue); otherwise on this"
                             " machine")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the experiment")
    return parser


def main(argv: Sequence[str]) -> int:
    """Check all cases, run those that are missing, write the results; return the exit code.

    Raises:
        UserError: an option or a setting is invalid; no case has started.
        Fault: a case failed; the results of the others are written. Or the folder cannot be written.
    """
    about = "Measure how a training step speeds up over nodes."
    arguments, settings = argument_parser().parse_with_settings(argv, lambda: load(["--help"], PROG, about))
    for name in ("per_node", "steps", "repeats"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be ≥ 1")
    nodes = integers("--nodes", arguments.nodes, minimum=1)
    configs = _configs(arguments, settings)
    launcher = choose_launcher(arguments.where, arguments.per_node, nodes, configs[0].run.device)
    modes = [mode for mode in MODES if arguments.mode in (mode, "both")]
    cases = plan(configs, nodes=nodes, ranks_per_node=launcher.ranks_per_node, modes=modes, repeats=arguments.repeats)
    version = _check_data_and_networks(configs)
    experiment = {
        "nodes": nodes, "per_node": launcher.ranks_per_node, "modes": modes, "steps": arguments.steps,
        "repeats": arguments.repeats, "where": launcher.kind, "dataset_version": version,
        "settings": [to_dict(config) for config in configs],
    }  # fmt: skip
    folder = CaseFolder(arguments.out / "cases", arguments.steps)
    try:
        with claim_folder(arguments.out, experiment):
            board = _run_missing(cases, launcher, folder)
            profiles = [(case, folder.read_profile(case)) for case in cases]
            write_results(
                arguments.out,
                [profile_row(case, profile) for case, profile in profiles if profile],
                command=f"python -m brain_dist.scaling run {shlex.join(argv)}",
                note=launcher.note,
                failed={name: board.note[name] for name in board.failed},
            )
    except OSError as error:
        raise Fault(f"{error.filename or arguments.out} cannot be written: {error.strerror or error}") from None
    if board.failed:
        first = board.failed[0]
        raise Fault(
            f"{len(board.failed)} of {len(cases)} cases failed, first {first}: {board.note[first]};"
            f" logs are in {folder.path}"
        )
    return 0


def _configs(arguments: argparse.Namespace, settings: Sequence[str]) -> list[Config]:
    """The checked settings of every model at every ZeRO stage."""
    models, stages = [[]], [[]]  # type: tuple[list[list[str]], list[list[str]]]
    if arguments.models:
        models = [["--model.name", name] for name in dict.fromkeys(arguments.models.split(","))]
    if arguments.zero:
        stages = [["--train.zero_stage", str(stage)] for stage in integers("--zero", arguments.zero, minimum=0)]
    return [load([*settings, *model, *stage], PROG) for model in models for stage in stages]


def _check_data_and_networks(configs: Sequence[Config]) -> str | None:
    """Open the dataset and create every network once, to fail before the first case starts.

    Returns:
        The dataset's version; None if the nodes have to join or copy the data first.
    """
    from brain_dist.networks.create import create_network
    from brain_dist.store.access import open_data

    data, classes, version = configs[0].data, 2, None
    if not data.sources and "://" not in data.shards:
        dataset = open_data(dataclasses.replace(data, cache_dir="off"), Path(configs[0].run.dir))
        if not len(dataset.rows("train")):
            raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
        classes, version = len(dataset.classes), dataset.version
    for model in {config.model.name: config.model for config in configs}.values():
        create_network(model, classes, seed=0, load_weights=False)
    return version


def _run_missing(cases: Sequence[Case], launcher: Launcher, folder: CaseFolder) -> Board:
    """Run the cases without a complete profile; return the board with the state of all cases."""
    with case_board(cases) as board:
        for case in cases:
            profile: dict[str, Any] | None = folder.read_profile(case)
            if profile:
                board.update(case.name, "kept", result=rate_text(profile))
        missing = [case for case in cases if board.state[case.name] == "waiting"]
        print(f"{launcher.note}: {len(cases)} cases, {board.ended()} kept", file=sys.stderr, flush=True)
        try:
            launcher.run(missing, folder, board)
        except KeyboardInterrupt:
            kept = f"{board.ended() - len(board.failed)} of {len(cases)} cases are kept"
            print(f"interrupted: {kept}; the same command runs the others", file=sys.stderr)
            raise
    return board
