"""What several benchmarks share: child processes, phantom shards, the environment of the peer libraries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brain_dist.errors import Fault, UserError

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-bench" / "bin" / "python"  # the peers' pinned dependencies conflict with ours


def integers(text: str) -> list[int]:
    """Parse ``1,2,4``."""
    return [int(word) for word in text.split(",")]


def median_interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a median, by a bootstrap over its values with a fixed seed."""
    sample = np.random.default_rng(0).choice(np.asarray(values), (draws, len(values)))
    low, high = np.quantile(np.median(sample, axis=1), [0.025, 0.975])
    return float(low), float(high)


def run_child(command: Sequence[str]) -> str:
    """Run a command in the checkout's root and return its standard output.

    Raises:
        Fault: the command failed; the message has its last line.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    _check(command, done.returncode, done.stderr)
    return done.stdout


def main_rank_output(command: Sequence[str], ranks: int) -> str:
    """Run a command as ``ranks`` processes of launch/local.py; return the standard output of the main rank.

    Raises:
        Fault: a rank failed; the message has its last line.
    """
    from launch.local import Placement, start

    processes = start(command, Placement(ranks), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        _check(command, process.returncode, errors)
    return outputs[0][0]


def _check(command: Sequence[str], code: int, errors: str) -> None:
    if code:
        lines = errors.strip().splitlines() or [f"exit code {code}"]
        raise Fault(f"{' '.join(command[:3])} failed: {lines[-1]}")


def phantom_shards(folder: Path, *build_options: str, patients: int, slices: int, size: int) -> Path:
    """Build shards of phantoms in ``folder``, with further options of ``shard build``; return their folder."""
    shard = [sys.executable, "-m", "brain_dist.shard"]
    images, shards = folder / "phantoms", folder / "shards"
    counts = ["--patients", str(patients), "--slices", str(slices), "--size", str(size), "--seed", "0"]
    run_child([*shard, "phantom", "--out", str(images), *counts])
    run_child([*shard, "build", "--source", str(images), "--out", str(shards), *build_options])
    return shards


def training_shards(folder: Path, images: int) -> Path:
    """Phantom shards with at least ``images`` training images, for benchmarks that only read the index."""
    fractions = ("--fractions", "0.98,0.01,0.01")
    return phantom_shards(folder, *fractions, patients=images // 4 + 8, slices=4, size=64)


def require_peers(modules: Sequence[str]) -> None:
    """Check the environment of the peers.

    Raises:
        UserError: one of ``modules`` is not installed there.
    """
    check = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in {list(modules)}))"
    if not PEERS.exists() or subprocess.run([PEERS, "-c", check], check=False).returncode:
        raise UserError(f"{' and '.join(modules)} are not installed; run `make bench-setup`")
