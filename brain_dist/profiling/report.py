"""A profile as a table and lines of text, as profile.json and on W&B."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from brain_dist.common.files import write_atomically
from brain_dist.config import Config
from brain_dist.profiling.profile import STAGES, Profile

COLUMNS = ("stage", "alone, ms a step", "alone, images/s", "together, ms", "share")
WANDB_SUMMARY = ("images_per_s", "step", "mfu", "bytes_sent", "joules_per_image", "verdict")


def report_profile(profile: Profile, config: Config, out: Path) -> None:
    """Print ``profile``, write it to ``out``, and log it to W&B if that is on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = "{model} {size}², {precision}, ZeRO {zero_stage}, {world} × {device}, batch {global_batch}, loader {loader}"
    table = Table(title=escape(title.format(**profile)), title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in table_rows(profile):
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for line in summary_lines(profile):
        console.print(line, highlight=False, markup=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(profile, indent=1) + "\n")
    _log_to_wandb(profile, config, out.parent)


def table_rows(profile: Profile) -> list[tuple[str, ...]]:
    """Rows of the table, see ``COLUMNS``; images per second are over all ranks."""
    rows = []
    for stage in STAGES:
        alone, together = profile["alone"].get(stage), profile["together"].get(stage)
        if alone is None and together is None:
            continue
        cells = ["read, decode, augment" if stage == "loader" else stage, "", "", "", ""]
        if alone is not None:
            cells[1:3] = f"{1e3 * alone:.2f}", f"{profile['global_batch'] / alone:,.0f}" if alone else ""
        if together is not None:
            cells[3:] = f"{1e3 * together:.2f}", f"{together / profile['measured_step']:.1%}"
        rows.append(tuple(cells))
    return [*rows, ("whole step", "", "", f"{1e3 * profile['measured_step']:.2f}", "100.0%")]


def summary_lines(profile: Profile) -> list[str]:
    """The lines below the table."""
    megabytes = {kind: size / 1e6 for kind, size in profile["memory"].items()}
    lines = [
        f"{profile['images_per_s']:,.1f} images/s undisturbed, {1e3 * profile['step']:.1f} ms per step;"
        f" {profile['flops_per_image'] / 1e9:.2f} GFLOP per image, forward and backward",
        f"MFU {_mfu(profile)}; measured matrix rate {profile['matrix_rate'] / 1e9:,.1f} GFLOP/s per device",
        f"memory per rank: weights {megabytes['weights']:.1f} MB, gradients {megabytes['gradients']:.1f} MB, optimiser"
        f" {megabytes['optimiser']:.1f} MB, peak {megabytes['peak']:,.0f} MB",
        f"{profile['messages']:.0f} collectives with {profile['bytes_sent'] / 1e6:.2f} MB per step",
        "utilisation, power and energy: not measured, because the device is not an NVIDIA GPU",
    ]
    if power := profile["power"]:
        energy = f"{profile['joules_per_image']:.3f} J per image"
        lines[-1] = f"GPU {power['utilisation']:.0f} % busy, {power['watts']:.0f} W, {energy}"
    if loaders := profile.get("loaders"):
        rates = ", ".join(f"{name} {rate:,.0f} ({rate / loaders['torch']:.2f})" for name, rate in loaders.items())
        lines.append(f"loaders alone, images/s (ratio to torch): {rates}")
    return [*lines, f"bottleneck: {profile['verdict']}. {profile['advice']}"]


def _mfu(profile: Profile) -> str:
    return "unknown" if profile["mfu"] is None else f"{profile['mfu']:.1%} of the matrix rate"


def _log_to_wandb(profile: Profile, config: Config, folder: Path) -> None:
    from brain_dist.tracking.wandb_log import open_log

    log = open_log(config, folder, attempt=1)
    if log is None:
        return
    import wandb

    log.run.log({"profile": wandb.Table(columns=list(COLUMNS), data=[list(row) for row in table_rows(profile)])})
    log.run.summary.update({f"profile/{name}": profile[name] for name in WANDB_SUMMARY})
    log.finish(0)
