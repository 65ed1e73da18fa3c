"""Start a training: find the ranks, open the data, join the process group, create all parts of the loop and run it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.checkpoints.choice import weights_file
from brain_dist.checkpoints.evaluations import Evaluations
from brain_dist.common.progress import show_activity
from brain_dist.config import Config, ModelConfig
from brain_dist.errors import EXIT_PREEMPTED, Fault, UserError
from brain_dist.inference.network import write_contract
from brain_dist.networks.create import create_network, print_ignored
from brain_dist.ranks.device import choose_device, choose_kernels
from brain_dist.ranks.group import clear_faults, gather_objects, process_group, run_on_main
from brain_dist.ranks.rendezvous import LONGEST_STEP
from brain_dist.ranks.stopping import StepAgreement, StopRequest
from brain_dist.ranks.threads import choose_threads
from brain_dist.ranks.watch import Watch, watch_ranks
from brain_dist.ranks.world import World, discover
from brain_dist.store.access import check_shards, open_data
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batches import training_batches, with_loader
from brain_dist.tracking import attempts
from brain_dist.tracking.run_folder import Choices, describe_run, lock_run_folder, write_run_files
from brain_dist.tracking.tracker import Tracker
from brain_dist.training.engine import Engine
from brain_dist.training.loop import Trainer
from brain_dist.training.precision import resolve_precision
from brain_dist.training.restoring import restore
from brain_dist.training.resume import advice, resume_step, saved_precision, settings_to_match
from brain_dist.training.saving import Saver
from brain_dist.training.schedule import Schedule

if TYPE_CHECKING:
    import torch


def run_training(config: Config, stop_request: StopRequest, command: Sequence[str]) -> int:
    """Train on this rank, resuming from the run's newest checkpoint. Returns the exit code.

    Args:
        config: the run's configuration.
        stop_request: whether this process received a stop signal.
        command: the command line, recorded in the run's folder.

    Raises:
        UserError: a setting, the shards or the run's folder can't be used.
        Fault: another rank was lost, the disk is full, or training diverged.
    """
    world = discover()
    timeout = config.train.timeout
    with watch_ranks(world, timeout) as watch, _clear_faults(config, watch), ExitStack() as starting:
        starting.enter_context(show_activity("starting", enabled=world.is_main))
        dataset = _open_data(config, watch)
        device = choose_device(world, config.run.device)
        config = with_loader(config, device)
        watch.worker_processes = config.data.loader == "torch"
        choose_kernels(deterministic=config.run.deterministic)
        with process_group(world, device, timeout, watch, loading_threads=config.data.threads):
            watch.report_progress("starting", LONGEST_STEP)
            trainer = _prepare(config, dataset, world, device, watch, stop_request, command)
            starting.close()
            code = trainer.run() if trainer else 0
            if code == 0:
                run_on_main(world, lambda: write_contract(config.run.path))
            if code == EXIT_PREEMPTED:
                # leave together: srun ends all ranks when the first one leaves, but the main rank may still log to W&B
                watch.report_progress("leaving")
                gather_objects(None, world)
            return code


def _open_data(config: Config, watch: Watch) -> Dataset:
    watch.report_progress("opening the shards", math.inf)  # to copy or join them may take long
    dataset = open_data(config.data, Path(config.run.dir))
    if not len(dataset.rows("train")):
        raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
    if config.train.best and not len(dataset.rows("val")):
        raise UserError(
            f"train.best={config.train.best} needs a validation split, but {dataset.root} has none; rebuild it with"
            " other --fractions, or unset train.best"
        )
    return dataset


def _prepare(
    config: Config, dataset: Dataset, world: World, device: torch.device,
    watch: Watch, stop_request: StopRequest, command: Sequence[str],
) -> Trainer | None:  # fmt: skip
    """Lock the run's folder and create everything that the loop uses; None if training is already complete."""
    run, checkpoints, train = config.run.path, config.run.path / "checkpoints", config.train
    run_on_main(world, lambda: check_shards(dataset, np.concatenate([dataset.rows("train"), dataset.rows("val")])))
    lock_run_folder(run, world)
    config, reason = resolve_precision(config, world, device, saved_precision(checkpoints, world))
    choices = Choices(choose_threads(world, config.data.threads), reason)
    settings = settings_to_match(config, dataset.version, world.size)
    checkpoint_step = resume_step(config, checkpoints, settings, world)
    first_step = checkpoint_step or 0
    schedule = Schedule.of(config, dataset)
    evaluations = Evaluations.resume(run, train.best, train.patience, step=first_step, world=world)
    # the run may have been interrupted between its last checkpoint and the evaluation of that step
    evaluation_missed = schedule.evaluation_due(first_step) and not evaluations.has_step(first_step)
    if evaluations.patience_exhausted or (first_step == schedule.total_steps and not evaluation_missed):
        if world.is_main:
            print(f"training in {run} is already complete; {advice(run)}", file=sys.stderr)
        return None
    run_on_main(world, lambda: attempts.begin(run, first_step))

    model = config.model if checkpoint_step is not None else _find_weights(config.model, world)
    print_ignored(model)
    network = create_network(model, len(dataset.classes), seed=config.run.seed, load_weights=checkpoint_step is None)
    engine = Engine(config, network, world, device, frozen_steps=schedule.frozen_steps)
    if checkpoint_step is not None:
        restore(checkpoints, checkpoint_step, engine)
    run_on_main(world, lambda: write_run_files(config, dataset, world, device, engine.parameters, command, choices))
    batches = training_batches(config, dataset, world, device, first_step=first_step)
    saver = Saver(checkpoints, engine, settings, evaluations, keep=train.keep)
    return Trainer(
        config=config,
        dataset=dataset,
        schedule=schedule,
        first_step=first_step,
        evaluation_missed=evaluation_missed,
        summary=describe_run(
            config,
            dataset,
            world,
            device,
            engine.parameters,
            choices,
            first_step=first_step,
            total_steps=schedule.total_steps,
        ),
        engine=engine,
        batches=batches,
        agreement=StepAgreement(world, stop_request, run, delay=int(device.type == "cuda")),
        saver=saver,
        evaluations=evaluations,
        tracker=Tracker(config, run, first_step=first_step, total_steps=schedule.total_steps, enabled=world.is_main),
        watch=watch,
    )


def _find_weights(model: ModelConfig, world: World) -> ModelConfig:
    """Replace ``model.weights`` by the file that it means, if it is the folder of a run or of a checkpoint."""
    file = model.weights

    def find() -> None:
        nonlocal file
        if file and Path(file).is_dir():
            file = str(weights_file(Path(file)))
            print(f"initial weights: {file}", file=sys.stderr, flush=True)

    run_on_main(world, find)
    return replace(model, weights=gather_objects(file, world)[0])


@contextmanager
def _clear_faults(config: Config, watch: Watch) -> Iterator[None]:
    """Turn a lost connection, a full memory and an unusable disk into a :class:`Fault` of one line."""
    advice = (
        f"lower train.micro_batch={config.train.micro_batch} (train.global_batch may stay), lower data.size, or set"
        " model.grad_checkpointing=true"
    )
    try:
        with clear_faults(advice, watch):
            yield
    except OSError as error:
        file = error.filename or config.run.path
        raise Fault(f"{file} could not be used while {watch.activity}: {error.strerror or error}") from error
