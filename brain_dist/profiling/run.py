"""Profile a run: open its data, join the process group, measure and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from brain_dist.config import Config
from brain_dist.errors import UserError
from brain_dist.profiling.measure import measure_loaders, measure_profile
from brain_dist.profiling.report import report_profile
from brain_dist.ranks.device import choose_device
from brain_dist.ranks.group import process_group, run_on_main
from brain_dist.ranks.world import discover
from brain_dist.store.access import check_shards, open_data


def run_profile(config: Config, *, steps: int, out: Path, trace: str | None, compare_loaders: bool) -> None:
    """Profile on this rank; every rank must call.

    Args:
        config: settings of the run.
        steps: steps of each measurement, ≥ 1.
        out: file for the profile, written by the main rank.
        trace: file for a Chrome trace of the main rank's steps; None writes none.
        compare_loaders: also measure each loader alone.

    Raises:
        UserError: a setting is invalid, or the shards are missing, damaged or without a training split.
    """
    world = discover()
    dataset = open_data(config.data, Path(config.run.dir))
    rows = dataset.rows("train")
    if not len(rows):
        raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
    device = choose_device(world, config.run.device)
    with process_group(world, device):
        run_on_main(world, lambda: check_shards(dataset, rows))
        profile = measure_profile(config, dataset, world, device, steps=steps, trace=trace)
        if compare_loaders:
            profile = replace(profile, loaders=measure_loaders(config, dataset, world, device, steps))
    if world.is_main:
        report_profile(profile, config, out)
        if trace:
            print(f"trace: {trace}; open it in ui.perfetto.dev or chrome://tracing")
