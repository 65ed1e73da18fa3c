"""Start a training: find the ranks, open the data, join the process group and run the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from brain_dist.config import Config
from brain_dist.errors import EXIT_PREEMPTED, Fault, UserError
from brain_dist.ranks.device import choose_device, enable_determinism
from brain_dist.ranks.group import gather_objects, is_connection_loss, process_group
from brain_dist.ranks.stopping import StopRequest
from brain_dist.ranks.watch import Watch, watch_ranks
from brain_dist.ranks.world import discover
from brain_dist.store.access import open_data
from brain_dist.training.setup import TrainingJob, prepare


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
    dataset = open_data(config.data, Path(config.run.dir))
    if not len(dataset.rows("train")):
        raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
    device = choose_device(world, config.run.device)
    if config.run.deterministic:
        enable_determinism()
    timeout = config.train.timeout
    with process_group(world, device, timeout), watch_ranks(world, timeout) as watch, _clear_faults(config, watch):
        trainer = prepare(TrainingJob(config, dataset, world, device, watch, stop_request, command))
        code = trainer.run() if trainer else 0
        if code == EXIT_PREEMPTED:
            # leave together: srun ends all ranks when the first one leaves, but the main rank may still log to W&B
            watch.report_progress("leaving")
            gather_objects(None, world)
        return code


@contextmanager
def _clear_faults(config: Config, watch: Watch) -> Iterator[None]:
    """Turn a lost connection and an unusable disk into a :class:`Fault` that says what this rank was doing."""
    try:
        yield
    except RuntimeError as error:
        if not is_connection_loss(error):
            raise
        raise Fault(f"lost contact while {watch.activity}: {watch.find_cause()}") from error
    except OSError as error:
        file = error.filename or config.run.path
        raise Fault(f"{file} could not be used while {watch.activity}: {error.strerror or error}") from error
