"""Run a scaling experiment: check its settings, start what is missing, write table, plot and rows."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from brain_dist.config import Config, load, to_dict
from brain_dist.errors import Fault, UserError

EXPERIMENT, PARQUET, PAGE, PLOT = "experiment.json", "scaling.parquet", "scaling.md", "scaling.png"
PROG = "brain-dist scaling run"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{PROG} --help` lists every option")


def _options() -> argparse.ArgumentParser:
    made = _Parser(prog=PROG, description=(__doc__ or "").split("\n\n")[1], add_help=False, allow_abbrev=False)
    made.add_argument("--nodes", default="1,2", help="numbers of nodes (default: 1,2)")
    made.add_argument("--per-node", type=int, metavar="K", help="ranks a node (default: one a GPU, else one)")
    made.add_argument("--mode", choices=("weak", "strong", "both"), default="both",
                      help="weak: the global batch grows with the ranks; strong: it stays, micro-batches shrink where"
                           " they must (default: both). train.global_batch is that of the fewest ranks")  # fmt: skip
    made.add_argument("--models", metavar="A,B", help="timm's names (default: model.name)")
    made.add_argument("--zero", metavar="0,2", help="ZeRO stages (default: train.zero_stage)")
    made.add_argument("--steps", type=int, default=20, help="steps each measurement takes (default: 20)")
    made.add_argument("--repeats", type=int, default=3, help="times that every case is measured (default: 3)")
    made.add_argument("--where", choices=("auto", "local", "slurm"), default="auto",
                      help="auto: in the SLURM allocation around this process, by sbatch where this machine belongs to"
                           " a cluster (SBATCH_PARTITION and its like choose the queue), else here")  # fmt: skip
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the experiment")
    return made


def run_experiment(argv: Sequence[str]) -> int:
    """``run``: settle every case, run those that are not done, write the table, the plot and the rows."""
    options = _options()
    if {"-h", "--help"} & set(argv):
        print(options.format_help() + "\nand every setting of a run:\n")
        load(["--help"], PROG, "Measure how a training step speeds up over nodes.")
    given, rest = options.parse_known_args(list(argv))
    nodes = _numbers(given.nodes, "--nodes", least=1)
    for name in ("per_node", "steps", "repeats"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: needs at least 1")
    bases = _bases(given, rest)

    from brain_dist.scalability.board import Board
    from brain_dist.scalability.cases import MODES, plan
    from brain_dist.scalability.jobs import find_place, profile_of, run_all

    place = find_place(given.where, given.per_node, nodes, bases[0].run.device)
    modes = [mode for mode in MODES if given.mode in (mode, "both")]
    cases = plan(bases, nodes=nodes, per_node=place.per_node, modes=modes, repeats=given.repeats)
    version = _check(bases)
    folder = given.out / "cases"
    _claim(given.out, {
        "nodes": nodes, "per_node": place.per_node, "modes": modes, "steps": given.steps,
        "repeats": given.repeats, "where": place.kind, "dataset_version": version,
        "settings": [to_dict(base) for base in bases],
    })  # fmt: skip
    with Board(cases) as board:
        for case in cases:
            if found := profile_of(case, folder):
                board.tell(case, "kept", rate=found["images_per_s"])
        left = [case for case in cases if board.state[case.name] == "waiting"]
        print(f"{place.note}: {len(cases)} cases, {len(cases) - len(left)} kept", file=sys.stderr, flush=True)
        try:
            run_all(left, place, folder, given.steps, board)
        except KeyboardInterrupt:
            kept = f"{board.ended() - len(board.failed)} of {len(cases)} cases are kept"
            print(f"interrupted: {kept}; the same command goes on with the rest", file=sys.stderr)
            raise
    command = f"python -m brain_dist.scaling run {shlex.join(argv)}"
    _write(given.out, [(case, found) for case in cases if (found := profile_of(case, folder))], command, place.note,
           {case.name: board.note[case.name] for case in board.failed})  # fmt: skip
    if board.failed:
        raise Fault(f"{len(board.failed)} of {len(cases)} cases failed, first {board.failed[0].name}:"
                    f" {board.note[board.failed[0].name]}; logs are in {folder}")  # fmt: skip
    return 0


def _numbers(text: str, option: str, *, least: int) -> list[int]:
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise UserError(f"{option} {text}: needs whole numbers, such as 1,2,4") from None
    if found[0] < least:
        raise UserError(f"{option} {text}: needs at least {least}")
    return found


def _bases(given: argparse.Namespace, rest: Sequence[str]) -> list[Config]:
    """The checked settings of every model at every stage."""
    models = [["--model.name", name] for name in dict.fromkeys(given.models.split(","))] if given.models else [[]]
    stages = [["--train.zero_stage", str(z)] for z in _numbers(given.zero, "--zero", least=0)] if given.zero else [[]]
    return [load([*rest, *model, *stage], PROG) for model in models for stage in stages]


def _check(bases: Sequence[Config]) -> str | None:
    """What every case would trip over: data and networks. The dataset's version, None where only the nodes can tell."""
    from brain_dist.networks.create import create_network
    from brain_dist.store.access import open_data

    data, classes, version = bases[0].data, 2, None
    if not data.sources and "://" not in data.shards:  # what has to be joined or copied is the nodes' work
        dataset = open_data(dataclasses.replace(data, cache_dir="off"), Path(bases[0].run.dir))
        if not len(dataset.rows("train")):
            raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
        classes, version = len(dataset.classes), dataset.version
    for name in dict.fromkeys(base.model.name for base in bases):
        one = next(base for base in bases if base.model.name == name)
        create_network(one.model, classes, seed=0, load_weights=False)
    return version


def _claim(out: Path, experiment: dict[str, Any]) -> None:
    """Make the folder, or refuse one that holds another experiment."""
    file = out / EXPERIMENT
    experiment = json.loads(json.dumps(experiment))
    if not file.is_file():
        try:
            out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(experiment, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
        return
    try:
        before = json.loads(file.read_text())
    except ValueError:
        raise UserError(f"{file} is not valid JSON; choose another --out") from None
    if before != experiment:
        told = _difference(before, experiment, "")
        raise UserError(f"{out} holds another experiment ({told}); choose another --out, or give its own settings")


def _difference(before: Any, now: Any, name: str) -> str:
    """The first setting in which two experiments differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    if isinstance(before, list) and isinstance(now, list) and name == "settings" and len(before) == len(now):
        return next(_difference(a, b, "") for a, b in zip(before, now, strict=True) if a != b)
    if name == "settings":
        return "its models and ZeRO stages are others"
    return f"its {name} is {before}, now it is {now}"


def _write(out: Path, found: Sequence[Any], command: str, note: str, failed: dict[str, str]) -> None:
    """The page, and where anything was measured the rows and the plot; the page on stdout too, as tables."""
    from brain_dist.scalability import plot, results

    rows = [results.row(case, profile) for case, profile in found]
    curves = results.curves(rows)
    page = results.markdown(curves, command=command, note=note, plot=PLOT, failed=failed)
    (out / PAGE).write_text(page)
    written = [out / PAGE]
    if rows:
        results.write(out / PARQUET, rows)
        plot.draw(curves, out / PLOT)
        written += [out / PARQUET, out / PLOT]
    results.show(curves)
    print(f"wrote {', '.join(map(str, written))}")
