"""Start a training: open the data, join the process group, and turn what can fail into one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.config import load
from brain_dist.errors import EXIT_PREEMPTED, Fault, UserError
from brain_dist.training.loop import fit

if TYPE_CHECKING:
    from brain_dist.ranks.stopping import StopRequest


def run_training(arguments: list[str], wish: StopRequest) -> int:
    """:func:`main`, listening to signals."""
    # the deepspeed launcher appends it; the environment says it already
    arguments = [word for word in arguments if not word.startswith(("--local_rank", "--local-rank"))]
    config = load(
        arguments, "brain-dist train", "Train a classifier on shards. Every setting is a YAML key and a flag."
    )

    from brain_dist.ranks.device import be_deterministic, choose_device
    from brain_dist.ranks.group import gather_objects, lost_contact, process_group
    from brain_dist.ranks.watch import watch_ranks
    from brain_dist.ranks.world import discover
    from brain_dist.store.access import open_data

    world = discover()
    dataset = open_data(config.data, Path(config.run.dir))
    if not len(dataset.rows("train")):
        raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
    device = choose_device(world, config.run.device)
    if config.run.deterministic:
        be_deterministic()
    timeout = config.train.timeout
    with process_group(world, device, timeout), watch_ranks(world, timeout) as watch:
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
