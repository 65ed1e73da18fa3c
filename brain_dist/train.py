"""Train: ``python -m brain_dist.train --config configs/convnext_base.yaml --data.shards DIR``.

The same entry point alone, under torchrun, under deepspeed and under srun. Read :func:`fit` first: it is the whole
loop.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from brain_dist.config import Config, Metric, load
from brain_dist.errors import EXIT_PREEMPTED, Fault, UserError, leave

if TYPE_CHECKING:
    import torch

    from brain_dist.data.index import Dataset
    from brain_dist.dist import World
    from brain_dist.engine import Engine
    from brain_dist.examples import Example
    from brain_dist.loaders.batch import Batch
    from brain_dist.predictions import Predictions
    from brain_dist.preempt import Wish
    from brain_dist.watch import Watch


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, join the process group, train. Exit code 75 after a signal and a clean save."""
    from brain_dist.preempt import listening

    with listening() as wish:  # first of all: a signal may come at any moment
        return start(list(sys.argv[1:] if argv is None else argv), wish)


def start(arguments: list[str], wish: Wish) -> int:
    """:func:`main`, listening to signals."""
    # the deepspeed launcher appends it; the environment says it already
    arguments = [word for word in arguments if not word.startswith(("--local_rank", "--local-rank"))]
    config = load(
        arguments, "brain-dist train", "Train a classifier on shards. Every setting is a YAML key and a flag."
    )

    from brain_dist.data.access import open_data
    from brain_dist.dist import be_deterministic, choose_device, discover, gather_objects, lost_contact, process_group
    from brain_dist.watch import watching

    world = discover()
    dataset = open_data(config.data, Path(config.run.dir))
    if not len(dataset.rows("train")):
        raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
    device = choose_device(world, config.run.device)
    if config.run.deterministic:
        be_deterministic()
    timeout = config.train.timeout
    with process_group(world, device, timeout), watching(world, timeout) as watch:
        try:
            code = fit(config, dataset, world, device, wish, watch, command=["brain-dist", "train", *arguments])
            if code == EXIT_PREEMPTED:  # with the first rank that leaves, srun ends what the main one still tells W&B
                watch.at("leaving")
                gather_objects(None, world)
            return code
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            raise Fault(f"lost contact while {watch.where}: {watch.blame()}") from error
        except OSError as error:  # a full disk, a folder that can't be written to any more
            where = error.filename or config.run.path
            raise Fault(f"{where} could not be used while {watch.where}: {error.strerror or error}") from error


