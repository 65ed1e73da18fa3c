"""Predict files on any number of ranks, each file exactly once, into one table.

The list of files is divided into parts that do not depend on the number of ranks, and images are batched within a part,
so the table has the same bytes on any number of ranks. A rank writes each of its parts when it is done, into a folder
beside the table; `--resume` skips these. At the end the main rank joins them. Ranks agree through torch; one process
with an ONNX export does not import it.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brain_dist.common.files import check_writable, sha256_bytes, sha256_file, write_atomically, writing
from brain_dist.common.progress import Progress, no_progress, show_progress
from brain_dist.common.records import read_record
from brain_dist.common.text import print_list
from brain_dist.errors import EXIT_USER, Fault, UserError
from brain_dist.ood.record import FILE
from brain_dist.prediction import table
from brain_dist.prediction.answers import Prediction
from brain_dist.prediction.maps import write_map
from brain_dist.prediction.model import model_folder
from brain_dist.prediction.predictor import Predictor, file_load, load
from brain_dist.prediction.reading import Choose, parse_slices
from brain_dist.prediction.sources import Source, find_sources
from brain_dist.ranks.device import choose_device, require_torch
from brain_dist.ranks.group import clear_faults, gather_objects, process_group, run_on_main
from brain_dist.ranks.threads import choose_threads, limit_torch
from brain_dist.ranks.watch import Watch, check_timeout, watch_ranks
from brain_dist.ranks.world import World, discover
from brain_dist.stream.contract import Contract

EXIT_PARTLY = 3  # some files could not be predicted
MAX_PARTS = 1000
# writes reports about all files from their predictions; returns how many files have none
Reports = Callable[[Sequence[Source], Sequence[Prediction], Contract], int]


@dataclass(frozen=True)
class _Task:
    """What all ranks predict together."""

    predictor: Predictor
    sources: list[Source]
    choose: Choose
    batch: int
    explain: Path | None

    @property
    def per_part(self) -> int:
        """Files in a part: a multiple of the batch that gives at most ``MAX_PARTS``."""
        return self.batch * max(1, math.ceil(len(self.sources) / (self.batch * MAX_PARTS)))

    @property
    def parts(self) -> list[range]:
        """The positions of the files of each part."""
        count, step = len(self.sources), self.per_part
        return [range(start, min(start + step, count)) for start in range(0, count, step)]

    def predictions(self, part: Iterable[int]) -> Iterable[Prediction]:
        """The predictions of the files at these positions, whose maps are written as well."""
        contract = self.predictor.contract
        files = ((self.sources[n].name, file_load(self.sources[n], contract, self.choose)) for n in part)
        for prediction in self.predictor.stream(files, batch=self.batch):
            if self.explain is not None and prediction.image is not None:
                with writing(self.explain):
                    write_map(self.explain, prediction, self.predictor.model)
            yield prediction


def predict(
    model: Path,
    paths: Sequence[str],
    *,
    out: Path | None = None,
    step: int | str | None = None,
    micro_batch: int = 32,
    device: str = "auto",
    slices: str = "all",
    explain: Path | None = None,
    fail_fast: bool = False,
    resume: bool = False,
    timeout: float = 600.0,
    reports: Reports | None = None,
) -> int:
    """Predict files, and write or print the predictions. Every rank must call.

    Args:
        model: the folder of a run or of an export.
        paths: files, folders, patterns, archives, or ``-`` for a list on standard input.
        out: the table to write, .csv, .json or .parquet; None prints one line per prediction.
        step: see :func:`brain_dist.prediction.predictor.load`.
        micro_batch: images per forward pass.
        device: auto, cpu or cuda.
        slices: which slices of a file with several: all, middle, or FIRST:END.
        explain: folder for a map of each prediction, of what the network looked at.
        fail_fast: stop at the first file that cannot be predicted.
        resume: keep what an interrupted call with the same arguments has finished.
        timeout: seconds without progress after which the ranks end and report the one that is stuck.
        reports: called at the end, on the first rank, unless ``fail_fast`` stopped the prediction.

    Returns:
        Exit code: 0; 3 if some files could not be predicted; 2 if none could.

    Raises:
        UserError: an option does not fit, no file is found, or the model or the table cannot be used.
        Fault: a rank was lost, or the disk is full.
    """
    choose = parse_slices(slices)
    if micro_batch < 1:
        raise UserError(f"--batch {micro_batch}: must be ≥ 1")
    check_timeout(timeout)
    world = discover()
    _check_options(out, paths, resume, world)
    with (
        clear_faults(f"lower --batch {micro_batch}"),
        watch_ranks(world, timeout) as watch,
        nullcontext() if world.size == 1 else process_group(world, choose_device(world, device), timeout, watch),
    ):
        watch.report_progress("listing the files", math.inf)
        listed: list[Source] = []

        def prepare() -> None:
            if out is not None:
                if out.is_dir():
                    raise UserError(f"--out {out}: is a folder; give the name of a file")
                check_writable(out.parent, "choose another place")
            if explain is not None:
                check_writable(explain, "choose another folder with --explain")
            listed.extend(find_sources(_words(paths)))
            if not listed:
                raise UserError("standard input lists no files")

        run_on_main(world, prepare)
        entries = gather_objects([[each.path, each.member, each.problem] for each in listed], world)[0]
        watch.report_progress("opening the model", math.inf)
        predictor = load(model, step=step, device=device)
        limit_torch(choose_threads(world).count)
        weights = predictor.contract.weights
        if len(set(gather_objects(weights and weights.sha256, world))) > 1:
            raise Fault(f"{model} saved another checkpoint while its ranks opened it; choose one with --step")
        task = _Task(predictor, [Source(*entry) for entry in entries], choose, micro_batch, explain)
        if out is None:
            return _print(task, fail_fast, reports)
        request = _request(task, model, slices)
        folder = out.with_name(f"{out.name}.parts")
        run_on_main(world, lambda: _begin(folder, request, resume))
        with show_progress() if world.is_main else nullcontext(no_progress) as progress:
            failed = _predict_parts(task, folder, world, fail_fast, progress, watch)
        watch.report_progress("waiting for the other ranks", math.inf)  # whose files may be larger
        stopped = [line for line in gather_objects(failed, world) if line]
        if stopped:
            if world.is_main:
                print(f"brain-dist: stopped at {stopped[0]}", file=sys.stderr)
            return EXIT_PARTLY
        codes: list[int] = []
        watch.report_progress("writing the table", math.inf)
        run_on_main(world, lambda: codes.append(_finish(task, folder, out, request, reports)))
        return int(gather_objects(codes, world)[0][0])


def _check_options(out: Path | None, paths: Sequence[str], resume: bool, world: World) -> None:
    if out is not None:
        table.check_format(out)
    elif world.size > 1 or resume:
        raise UserError(
            f"{'--resume' if resume else 'a prediction on several ranks'} needs a table; add --out FILE.csv"
        )
    if world.size == 1:
        return
    if "-" in paths:
        raise UserError("a list on standard input is for one process; several ranks need the paths as arguments")
    require_torch("a prediction on several ranks", "start one process")


def _words(paths: Sequence[str]) -> Iterable[str]:
    """The paths, with those that standard input lists in the place of ``-``."""
    for path in paths:
        if path == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield path


def _request(task: _Task, model: Path, slices: str) -> dict[str, Any]:
    """What decides the table and the pictures: an interrupted prediction can only be resumed with the same."""
    contract = task.predictor.contract
    weights = contract.weights
    names = json.dumps([[each.path, each.member] for each in task.sources])
    return {
        "schema": table.SCHEMA,
        "model": str(model),
        "step": None if weights is None else weights.step,
        "weights": None if weights is None else weights.sha256,
        "contract": sha256_bytes(contract.to_json().encode()),
        "detector": None if task.predictor.model.detector is None else sha256_file(model_folder(model) / FILE),
        "slices": slices,
        "batch": task.batch,
        "explain": None if task.explain is None else str(task.explain),
        "files": len(task.sources),
        "list": sha256_bytes(names.encode()),
    }


def _begin(folder: Path, request: dict[str, Any], resume: bool) -> None:
    """Create the folder of the parts, or check that the one of an interrupted prediction fits."""
    file = folder / "request.json"
    if resume and file.is_file():
        try:
            earlier = read_record(file, "")
        except UserError:
            earlier = {}
        different = sorted(name for name in request if earlier.get(name) != request[name])
        if different:
            raise UserError(
                f"--resume: {folder} is of a prediction with another {', '.join(different)}; remove --resume to"
                " begin again"
            )
        return
    if folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link; remove it")
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(file, json.dumps(request, indent=1) + "\n")


def _part_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def _predict_parts(
    task: _Task, folder: Path, world: World, fail_fast: bool, progress: Progress, watch: Watch
) -> str | None:
    """Predict this rank's parts; with ``fail_fast``, the first file that cannot be predicted is returned."""
    parts, classes = task.parts, task.predictor.contract.classes
    own = range(world.rank, len(parts), world.size)
    total, done = sum(len(parts[number]) for number in own), 0
    for number in own:
        watch.report_progress("predicting")
        if not _part_file(folder, number).is_file():
            rows = []
            for prediction in task.predictions(parts[number]):
                watch.report_progress("predicting")
                if fail_fast and prediction.error is not None:
                    return str(prediction)
                rows.append(table.row(prediction, classes))
            with writing(folder, "free some space, and run again with --resume"):
                write_atomically(_part_file(folder, number), json.dumps(rows, allow_nan=False))
        done += len(parts[number])
        progress("predicting", done, total)
    return None


