"""The training loop. Read :meth:`Trainer.run` first."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from brain_dist.checkpoints.evaluations import Evaluations
from brain_dist.config import Config
from brain_dist.errors import EXIT_PREEMPTED
from brain_dist.inference.examples import make_examples
from brain_dist.judging.examples import Example
from brain_dist.networks.create import explain_errors
from brain_dist.ranks.device import peak_memory
from brain_dist.ranks.rendezvous import LONGEST_STEP
from brain_dist.ranks.stopping import SAVE, STOP, StepAgreement, StepResult
from brain_dist.ranks.watch import Watch
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batch import Batch
from brain_dist.tracking.tracker import Tracker
from brain_dist.training.engine import Engine
from brain_dist.training.nonfinite import raise_nonfinite
from brain_dist.training.saving import Saver
from brain_dist.training.schedule import Schedule
from brain_dist.training.validation import validate


def may_compile(config: Config, schedule: Schedule, step: int, first_step: int) -> bool:
    """Whether ``step`` (0-based) may take minutes: the first one, or with model.compile the first that trains all."""
    return step == first_step or (config.model.compile and step == schedule.frozen_steps)


@dataclass(kw_only=True)
class Trainer:
    """Everything that the training loop uses; :func:`brain_dist.training.start.run_training` creates it.

    Attributes:
        config: the run's configuration.
        dataset: the opened shards.
        schedule: what is due after each step.
        first_step: number of optimiser steps that the checkpoint has already done.
        evaluation_missed: whether the run was interrupted between its last checkpoint and the evaluation of that step.
        summary: the run's settings in a few lines, printed at the start.
        engine: the network, its optimiser and DeepSpeed.
        batches: this rank's micro-batches from ``first_step`` on.
        agreement: combines the losses and the stop requests of all ranks after each step.
        saver: writes checkpoints in the background.
        evaluations: the validation results so far.
        tracker: writes metrics.jsonl and logs to W&B.
        watch: reports what this rank is doing.
    """

    config: Config
    dataset: Dataset
    schedule: Schedule
    first_step: int
    evaluation_missed: bool
    summary: str
    engine: Engine
    batches: Iterator[Batch]
    agreement: StepAgreement
    saver: Saver
    evaluations: Evaluations
    tracker: Tracker
    watch: Watch
    _steps_timed: int = field(default=0, init=False)
    _clock: float = field(default=0.0, init=False)
    # of steps whose results are not read yet: step and unfinished row of metrics.jsonl, None if no row is due
    _rows: deque[tuple[int, dict[str, Any] | None]] = field(default_factory=deque, init=False)
    _stop: bool = field(default=False, init=False)
    _save: bool = field(default=False, init=False)

    def run(self) -> int:
        """Train to the end or to a stop request. Every rank must call. Returns the exit code."""
        with self.tracker:
            self.tracker.print_line(self.summary)
            # a reference to this object would keep its loading processes
            saver, first_step = self.saver, self.first_step
            self.agreement.request.saved_step = lambda: saver.saved or first_step
            if self.evaluation_missed:
                self.evaluate_and_record(self.first_step)
            self._clock = time.perf_counter()
            for step in range(self.first_step, self.schedule.total_steps):
                if self.evaluations.patience_exhausted:
                    train = self.config.train
                    self.tracker.print_line(
                        f"stopped early: {train.patience} evaluations without a better {train.best}"
                    )
                    break
                try:
                    self.train_step(step)
                except BaseException:
                    with suppress(RuntimeError):  # the device may be unusable
                        self.log(self.agreement.arrived())
                    raise
                steps_done = step + 1
                with self.clock_paused():
                    evaluation_due = self.schedule.evaluation_due(steps_done)
                    if self._save or self._stop or evaluation_due or self.schedule.checkpoint_due(steps_done):
                        self.record(self.agreement.finish())
                    # save first: a scheduler that asked to stop may not wait for an evaluation
                    saved = self.save_if_due(steps_done)
                    if self._stop and steps_done < self.schedule.total_steps:
                        self.stop(steps_done)
                        return EXIT_PREEMPTED
                    if evaluation_due:
                        self.evaluate_and_record(steps_done)
                        best_or_last = self.evaluations.best == steps_done or self.evaluations.patience_exhausted
                        if best_or_last and not saved:
                            self.save(steps_done)
            self.saver.finish()
            self.report_end()
        return 0

    def train_step(self, step: int) -> None:
        """Load and compute one optimiser step (0-based), and record the results that are known by now.

        Raises:
            Fault: ``train.skip_limit`` steps in a row were not finite, or a checkpoint could not be written.
        """
        lr = self.schedule.learning_rate(step)
        self.watch.report_progress(f"loading step {step}")
        batches = [next(self.batches) for _ in range(self.engine.accumulation_steps)]
        allowance = LONGEST_STEP if may_compile(self.config, self.schedule, step, self.first_step) else 0.0
        self.watch.report_progress(f"computing step {step}", allowance)
        with explain_errors(self.config) if allowance else nullcontext():
            loss_share = self.engine.step(batches, lr)
        self.watch.report_progress(f"waiting for the others after step {step}", allowance)
        self._steps_timed += 1
        self._rows.append((step, self.metrics_row(step, lr) if self.schedule.log_due(step + 1) else None))
        writing, write_failed = self.saver.writing, self.saver.write_failed
        grad_norm = self.engine.grad_norm
        self.record(self.agreement.after_step(loss_share, grad_norm, writing=writing, write_failed=write_failed))
        if self.engine.skipped.in_a_row >= self.config.train.skip_limit:
            self.record(self.agreement.finish())
            keys = self.dataset.columns["key"]
            raise_nonfinite(self.config.run.path, step, self.engine.skipped, batches, keys, self.engine.world)

    def record(self, results: Sequence[StepResult]) -> None:
        """Log steps, remember requests to stop or save, and complete a checkpoint that all ranks have written.

        Every rank must call with the same results.
        """
        self.log(results)
        for result in results:
            self._stop |= result.stop
            self._save |= result.save
            if result.write_failed or not result.writing:
                self.saver.finish()

    def log(self, results: Sequence[StepResult]) -> None:
        """Log the steps of ``results``, which follow those logged before."""
        for result in results:
            step, row = self._rows.popleft()
            if row is not None:
                # JSON has no NaN
                values = {name: getattr(result, name) for name in ("loss", "grad_norm")}
                finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
                self.tracker.log_step(step, row | finite)

    def metrics_row(self, step: int, lr: float) -> dict[str, Any]:
        """The row of metrics.jsonl for a step that has just been computed, without loss and norm of the gradient."""
        engine = self.engine
        return {
            "epoch": self.schedule.epoch(step + 1),
            "loss": None,
            "lr": lr,
            "grad_norm": None,
            "skipped": engine.skipped.total,
            **({} if engine.loss_scale is None else {"loss_scale": engine.loss_scale}),
            "images_per_s": self.throughput(),
            "memory_gib": peak_memory(engine.device),
            "time": round(time.time(), 3),
        }

    def throughput(self) -> float:
        """Images per second since the last call (or the start)."""
        now = time.perf_counter()
        rate = self._steps_timed * self.config.train.global_batch / (now - self._clock)
        self._steps_timed, self._clock = 0, now
        return rate

    @contextmanager
    def clock_paused(self) -> Iterator[None]:
        """Exclude the time of a block, an evaluation or a checkpoint, from :meth:`throughput`."""
        pause_start = time.perf_counter()
        yield
        self._clock += time.perf_counter() - pause_start

    def save_if_due(self, steps_done: int) -> bool:
        """Start a checkpoint if one is scheduled or requested. Returns whether it did."""
        due = self.schedule.checkpoint_due(steps_done) or self._save or self._stop
        if due:
            self.save(steps_done)
            self._save = False
            self.agreement.remove_request_file(SAVE)
        return due

    def save(self, steps_done: int) -> None:
        """Start a checkpoint; metrics.jsonl reaches the disk before it."""
        self.watch.report_progress(f"saving step {steps_done}")
        self.tracker.sync()
        self.saver.begin(steps_done)

    def stop(self, steps_done: int) -> None:
        """Complete the checkpoint before a requested stop."""
        self.saver.finish()
        self.agreement.remove_request_file(STOP)
        self.tracker.print_line(
            f"stop requested: step {steps_done} of {self.schedule.total_steps} is saved; run the same command to resume"
        )
        self.watch.report_progress("closing the logs", LONGEST_STEP)  # W&B may still upload

    def evaluate_and_record(self, steps_done: int) -> None:
        """Evaluate the validation split, log the result and mark the best checkpoint."""
        metrics, predictions = validate(self.engine, self.dataset, self.watch, steps_done)
        self.watch.report_progress(f"logging the evaluation after step {steps_done}")
        examples: list[Example] = []
        if self.config.track.examples and self.tracker.shows_examples:
            examples = make_examples(predictions, self.dataset, self.config, self.engine.normalize, self.engine.device)
        self.tracker.log_evaluation(steps_done, "val", {"epoch": self.schedule.epoch(steps_done), **metrics}, examples)
        self.evaluations.add(steps_done, metrics)

    def report_end(self) -> None:
        """Print the best step and the command that evaluates the run."""
        best = self.evaluations.best
        if best is not None:
            self.tracker.print_line(f"best {self.config.train.best}: step {best}, which the other commands use")
        self.tracker.print_line(f"done: python -m brain_dist.evaluate {self.config.run.path}")
        self.watch.report_progress("closing the logs", LONGEST_STEP)  # W&B may still upload