def fit(
    config: Config, dataset: Dataset, world: World, device: torch.device, wish: Wish, watch: Watch, *,
    command: list[str],
) -> int:  # fmt: skip
    """Train to the end, or to a signal; goes on by itself from the run's newest checkpoint."""

    from brain_dist import attempts, checkpoint, models, numerics, optim, resume, rundir
    from brain_dist.data.access import check_shards
    from brain_dist.data.plan import steps_per_epoch
    from brain_dist.early import Evaluations
    from brain_dist.engine import Engine
    from brain_dist.examples import examples
    from brain_dist.preempt import SAVE, STOP, Agreement
    from brain_dist.saving import Saver
    from brain_dist.tracking import Tracker

    train, run_path, root = config.train, config.run.path, config.run.path / "checkpoints"
    wanted = np.concatenate([dataset.rows("train"), dataset.rows("val")])
    checkpoint.together(world, lambda: check_shards(dataset, wanted))
    rundir.occupy(run_path, world)
    facts = resume.facts(config, dataset.version, world.size)
    found = resume.point(config, root, facts, world)
    first = found or 0
    per_epoch = steps_per_epoch(len(dataset.rows("train")), train.global_batch)
    total = per_epoch * train.epochs
    has_val = bool(len(dataset.rows("val")))
    if train.best and not has_val:
        raise UserError(f"train.best={train.best}: {dataset.root} has no validation split; rebuild it, or unset it")

    def evaluates(done: int) -> bool:
        """Whether the validation split is judged when ``done`` steps are."""
        scheduled = done % per_epoch == 0 and train.eval_every and done // per_epoch % train.eval_every == 0
        return bool(done and (scheduled or done == total) and has_val)

    seen = Evaluations.agreed(run_path, train.best, train.patience, up_to=first, world=world)
    owed = evaluates(first) and not seen.knows(first)  # interrupted after its save
    if (first == total and not owed) or seen.exhausted:
        if world.is_main:
            print(f"{run_path} is trained to its end; choose another run.name to train again", file=sys.stderr)
        return 0
    checkpoint.together(world, lambda: attempts.begin(run_path, first))

    model = models.create(config.model, len(dataset.classes), seed=config.run.seed, load_weights=found is None)
    engine = Engine(config, model, world, device, frozen_steps=per_epoch * train.freeze_epochs)
    if found is not None:
        checkpoint.load(root, found, engine)
    checkpoint.together(world, lambda: rundir.prepare(config, dataset, world, device, engine.parameters, command))

    batches = training_batches(config, dataset, world, device, first_step=first)
    agreement = Agreement(world, wish, run_path)
    saver = Saver(root, engine, facts, keep=train.keep)
    saver.best = seen.best
    tracker = Tracker(config, run_path, first_step=first, total_steps=total, enabled=world.is_main)

    def evaluate(done: int) -> None:
        values, predictions = validate(config, dataset, engine, world, device, watch, done)
        watch.at(f"telling of step {done}")
        shown: list[Example] = []
        if config.track.examples and tracker.shows_pictures:
            shown = examples(predictions, dataset, config, engine.finish, device)
        tracker.evaluation(done, "val", {"epoch": done / per_epoch, **values}, shown)
        seen.add(done, values)
        saver.best = seen.best

    with tracker:
        tracker.say(rundir.opening(config, dataset, world, device, engine.parameters, first, total))
        if owed:
            evaluate(first)
        clock = Clock(train.global_batch)
        for step in range(first, total):
            if seen.exhausted:
                tracker.say(f"stopped early: {train.patience} evaluations without a better {train.best}")
                break
            lr = optim.learning_rate(config.optim, step, per_epoch, train.epochs)
            watch.at(f"loading step {step}")
            micros = [next(batches) for _ in range(engine.micros)]
            watch.at(f"computing step {step}")
            share = engine.step(micros, lr)
            watch.at(f"waiting for the others after step {step}")
            agreed = agreement.after_step(share, writing=saver.pending, lost=saver.failed)
            saver.settle(pending=agreed.writing, failed=agreed.lost)
            if engine.skips.in_a_row >= train.skip_limit:
                numerics.give_up(run_path, step, engine.skips, micros, dataset.columns["key"], world)
            done = step + 1
            clock.step()
            if done % train.log_every == 0 or done == total:
                tracker.train(step, told(engine, agreed.loss, lr, done / per_epoch, clock.lap()))

            with clock.paused():
                epoch_ends = done % per_epoch == 0
                due = done % train.save_every == 0 if train.save_every else epoch_ends
                # saving comes first: whoever asked to stop may not wait for an evaluation
                saves = due or agreed.save or agreed.stop or done == total
                if saves:
                    watch.at(f"saving step {done}")
                    tracker.sync()
                    saver.begin(done)
                    agreement.honoured(SAVE)
                if agreed.stop and done < total:
                    saver.finish()
                    agreement.honoured(STOP)
                    tracker.say(f"asked to stop: step {done} of {total} is saved, the same command goes on from there")
                    return EXIT_PREEMPTED
                if evaluates(done):
                    evaluate(done)
                    if not saves and (seen.best == done or seen.exhausted):
                        tracker.sync()
                        saver.begin(done)
        saver.finish()
        if seen.best is not None:
            tracker.say(f"best {train.best}: step {seen.best}, which evaluate reads with --step best")
        tracker.say(f"done: python -m brain_dist.evaluate {run_path}")
    return 0


