"""Explain runs: choose images, make and measure maps, write tables and pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.common.files import check_writable, write_together
from brain_dist.common.progress import Progress, show_progress
from brain_dist.errors import Fault, UserError
from brain_dist.explaining.images import choose_images
from brain_dist.explaining.measure import Measured, agreement, measure
from brain_dist.explaining.methods import check_methods
from brain_dist.explaining.page import render
from brain_dist.explaining.record import FOLDER, PAGE
from brain_dist.explaining.shap import SAMPLES
from brain_dist.explaining.summary import agree, summarise
from brain_dist.explaining.tables import markdown, print_summary, rows_parquet
from brain_dist.judging.predictions import Predictions, read_predictions

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun


def explain(
    runs: list[Path],
    *,
    methods: str,
    name: str = "test",
    shards: str | None = None,
    limit: int = 200,
    out: Path | None = None,
    samples: int = SAMPLES,
    perturb: bool = True,
    seed: int = 0,
    micro_batch: int = 32,
    device: str = "auto",
) -> None:
    """Explain the images of a predictions table by each run, measure the maps, and write what came out.

    Each run's folder gets explanations/NAME.parquet, NAME.json and NAME.md, and report/explanations.html.

    Args:
        runs: folders of runs with the predictions NAME of the same shards. With several, their maps are compared.
        methods: methods, separated by commas.
        name: name of the predictions.
        shards: where the shards of the predictions are now; None is where they were.
        limit: most images; they are of as many patients as possible.
        out: folder of all files; None is the run's. With several runs it gets a folder for each.
        samples: samples of GradientSHAP per image.
        perturb: whether to measure insertion and deletion, which take most of the time.
        seed: seed of all draws.
        micro_batch: images per forward pass.
        device: auto, cpu or cuda.

    Raises:
        UserError: an option or a run that does not fit, or a folder that is not writable.
        Fault: the disk is full.
    """
    import torch

    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.world import discover

    chosen = check_methods(methods)
    for option, number in (("--batch", micro_batch), ("--samples", samples)):
        if number < 1:
            raise UserError(f"{option} {number}: must be ≥ 1")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be ≥ 0")
    places = _places(runs, out)
    target = choose_device(discover({}), device)
    if target.type == "cuda":  # the same command gives the same bytes
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    opened = [_open(run, name, shards, str(target)) for run in runs]
    first, table = opened[0]
    for run, (loaded, other) in zip(runs[1:], opened[1:], strict=True):
        _check_comparable(run, loaded, other, first, table)
    positions, masks, outside = choose_images(first, table, limit)
    if masks is None and not perturb:
        raise UserError("--skip-perturbation leaves no measure: the shards have no boxes or masks of tumours; omit it")
    rows = table.row[positions]
    settings = {"samples": samples, "perturb": perturb, "seed": seed, "micro_batch": micro_batch}
    results = []
    for loaded, other in opened:
        with show_progress() as progress:  # of each run, so that the time left is right
            results.append(_measure(loaded, other, rows, masks, chosen, progress, **settings))
    names = [str(run) for run in runs]
    for number, (place, measured) in enumerate(zip(places, results, strict=True)):
        summary = summarise(measured) | {"name": name, "seed": seed, "outside": outside}
        for method in chosen if len(runs) > 1 else []:
            others = {names[k]: agreement(measured, each, method) for k, each in enumerate(results) if k != number}
            summary["agreement"][method] = agree(measured, others)
        page = _write(place, name, measured, summary)
        print_summary(summary, f"{names[number]}, {name}, {summary['images']:,} images of {summary['groups']:,} groups")
        if outside:
            print(f"left out: {outside:,} images whose tumour lies outside the network's input")
        print(f"explanations: {place[0] / f'{name}.parquet'}\npage: {page}")


def _places(runs: list[Path], out: Path | None) -> list[tuple[Path, Path]]:
    """The folders of the tables and of the page of each run."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice")
    if out is None:
        places = [(run / FOLDER, run / "report") for run in runs]
    elif len(runs) == 1:
        places = [(out, out)]
    else:
        places = [(out / run.resolve().name, out / run.resolve().name) for run in runs]
        if len(set(places)) < len(places):
            raise UserError("--out: two runs have the same name; remove --out")
    for folder in {folder for place in places for folder in place}:
        if folder.is_symlink():  # a run from someone else could lead to any folder
            raise UserError(f"{folder} is a symbolic link; remove it, or choose another folder with --out")
        check_writable(folder, "choose another folder with --out")
    return places


def _open(run: Path, name: str, shards: str | None, device: str) -> tuple[LoadedRun, Predictions]:
    """The run at the step of its predictions, and these without images that training knew."""
    from brain_dist.inference.run import load_run

    table = read_predictions(run / "predictions" / f"{name}.parquet").headline
    if table.adopted is not None:
        raise UserError(
            f"{run}: the predictions {name} were adopted from a file; only those of a network can be explained"
        )
    loaded = load_run(run, step=table.step, shards=shards or table.shards, device=device)
    if loaded.dataset.version != table.dataset_version:
        raise UserError(
            f"{loaded.dataset.root} was rebuilt since {run} was evaluated; evaluate it again, or add --shards FOLDER"
        )
    return loaded, table


def _check_comparable(run: Path, loaded: LoadedRun, other: Predictions, first: LoadedRun, table: Predictions) -> None:
    """Whether the maps of two runs are of the same pixels.

    Raises:
        UserError: they are not.
    """
    data, own = loaded.config.data, first.config.data
    problem = ""
    if other.dataset_version != table.dataset_version:
        problem = "predictions of other shards"
    elif other.classes != table.classes:
        problem = "other classes"
    elif (data.size, data.head_crop) != (own.size, own.head_crop):
        problem = "another data.size or data.head_crop"
    elif not np.isin(table.row, other.row).all():
        problem = "predictions of other images"
    if problem:
        raise UserError(f"{run} has {problem} than {first.path}; explain them one by one")


def _measure(
    loaded: LoadedRun, table: Predictions, rows: np.ndarray, masks: list[np.ndarray] | None, methods: list[str],
    progress: Progress, *, micro_batch: int, **settings: Any,
) -> Measured:  # fmt: skip
    """:func:`measure` of these rows of a predictions table."""
    from brain_dist.ranks.group import clear_faults

    part = table.take(np.searchsorted(table.row, rows))
    stacked = None if masks is None else np.stack(masks)
    with clear_faults(f"lower --batch {micro_batch}"):
        return measure(loaded, part, stacked, methods, micro_batch=micro_batch, progress=progress, **settings)


def _write(place: tuple[Path, Path], name: str, measured: Measured, summary: dict[str, Any]) -> Path:
    """Write all files of a run; returns the page's."""
    folder, page = place[0], place[1] / PAGE
    files: dict[Path, bytes | str] = {
        folder / f"{name}.parquet": rows_parquet(measured),
        folder / f"{name}.json": json.dumps(summary, indent=1) + "\n",
        folder / f"{name}.md": markdown(summary),
        page: render(measured, summary),
    }
    try:
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_together(files)
    except OSError as error:
        raise Fault(f"{folder} cannot be written ({error.strerror}); choose another folder with --out") from None
    return page
