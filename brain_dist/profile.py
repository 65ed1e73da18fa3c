"""Profile: ``python -m brain_dist.profile --config configs/convnext_base.yaml --data.shards DIR``.

Measures where a training step's time goes, each stage alone and all together, says what binds and what to change. Takes
every setting of ``brain-dist train``, alone or under any launcher. Nothing is trained or saved but RUN/profile.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config, load
from brain_dist.errors import UserError, leave

if TYPE_CHECKING:
    import torch

    from brain_dist.data.index import Dataset
    from brain_dist.dist import World

LOADERS = ("dali", "torch", "synthetic")
STAGES = ("storage read", "loader", "host to device", "waiting for data", "forward", "backward", "optimiser",
          "communication", "other")  # fmt: skip
# Shares of the step from which a stage is said to bind
WAITING, TALKING, STEPPING = 0.1, 0.2, 0.25


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

    from brain_dist import checkpoint
    from brain_dist.data.access import check_shards, open_data
    from brain_dist.dist import choose_device, discover, process_group

    world = discover()
    dataset = open_data(config.data, Path(config.run.dir))
    if not len(dataset.rows("train")):
        raise UserError(f"{dataset.root} has no training split; rebuild it with other --fractions")
    device = choose_device(world, config.run.device)
    with process_group(world, device):
        checkpoint.together(world, lambda: check_shards(dataset, dataset.rows("train")))
        found = measure(config, dataset, world, device, steps=given.steps, trace=given.trace)
        if given.compare:
            found["loaders"] = compare(config, dataset, world, device, given.steps)
    if world.is_main:
        report(found, config, given.out or config.run.path / "profile.json")
        if given.trace:
            print(f"trace: {given.trace}; open it in ui.perfetto.dev or chrome://tracing")
    return 0


def measure(
    config: Config, dataset: Dataset, world: World, device: torch.device, *, steps: int, trace: str | None = None
) -> dict[str, Any]:
    """Everything that the table holds, of all ranks; every rank must call.

    Times are seconds an optimiser step, the mean over the ranks. ``alone`` counts every micro-batch of the step.
    """
    import torch

    from brain_dist import models, power, profiling
    from brain_dist.dist import gather_objects
    from brain_dist.engine import Engine

    # as many epochs as it takes: a small collection has fewer steps than are measured
    endless = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1_000_000))
    alone = profiling.alone(endless, dataset, world, device, steps)
    model = models.create(config.model, len(dataset.classes), seed=config.run.seed, load_weights=False)
    engine = Engine(endless, model, world, device)
    with power.watching(device) as watched:
        both = profiling.together(endless, dataset, engine, world, device, steps, trace)
    held = {**profiling.memory(engine, device), **{name: both[name] for name in ("gradients", "buckets")}}
    place = {"host": platform.node(), "cores": os.sched_getaffinity(0)}
    own = {**alone, **both, "memory": held, "power": watched, **place}
    ranks = gather_objects(own, world)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    once = ("optimiser", "communication")  # a step; the others once a micro-batch
    seconds = {
        name: mean([rank["seconds"][name] for rank in ranks]) * (1 if name in once else engine.micros)
        for name in alone["seconds"]
    }
    step = max(rank["step"] for rank in ranks)
    names = sorted({name for rank in ranks for name in rank["stages"]}, key=STAGES.index)
    batch, watts = config.train.global_batch, [rank["power"].get("watts") for rank in ranks]
    found = {
        "model": config.model.name, "size": config.data.size, "precision": config.train.precision,
        "zero_stage": config.train.zero_stage, "loader": config.data.loader, "device": device.type,
        "world": world.size, "global_batch": batch, "micros": engine.micros, "steps": steps,
        "parameters": alone["parameters"], "alone": seconds, "step": step, "images_per_s": batch / step,
        "measured_step": mean([rank["measured_step"] for rank in ranks]),
        "together": {name: mean([rank["stages"].get(name, 0.0) for rank in ranks]) for name in names},
        "collectives": both["collectives"],
        "bytes_sent": mean([sum(size for _, size in rank["collectives"].values()) for rank in ranks]),
        "messages": mean([sum(count for count, _ in rank["collectives"].values()) for rank in ranks]),
        "flops_per_image": alone["flops_per_image"], "matrix_rate": mean([rank["matrix_rate"] for rank in ranks]),
        "memory": {name: max(rank["memory"][name] for rank in ranks) for name in own["memory"]},
        "power": ranks[0]["power"], "hosts": len({rank["host"] for rank in ranks}),
        # a scheduler may give each task of a node cores of its own
        "cores": len(set().union(*(rank["cores"] for rank in ranks if rank["host"] == ranks[0]["host"]))),
        "threads": torch.get_num_threads(),
        "joules_per_image": sum(watts) * step / batch if all(watts) else None,
    }  # fmt: skip
    found["mfu"] = found["flops_per_image"] * found["images_per_s"] / (world.size * found["matrix_rate"])
    found["verdict"], found["advice"] = verdict(found)
    return found


def verdict(found: dict[str, Any]) -> tuple[str, str]:
    """What binds, and what to change, from the shares of the step."""
    total, part = found["measured_step"], found["together"]
    share = {name: seconds / total for name, seconds in part.items()}
    waiting, talking = share.get("waiting for data", 0.0), share.get("communication", 0.0)
    if waiting >= WAITING and waiting >= talking:
        if found["alone"]["storage read"] > 0.5 * found["alone"]["loader"]:
            return "storage", "reading the bytes is slow: stage the shards on the node's disk with data.cache_dir"
        return "loader", (
            "decoding and augmentation do not keep up: more data.threads, data.color=gray, a larger data.prefetch,"
            " or shards built with a smaller --max-side"
        )
    if talking >= TALKING:
        return "communication", (
            "a larger train.global_batch accumulates more between exchanges; a lower train.zero_stage sends less;"
            " or a faster network"
        )
    if share.get("optimiser", 0.0) >= STEPPING:
        return "optimiser", "a larger train.global_batch steps less often; ZeRO stages 1 and 2 share the step out"
    return "network", (
        "forward and backward bind, as they should: a larger train.micro_batch or train.precision=bf16 may raise the"
        " share of the device's matrix rate; more devices shorten the epoch"
    )


def compare(config: Config, dataset: Dataset, world: World, device: torch.device, steps: int) -> dict[str, float]:
    """Images/s over all ranks of each loader alone, side by side."""
    from brain_dist import profiling
    from brain_dist.dist import gather_objects

    rates = {}
    for name in LOADERS:
        data = dataclasses.replace(config.data, loader=name)  # type: ignore[arg-type]
        train = dataclasses.replace(config.train, epochs=1_000_000)
        chosen = dataclasses.replace(config, data=data, train=train)
        seconds = profiling.loading(chosen, dataset, world, device, steps)["loader"]
        rates[name] = world.size * config.train.micro_batch / max(gather_objects(seconds, world))
    return rates


def rows(found: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """The table: stage, alone [ms], alone [images/s over all ranks], together [ms], share of the step."""
    made = []
    for name in STAGES:
        alone, part = found["alone"].get(name), found["together"].get(name)
        if alone is None and part is None:
            continue
        made.append((
            {"loader": "read, decode, augment"}.get(name, name),
            f"{1e3 * alone:.2f}" if alone is not None else "",
            f"{found['global_batch'] / alone:,.0f}" if alone else "",
            f"{1e3 * part:.2f}" if part is not None else "",
            f"{part / found['measured_step']:.1%}" if part is not None else "",
        ))  # fmt: skip
    made.append(("whole step", "", "", f"{1e3 * found['measured_step']:.2f}", "100.0%"))
    return made


def summary(found: dict[str, Any]) -> list[str]:
    """The lines below the table."""
    memory, power = found["memory"], found["power"]
    lines = [
        f"{found['images_per_s']:,.1f} images/s undisturbed, {1e3 * found['step']:.1f} ms a step;"
        f" {found['flops_per_image'] / 1e9:.2f} GFLOP an image, forward and backward",
        f"MFU {found['mfu']:.1%} of the measured matrix rate, {found['matrix_rate'] / 1e9:,.0f} GFLOP/s a device",
        f"a rank: weights {memory['weights'] / 1e6:.1f} MB, gradients {memory['gradients'] / 1e6:.1f} MB, optimiser"
        f" {memory['optimiser'] / 1e6:.1f} MB, peak {memory['peak'] / 1e6:,.0f} MB",
        f"{found['messages']:.0f} collectives of {found['bytes_sent'] / 1e6:.2f} MB a step",
    ]
    if power:
        lines.append(
            f"GPU {power['utilisation']:.0f} % busy, {power['watts']:.0f} W, {found['joules_per_image']:.3f} J an image"
        )
    else:
        lines.append("utilisation, power and energy: none measured, they are NVML's and this device is no GPU")
    if "loaders" in found:
        rates = found["loaders"]
        told = ", ".join(f"{name} {rate:,.0f} ({rate / rates['torch']:.2f})" for name, rate in rates.items())
        lines.append(f"loaders alone, images/s (ratio to torch): {told}")
    return [*lines, f"binds: {found['verdict']}. {found['advice']}"]


def report(found: dict[str, Any], config: Config, out: Path) -> None:
    """Print, write ``out``, and send the same to W&B when it is on."""
    from rich.console import Console
    from rich.table import Table

    from brain_dist.wandb_log import open_log

    head = ("stage", "alone, ms a step", "alone, images/s", "together, ms", "share")
    title = (
        f"{found['model']} {found['size']}², {found['precision']}, ZeRO {found['zero_stage']}, {found['world']} ×"
        f" {found['device']}, batch {found['global_batch']}, loader {found['loader']}"
    )
    table = Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows(found):
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for line in summary(found):
        console.print(line, highlight=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    log = open_log(config, out.parent, attempt=1)
    if log is not None:
        import wandb

        log.run.log({"profile": wandb.Table(columns=list(head), data=[list(row) for row in rows(found)])})
        numbers = ("images_per_s", "step", "mfu", "bytes_sent", "joules_per_image", "verdict")
        log.run.summary.update({f"profile/{name}": found[name] for name in numbers})
        log.finish(0)


if __name__ == "__main__":
    leave(main)