def told(engine: Engine, loss: float, lr: float, epoch: float, rate: float) -> dict[str, float | None]:
    """What metrics.jsonl says of a step; None where a number was not finite (JSON knows no NaN)."""
    from brain_dist.dist import peak_memory

    scale = {} if engine.loss_scale is None else {"loss_scale": engine.loss_scale}
    return {
        "epoch": epoch,
        "loss": loss if math.isfinite(loss) else None,
        "lr": lr,
        "grad_norm": engine.grad_norm,
        "skipped": engine.skips.total,
        **scale,
        "images_per_s": rate,
        "memory_gib": peak_memory(engine.device),
    }


def training_batches(
    config: Config, dataset: Dataset, world: World, device: torch.device, *, first_step: int
) -> Iterator[Batch]:
    """This rank's micro-batches from ``first_step`` to the end of training."""
    from brain_dist.data import plan
    from brain_dist.loaders import open_loader
    from brain_dist.loaders.batch import training_jobs

    rows, train = dataset.rows("train"), config.train
    planned = plan.training(
        rows,
        np.unique(dataset.columns["shard"][rows], return_inverse=True)[1],
        seed=config.run.seed,
        epochs=train.epochs,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        rank=world.rank,
        world=world.size,
        first_step=first_step,
        window=config.data.window,
        label=dataset.columns["label"][rows].astype(np.int64),
        balance=train.balance,
    )
    jobs = training_jobs(dataset, config.data, config.augment, planned, seed=config.run.seed)
    return open_loader(config.data, dataset, jobs, augmented=True, batch=train.micro_batch, device=device)


def validate(
    config: Config, dataset: Dataset, engine: Engine, world: World, device: torch.device, watch: Watch, done: int
) -> tuple[dict[str, Any], Predictions]:
    """Loss (cross-entropy without smoothing) and metrics on the validation split after ``done`` steps, exact over the
    ranks; and the predictions that they judge. The main rank judges, so that all decide on the same numbers."""
    from brain_dist import inference
    from brain_dist.data import plan
    from brain_dist.dist import gather_objects
    from brain_dist.loaders import open_loader
    from brain_dist.loaders.batch import evaluation_jobs
    from brain_dist.predictions import predictions_from_logits

    rows, micro_batch = dataset.rows("val"), config.train.micro_batch
    planned = plan.evaluation(rows, micro_batch=micro_batch, rank=world.rank, world=world.size)
    jobs = evaluation_jobs(dataset, config.data, planned)
    loader = open_loader(config.data, dataset, jobs, augmented=False, batch=micro_batch, device=device)
    watched = watch.along(loader, f"evaluating after step {done}")
    with engine.evaluating() as model:
        logits = inference.logits(model, engine.finish, watched, rows, world)
    predictions = predictions_from_logits(dataset, rows, logits, run=config.run.name, step=0)
    (judged, *_) = gather_objects(predictions.evaluate() if world.is_main else None, world)
    values = {name: judged["nll" if name == "loss" else name] for name in get_args(Metric)}
    return {**values, **{name: judged[name] for name in ("per_class", "confusion")}}, predictions


class Clock:
    """Images a second of the training steps alone, without what is paused."""

    def __init__(self, global_batch: int) -> None:
        self.global_batch, self.steps = global_batch, 0
        self.start = time.perf_counter()

    def step(self) -> None:
        """Count an optimiser step."""
        self.steps += 1

    def lap(self) -> float:
        """Rate since the last lap [images/s]."""
        now = time.perf_counter()
        rate = self.steps * self.global_batch / (now - self.start)
        self.steps, self.start = 0, now
        return rate

    def paused(self) -> Pause:
        """Leave a block out of the time."""
        return Pause(self)


class Pause:
    """Moves the clock's start by the length of the block."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.clock.start += time.perf_counter() - self.began


if __name__ == "__main__":
    leave(main)
