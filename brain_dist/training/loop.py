"""The training loop. Read :func:`fit` first."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.config import Config
from brain_dist.errors import EXIT_PREEMPTED, UserError
from brain_dist.stream.batches import training_batches
from brain_dist.training.clock import Clock
from brain_dist.training.validation import validate

if TYPE_CHECKING:
    import torch

    from brain_dist.judging.examples import Example
    from brain_dist.ranks.stopping import StopRequest
    from brain_dist.ranks.watch import Watch
    from brain_dist.ranks.world import World
    from brain_dist.store.dataset import Dataset
    from brain_dist.training.engine import Engine


def fit(
    config: Config, dataset: Dataset, world: World, device: torch.device, wish: StopRequest, watch: Watch, *,
    command: list[str],
) -> int:  # fmt: skip
    """Train to the end, or to a signal; goes on by itself from the run's newest checkpoint."""

    from brain_dist.inference.examples import make_examples
    from brain_dist.networks.create import create_network
    from brain_dist.ranks.agreement import run_on_main
    from brain_dist.ranks.stopping import SAVE, STOP, StepAgreement
    from brain_dist.store.access import check_shards
    from brain_dist.stream.plan import steps_per_epoch
    from brain_dist.tracking import attempts
    from brain_dist.tracking.evaluations import Evaluations
    from brain_dist.tracking.run_folder import describe_run, lock_run_folder, write_run_files
    from brain_dist.tracking.tracker import Tracker
    from brain_dist.training.engine import Engine
    from brain_dist.training.nonfinite import raise_nonfinite
    from brain_dist.training.optim import learning_rate
    from brain_dist.training.restoring import restore
    from brain_dist.training.resume import resume_step, settings_to_match
    from brain_dist.training.saving import Saver

    train, run_path, root = config.train, config.run.path, config.run.path / "checkpoints"
    wanted = np.concatenate([dataset.rows("train"), dataset.rows("val")])
    run_on_main(world, lambda: check_shards(dataset, wanted))
    lock_run_folder(run_path, world)
    facts = settings_to_match(config, dataset.version, world.size)
    found = resume_step(config, root, facts, world)
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
    run_on_main(world, lambda: attempts.begin(run_path, first))

    model = create_network(config.model, len(dataset.classes), seed=config.run.seed, load_weights=found is None)
    engine = Engine(config, model, world, device, frozen_steps=per_epoch * train.freeze_epochs)
    if found is not None:
        restore(root, found, engine)
    run_on_main(world, lambda: write_run_files(config, dataset, world, device, engine.parameters, command))

    batches = training_batches(config, dataset, world, device, first_step=first)
    agreement = StepAgreement(world, wish, run_path)
    saver = Saver(root, engine, facts, keep=train.keep)
    saver.best = seen.best
    tracker = Tracker(config, run_path, first_step=first, total_steps=total, enabled=world.is_main)

    def evaluate(done: int) -> None:
        values, predictions = validate(config, dataset, engine, world, device, watch, done)
        watch.at(f"telling of step {done}")
        shown: list[Example] = []
        if config.track.examples and tracker.shows_pictures:
            shown = make_examples(predictions, dataset, config, engine.normalize, device)
        tracker.evaluation(done, "val", {"epoch": done / per_epoch, **values}, shown)
        seen.add(done, values)
        saver.best = seen.best

    with tracker:
        tracker.say(describe_run(config, dataset, world, device, engine.parameters, first, total))
        if owed:
            evaluate(first)
        clock = Clock(train.global_batch)
        for step in range(first, total):
            if seen.exhausted:
                tracker.say(f"stopped early: {train.patience} evaluations without a better {train.best}")
                break
            lr = learning_rate(config.optim, step, per_epoch, train.epochs)
            watch.at(f"loading step {step}")
            micros = [next(batches) for _ in range(engine.micros)]
            watch.at(f"computing step {step}")
            share = engine.step(micros, lr)
            watch.at(f"waiting for the others after step {step}")
            agreed = agreement.after_step(share, writing=saver.pending, lost=saver.failed)
            saver.settle(pending=agreed.writing, failed=agreed.lost)
            if engine.skips.in_a_row >= train.skip_limit:
                raise_nonfinite(run_path, step, engine.skips, micros, dataset.columns["key"], world)
            done = step + 1
            clock.step()
            if done % train.log_every == 0 or done == total:
                tracker.train(step, metrics_row(engine, agreed.loss, lr, done / per_epoch, clock.lap()))

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


def metrics_row(engine: Engine, loss: float, lr: float, epoch: float, rate: float) -> dict[str, float | None]:
    """What metrics.jsonl says of a step; None where a number was not finite (JSON knows no NaN)."""
    from brain_dist.ranks.device import peak_memory

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