def _finish(task: _Task, folder: Path, out: Path, request: dict[str, Any], reports: Reports | None) -> int:
    """Join all parts into the table and remove their folder; returns the exit code.

    Raises:
        Fault: a part is missing, or does not have the predictions of all of its files in their order.
    """
    rows: list[table.Row] = []
    for number, part in enumerate(task.parts):
        path = _part_file(folder, number)
        try:
            own = json.loads(path.read_bytes())
            names = [row[0] for k, row in enumerate(own) if k == 0 or row[0] != own[k - 1][0]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise Fault(f"{path} cannot be read ({error}); remove it and run again with --resume") from None
        if names != [task.sources[n].name for n in part]:
            raise Fault(f"{path} does not have the predictions of its files; remove it and run again with --resume")
        rows += own
    about = {name: request[name] for name in ("model", "step", "weights")}
    classes = task.predictor.contract.classes
    with writing(out, "free some space, and run again with --resume"):
        write_atomically(out, table.encode(out, rows, classes, about))
    shutil.rmtree(folder, ignore_errors=True)
    predictions = [table.prediction_of(row, classes) for row in rows]
    good = sum(each.error is None for each in predictions)
    print(f"{good:,} predictions of {len(task.sources):,} files: {out}")
    return _conclude(task, predictions, reports, out.with_name(f"{out.name}.failed.txt"))


def _print(task: _Task, fail_fast: bool, reports: Reports | None) -> int:
    """Print a line for each prediction; returns the exit code."""
    predictions = []
    for prediction in task.predictions(range(len(task.sources))):
        predictions.append(replace(prediction, image=None))
        if prediction.error is None:
            print(prediction, flush=True)
        elif fail_fast:
            return _list_failures(predictions, None)
    return _conclude(task, predictions, reports, None)


def _conclude(task: _Task, predictions: list[Prediction], reports: Reports | None, full_list: Path | None) -> int:
    """Write the reports if they are wanted, and list what could not be predicted; returns the exit code."""
    without_report = reports(task.sources, predictions, task.predictor.contract) if reports is not None else 0
    return _list_failures(predictions, full_list) or (EXIT_PARTLY if without_report else 0)


def _list_failures(predictions: list[Prediction], full_list: Path | None) -> int:
    """List on stderr what could not be predicted; returns the exit code."""
    failures = [each for each in predictions if each.error is not None]
    good = len(predictions) - len(failures)
    if not failures:
        return 0
    count = len(failures)
    print(f"brain-dist: {count:,} image{'s' * (count > 1)} could not be predicted:", file=sys.stderr)
    lines = [str(each) for each in failures]
    if full_list is None:
        print("\n".join(lines), file=sys.stderr)
    else:
        print_list(lines, full_list)
    return EXIT_PARTLY if good else EXIT_USER
