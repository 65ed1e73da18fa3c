"""Evaluate a run: predict a split, write the predictions table and its metrics, and print the metrics."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

from brain_dist.collection.spellings import SPLITS
from brain_dist.common.files import check_writable
from brain_dist.errors import Fault, UserError
from brain_dist.inference.known import compare_with_training
from brain_dist.inference.run import NO_TUMOUR, TUMOUR, load_run
from brain_dist.judging.evaluation import print_metrics, print_overlap, write_evaluation
from brain_dist.judging.predictions import predictions_file
from brain_dist.store.manifest import load_manifest

PATIENCE = 7200.0  # seconds that ranks wait for the one that compares other shards with the training images


def evaluate(
    run: Path,
    *,
    split: str = "test",
    step: int | str | None = None,
    shards: str | None = None,
    allow_known: bool = False,
    name: str | None = None,
    out: Path | None = None,
    micro_batch: int = 32,
    loader: Literal["dali", "opencv", "torch"] | None = None,
    device: str = "auto",
    cache_dir: str | None = None,
    timeout: float = 600.0,
) -> None:
    """Predict a split on all ranks. The main rank writes NAME.parquet and NAME.json, and prints the metrics.

    Args:
        run: the run's folder.
        split: train, val or test.
        step: see :func:`load_run`.
        shards: other shards than the run's own, which need a ``name``; or the run's own at another place.
        allow_known: count images that training knew in the headline: of ``shards``, or of a published test split.
        name: name of the output files; None is the split.
        out: folder of the output files; None is ``predictions`` in the run's folder.
        micro_batch: images per rank and forward pass.
        loader: dali, opencv, torch, or None for the run's own.
        device: auto, cpu or cuda.
        cache_dir: see :func:`load_run`.
        timeout: seconds without progress after which the evaluation ends and reports the rank that is stuck.

    Raises:
        UserError: the options do not fit together, or the folder is not writable.
        Fault: another rank ended, or the memory of the device is full.
        UserError, Fault: as :func:`load_run`, :func:`compare_with_training` and :meth:`LoadedRun.predict`.
    """
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import clear_faults, process_group, run_on_main
    from brain_dist.ranks.rendezvous import LONGEST_STEP
    from brain_dist.ranks.watch import check_timeout, watch_ranks
    from brain_dist.ranks.world import discover

    if name in SPLITS and name != split:
        raise UserError(f"--name {name}: these are the predictions of split {name}; choose another --name")
    if micro_batch < 1:
        raise UserError(f"--batch {micro_batch}: must be ≥ 1")
    check_timeout(timeout)
    path = predictions_file(out or run / "predictions", split if name is None else name)
    world = discover()
    torch_device = choose_device(world, device)
    with (
        clear_faults(f"lower --batch {micro_batch}"),
        watch_ranks(world, timeout) as watch,
        process_group(world, torch_device, PATIENCE, watch),
    ):
        watch.report_progress("opening the run", math.inf)  # to copy its shards may take long
        run_on_main(world, lambda: check_writable(path.parent, "choose another folder with --out"))
        loaded = load_run(
            run, step=step, shards=shards, loader=loader, device=str(torch_device), cache_dir=cache_dir, world=world
        )
        if loaded.dataset.version != loaded.trained_version and name in (None, *SPLITS):
            raise UserError(
                "--shards needs a --name other than train, val and test, which are the run's own predictions"
            )
        rows = loaded.rows(split)
        overlap: dict[str, Any] = {}
        watch.report_progress("comparing the images with those of the training", math.inf)
        compare = partial(compare_with_training, loaded, rows, allow_known=allow_known)
        run_on_main(world, lambda: overlap.update(compare()))
        predictions = loaded.predict(split, micro_batch=micro_batch, world=world, watch=watch)
        watch.report_progress("writing the predictions", LONGEST_STEP)
        if world.is_main:
            predictions = dataclasses.replace(predictions, **overlap)
            try:
                metrics = write_evaluation(path, predictions, rows)
            except OSError as error:
                raise Fault(f"{path} cannot be written ({error.strerror}); choose another folder with --out") from None
            print_metrics(metrics, f"{run}, {loaded.dataset.name}, {split} split, step {loaded.step}")
            if len(loaded.trained_classes) > len(loaded.dataset.classes):
                tumours = ", ".join(name for name in loaded.trained_classes if name != NO_TUMOUR)
                print(f"{TUMOUR}: the sum of the probabilities of {tumours}")
            kinds = [
                name for name in load_manifest(loaded.dataset.root)[0].classes if name not in loaded.dataset.classes
            ]
            if kinds:
                print(f"{TUMOUR}: {', '.join(kinds)}")
            print_overlap(predictions)
            print(f"predictions: {path}")
