"""Profile: ``python -m brain_dist.profile --config configs/convnext_base.yaml --data.shards DIR``.

Measures where a training step's time goes, each stage alone and all together, says what binds and what to change. Takes
every setting of ``brain-dist train``, alone or under any launcher. Nothing is trained or saved but RUN/profile.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brain_dist.config import load
from brain_dist.errors import UserError, leave
from brain_dist.profiling.measure import compare, measure
from brain_dist.profiling.table import report_profile

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, join the process group, measure, print the table and the verdict."""
    options = argparse.ArgumentParser(prog="brain-dist profile", description=__doc__.split("\n\n")[1], add_help=False)
    options.add_argument("--steps", type=int, default=20, help="steps each measurement takes (default: 20)")
    options.add_argument("--trace", metavar="FILE.json", help="write a Chrome/Perfetto trace of the steps")
    options.add_argument("--compare", action="store_true", help="the loaders dali, torch and synthetic side by side")
    options.add_argument("--out", type=Path, metavar="FILE.json", help="default: profile.json in the run's folder")
    given, rest = options.parse_known_args(list(sys.argv[1:] if argv is None else argv))
    if {"-h", "--help"} & set(rest):
        print(options.format_help() + "\nand every setting of a run:\n")
    if given.steps < 1:
        raise UserError(f"--steps {given.steps}: needs at least 1")
    config = load(rest, "brain-dist profile", "Measure where a training step's time goes.")

    from brain_dist.ranks.agreement import run_on_main
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover
    from brain_dist.store.access import check_shards, open_data

    world = discover()
    dataset = open_data(config.data, Path(config.run.dir))
    if not len(dataset.rows("train")):
        raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
    device = choose_device(world, config.run.device)
    with process_group(world, device):
        run_on_main(world, lambda: check_shards(dataset, dataset.rows("train")))
        found = measure(config, dataset, world, device, steps=given.steps, trace=given.trace)
        if given.compare:
            found["loaders"] = compare(config, dataset, world, device, given.steps)
    if world.is_main:
        report_profile(found, config, given.out or config.run.path / "profile.json")
        if given.trace:
            print(f"trace: {given.trace}; open it in ui.perfetto.dev or chrome://tracing")
    return 0


if __name__ == "__main__":
    leave(main)
