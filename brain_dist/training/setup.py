"""Prepare a training run: check the data, find the checkpoint to resume from, create all parts of the loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.networks.create import create_network
from brain_dist.ranks.group import run_on_main
from brain_dist.ranks.stopping import StepAgreement, StopRequest
from brain_dist.ranks.watch import Watch
from brain_dist.ranks.world import World
from brain_dist.store.access import check_shards
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batches import training_batches
from brain_dist.tracking import attempts
from brain_dist.tracking.evaluations import Evaluations
from brain_dist.tracking.run_folder import RunFacts, describe_run, lock_run_folder, write_run_files
from brain_dist.tracking.tracker import Tracker
from brain_dist.training.engine import Engine
from brain_dist.training.loop import Trainer
from brain_dist.training.restoring import restore
from brain_dist.training.resume import resume_step, settings_to_match
from brain_dist.training.saving import Saver
from brain_dist.training.schedule import Schedule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingJob:
    """What a training run is started with.

    Attributes:
        config: the run's configuration.
        dataset: the opened shards.
        world: this process among all processes.
        device: where this process computes.
        watch: reports what this rank is doing.
        stop_request: whether this process received a stop signal.
        command: the command line, recorded in the run's folder.
    """

    config: Config
    dataset: Dataset
    world: World
    device: torch.device
    watch: Watch
    stop_request: StopRequest
    command: Sequence[str]

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.config.run.path / "checkpoints"


@dataclass(frozen=True)
class _Start:
    """Where a training starts.

    Attributes:
        settings: the settings that must match on resume.
        checkpoint_step: step of the checkpoint to resume from; None to train from the start.
        schedule: what is due after each step.
        evaluations: the validation results up to that checkpoint.
    """

    settings: dict[str, Any]
    checkpoint_step: int | None
    schedule: Schedule
    evaluations: Evaluations

    @property
    def first_step(self) -> int:
        return self.checkpoint_step or 0

    @property
    def evaluation_missed(self) -> bool:
        """Whether the run was interrupted between its last checkpoint and the evaluation of that step."""
        return self.schedule.evaluation_due(self.first_step) and not self.evaluations.has_step(self.first_step)

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to train or evaluate."""
        trained = self.first_step == self.schedule.total_steps and not self.evaluation_missed
        return trained or self.evaluations.patience_exhausted


def prepare(job: TrainingJob) -> Trainer | None:
    """Lock the run's folder and create everything that the training loop uses. Every rank must call.

    Returns:
        None if training is already complete.

    Raises:
        UserError: a setting, the shards or the run's folder can't be used.
        Fault: all checkpoints are damaged, or SLURM restarts the job without progress.
    """
    config, dataset, world = job.config, job.dataset, job.world
    rows = np.concatenate([dataset.rows("train"), dataset.rows("val")])
    run_on_main(world, lambda: check_shards(dataset, rows))
    lock_run_folder(config.run.path, world)
    start = _find_start(job)
    if start.is_complete:
        if world.is_main:
            print(f"training in {config.run.path} is already complete; choose another run.name", file=sys.stderr)
        return None
    run_on_main(world, lambda: attempts.begin(config.run.path, start.first_step))
    return _create_trainer(job, start)


def _find_start(job: TrainingJob) -> _Start:
    config, dataset, world = job.config, job.dataset, job.world
    settings = settings_to_match(config, dataset.version, world.size)
    checkpoint_step = resume_step(config, job.checkpoints, settings, world)
    schedule = Schedule.of(config, dataset)
    if config.train.best and not schedule.has_validation:
        raise UserError(
            f"train.best={config.train.best} needs a validation split, but {dataset.root} has none; rebuild it with"
            " other --fractions, or unset train.best"
        )
    evaluations = Evaluations.read_on_all_ranks(
        config.run.path, config.train.best, config.train.patience, up_to=checkpoint_step or 0, world=world
    )
    return _Start(settings, checkpoint_step, schedule, evaluations)


def _create_trainer(job: TrainingJob, start: _Start) -> Trainer:
    config, dataset, world = job.config, job.dataset, job.world
    first_step, total_steps = start.first_step, start.schedule.total_steps
    engine = _create_engine(job, start)
    facts = RunFacts(config, dataset, world, job.device, engine.parameters)
    run_on_main(world, lambda: write_run_files(facts, job.command))
    batches = training_batches(config, dataset, world, job.device, first_step=first_step)
    saver = Saver(job.checkpoints, engine, start.settings, keep=config.train.keep)
    saver.best = start.evaluations.best
    return Trainer(
        config=config,
        dataset=dataset,
        schedule=start.schedule,
        first_step=first_step,
        evaluation_missed=start.evaluation_missed,
        summary=describe_run(facts, first_step, total_steps),
        engine=engine,
        batches=batches,
        agreement=StepAgreement(world, job.stop_request, config.run.path),
        saver=saver,
        evaluations=start.evaluations,
        tracker=Tracker(config, config.run.path, first_step=first_step, total_steps=total_steps, enabled=world.is_main),
        watch=job.watch,
    )


def _create_engine(job: TrainingJob, start: _Start) -> Engine:
    """A new engine, with the state of the checkpoint if there is one."""
    config, step = job.config, start.checkpoint_step
    network = create_network(config.model, len(job.dataset.classes), seed=config.run.seed, load_weights=step is None)
    engine = Engine(config, network, job.world, job.device, frozen_steps=start.schedule.frozen_steps)
    if step is not None:
        restore(job.checkpoints, step, engine)
    return engine
