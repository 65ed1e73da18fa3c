"""Inject faults of every kind at random moments, and resume after each: ``make soak``.

``python tests/faults/soak.py [--each N] [--seed S] [--kind KIND …] [--table FILE]``. The last line counts the faults
that were injected and recovered, the lost steps, the wrong weights and the wrong tables. Needs root, to mount file
systems and to create network namespaces.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "support")]

from fork_server import ForkServer  # noqa: E402
from helpers import fork_server, verb  # noqa: E402
from kinds import KINDS  # noqa: E402
from trial import SETTINGS, Outcome, Reference, Trial, reference_run  # noqa: E402

Outcomes = dict[str, list[Outcome]]


def main() -> int:
    """Run the soak and print the table; exit code 1 unless all runs recovered without lost steps or wrong files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--each", type=int, default=4, help="faults of each kind (default: 4, about half an hour)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS), help="only these kinds")
    parser.add_argument("--table", type=Path, help="Markdown file for the counts by kind")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="brain_dist-soak-") as folder:
        outcomes = run_trials(Path(folder), arguments)
    table = markdown(outcomes)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text(table)
    print(f"\n{table}\n{(time.monotonic() - start) / 60:.1f} minutes")
    counts = count([outcome for group in outcomes.values() for outcome in group])
    injected, recovered, lost, weights, tables = counts
    print(
        f"{injected} injected, {recovered} recovered, {lost} lost steps, {weights} wrong weights, {tables} wrong tables"
    )
    return int(recovered < injected or any((lost, weights, tables)))


def run_trials(folder: Path, arguments: argparse.Namespace) -> Outcomes:
    """Inject faults until there are enough of each kind; print each outcome."""
    kinds = arguments.kind
    build_phantom_shards(folder)
    shards, server = folder / "shards", fork_server()
    references: dict[str, Reference] = {}
    outcomes: Outcomes = defaultdict(list)
    start = time.monotonic()
    # faults that come after the end of a run do not count, so there are more trials than faults
    trials = zip(range(4 * arguments.each * len(kinds)), schedule(kinds), strict=False)
    for number, (kind, setting) in trials:
        missing = [k for k in kinds if sum(outcome.injected for outcome in outcomes[k]) < arguments.each]
        if not missing:
            break
        if kind not in missing:
            continue
        if setting not in references:
            references[setting] = reference_run(server, shards, folder / f"reference-{len(references)}", setting)
        base, seed = folder / f"trial-{number}", arguments.seed * 1_000_000 + number
        outcome = run_trial(server, shards, base, kind, seed, references[setting])
        outcomes[kind].append(outcome)
        print(f"{time.monotonic() - start:6.0f} s  {kind}, {setting}: {describe(outcome)}", flush=True)
        if outcome.lost or outcome.wrong or outcome.wrong_table or not outcome.recovered:
            print(outcome.output)
        shutil.rmtree(base)
    return outcomes


def run_trial(server: ForkServer, shards: Path, base: Path, kind: str, seed: int, reference: Reference) -> Outcome:
    """Inject one fault; a run that ends in another way than its kind must is an outcome that did not recover."""
    try:
        return KINDS[kind](Trial(server, shards, base, reference.setting, seed), reference)
    except (AssertionError, TimeoutError) as error:
        return Outcome(kind, reference.setting, injected=True, output=str(error))


def schedule(kinds: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of kind and setting without end; each kind is combined with each setting in turn."""
    settings = list(SETTINGS)
    round_ = 0
    while True:
        for number, kind in enumerate(kinds):
            yield kind, settings[(number + round_) % len(settings)]
        round_ += 1


def build_phantom_shards(folder: Path) -> None:
    """Build FOLDER/shards from phantoms, in several tars, so that one can be deleted before it is opened."""
    images, shards = str(folder / "images"), str(folder / "shards")
    verb("shard", "phantom", "--out", images, "--patients", "48", "--slices", "3", "--size", "96")
    verb("shard", "build", "--source", images, "--out", shards, "--shard-size", "100kB")


def describe(outcome: Outcome) -> str:
    """An outcome in a few words."""
    if not outcome.injected:
        return "came too late"
    text = "recovered" if outcome.recovered else "NOT RECOVERED"
    if outcome.lost:
        text += f", {outcome.lost} steps lost"
    if outcome.wrong:
        text += f", different files: {', '.join(outcome.wrong)}"
    if outcome.wrong_table:
        text += ", wrong table"
    return text


def count(outcomes: list[Outcome]) -> tuple[int, int, int, int, int]:
    """Numbers of injected faults, recovered runs, lost steps, runs with wrong weights, and wrong tables."""
    injected = [outcome for outcome in outcomes if outcome.injected]
    recovered = sum(outcome.recovered for outcome in injected)
    wrong = sum(bool(outcome.wrong) for outcome in injected)
    tables = sum(outcome.wrong_table for outcome in injected)
    return len(injected), recovered, sum(outcome.lost for outcome in injected), wrong, tables


def markdown(outcomes: Outcomes) -> str:
    """Table of the counts by kind."""
    lines = [
        "| fault | injected | recovered | lost steps | wrong weights | wrong tables |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for kind, group in outcomes.items():
        lines.append(f"| {kind} | " + " | ".join(map(str, count(group))) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
