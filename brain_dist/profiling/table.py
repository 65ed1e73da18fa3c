"""A profile as a table, as lines of text, as JSON and on W&B."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config
from brain_dist.profiling.measure import STAGES

if TYPE_CHECKING:
    pass


def table_rows(found: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
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


def summary_lines(found: dict[str, Any]) -> list[str]:
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


def report_profile(found: dict[str, Any], config: Config, out: Path) -> None:
    """Print, write ``out``, and send the same to W&B when it is on."""
    from rich.console import Console
    from rich.table import Table

    from brain_dist.tracking.wandb_log import open_log

    head = ("stage", "alone, ms a step", "alone, images/s", "together, ms", "share")
    title = (
        f"{found['model']} {found['size']}², {found['precision']}, ZeRO {found['zero_stage']}, {found['world']} ×"
        f" {found['device']}, batch {found['global_batch']}, loader {found['loader']}"
    )
    table = Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in table_rows(found):
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for line in summary_lines(found):
        console.print(line, highlight=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    log = open_log(config, out.parent, attempt=1)
    if log is not None:
        import wandb

        log.run.log({"profile": wandb.Table(columns=list(head), data=[list(row) for row in table_rows(found)])})
        numbers = ("images_per_s", "step", "mfu", "bytes_sent", "joules_per_image", "verdict")
        log.run.summary.update({f"profile/{name}": found[name] for name in numbers})
        log.finish(0)
