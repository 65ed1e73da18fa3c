"""Profile: ``python -m brain_dist.profile --config configs/convnext_base.yaml --data.shards DIR``.

Measures each stage of a training step, alone and in real steps, and names the bottleneck and what to change. Takes all
settings of ``brain-dist train``, with or without a launcher. Nothing is trained; only profile.json is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.commands import ArgumentParser
from brain_dist.common.files import check_writable
from brain_dist.config import load
from brain_dist.errors import UserError, leave
from brain_dist.profiling.measure import run_profile


def main(argv: Sequence[str] | None = None) -> int:
    """Read the options and the settings, then profile; UserError if an option is out of range."""
    parser = ArgumentParser(prog="brain-dist profile", description=__doc__.split("\n\n")[1], add_help=False)
    parser.add_argument("--steps", type=int, default=20, help="steps of each measurement (default: 20)")
    parser.add_argument("--trace", type=Path, metavar="FILE.json", help="write a Chrome/Perfetto trace of the steps")
    parser.add_argument(
        "--compare", action="store_true", help="also measure the loaders opencv, dali, torch and synthetic"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: profile.json in the run folder")
    words, about = sys.argv[1:] if argv is None else argv, "Measure where the time of a training step goes."
    options, settings = parser.parse_with_settings(words, lambda: load(["--help"], parser.prog, about))
    if options.steps < 1:
        raise UserError(f"--steps {options.steps}: must be ≥ 1")
    config = load(settings, parser.prog, about)
    out = options.out or config.run.path / "profile.json"
    check_writable(out.parent, "choose another --out")
    if options.trace:
        check_writable(options.trace.parent, "choose another --trace")
    run_profile(config, steps=options.steps, out=out, trace=options.trace, compare_loaders=options.compare)
    return 0


if __name__ == "__main__":
    leave(main)
