"""Faults of every kind at random moments, each followed by a resume: ``make soak``.

``python tests/faults/soak.py [--each N] [--seed S] [--table FILE]``; its last line counts what was injected,
recovered, lost and wrong. Needs the right to mount (root), for the full disk and the read-only folder.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from conftest import environment, verb  # noqa: E402
from kinds import KINDS  # noqa: E402
from nursery import Nursery  # noqa: E402
from trial import SETTINGS, Outcome, Trial, undisturbed  # noqa: E402

Totals = dict[str, list[Outcome]]


def main() -> int:
    """Inject, resume, compare, count."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--each", type=int, default=8, help="faults of each kind (default: 8, a quarter of an hour)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--kind", choices=KINDS, help="this kind only")
    parser.add_argument("--table", type=Path, help="Markdown file for the counts by kind")
    wanted = parser.parse_args()
    kinds = [wanted.kind] if wanted.kind else list(KINDS)
    base = Path(tempfile.mkdtemp(prefix="brain_dist-soak-"))
    shards = phantom_shards(base)
    began = time.monotonic()
    nursery = Nursery(base, environment(PYTHONPATH=f"{HERE.parent.parent}:{HERE}"))
    done: Totals = defaultdict(list)
    try:
        references = {name: undisturbed(nursery, shards, base / name[:6], name) for name in SETTINGS}
        # every kind meets every setting in turn
        plan = itertools.cycle([(k, s) for r in range(len(SETTINGS)) for k, s in zip(kinds, rotated(r), strict=False)])
        most = 4 * wanted.each * len(kinds)  # some come too late, and don't count
        for number, (kind, setting) in enumerate(itertools.islice(plan, most)):
            enough = [k for k in kinds if sum(o.injected for o in done[k]) >= wanted.each]
            if len(enough) == len(kinds):
                break
            if kind in enough:
                continue
            trial = Trial(nursery, shards, base / f"trial-{number}", setting, wanted.seed * 1_000_000 + number)
            try:
                outcome = KINDS[kind](trial, references[setting])
            except (AssertionError, TimeoutError) as error:  # it did not end as this kind should: counted, and shown
                outcome = Outcome(kind, setting, injected=True, said=str(error))
            done[kind].append(outcome)
            bad = outcome.lost or outcome.wrong or not outcome.recovered
            print(f"{time.monotonic() - began:6.0f} s  {kind}, {setting}: {verdict(outcome)}", flush=True)
            if bad:
                print(outcome.said)
            else:
                shutil.rmtree(trial.base)
    finally:
        nursery.close()
    table = markdown(done)
    if wanted.table:
        wanted.table.parent.mkdir(parents=True, exist_ok=True)
        wanted.table.write_text(table)
    print(f"\n{table}\n{(time.monotonic() - began) / 60:.1f} minutes")
    found = [o for outcomes in done.values() for o in outcomes if o.injected]
    hit, recovered, lost, wrong = counts(found)
    print(f"{hit} injected, {recovered} recovered, {lost} lost steps beyond the last checkpoint, {wrong} wrong weights")
    shutil.rmtree(base, ignore_errors=True)
    return int(recovered < hit or lost > 0 or wrong > 0)


def phantom_shards(base: Path) -> Path:
    """Shards of phantoms in several tars, so that one of them can be lost before it is opened."""
    verb("shard", "phantom", "--out", str(base / "images"), "--patients", "48", "--slices", "3", "--size", "96")
    verb("shard", "build", "--source", str(base / "images"), "--out", str(base / "shards"), "--shard-size", "100kB")
    return base / "shards"


def rotated(by: int) -> itertools.cycle[str]:
    """The settings, from the ``by``-th on, over and over."""
    names = list(SETTINGS)
    return itertools.cycle(names[by:] + names[:by])


def verdict(outcome: Outcome) -> str:
    """An outcome in a few words."""
    if not outcome.injected:
        return "came too late"
    wrong = f", differs: {', '.join(outcome.wrong)}" if outcome.wrong else ""
    lost = f", {outcome.lost} steps lost" if outcome.lost else ""
    return ("recovered" if outcome.recovered else "NOT RECOVERED") + lost + wrong


def counts(found: list[Outcome]) -> tuple[int, int, int, int]:
    """Injected, recovered, steps lost, wrong weights."""
    return len(found), sum(o.recovered for o in found), sum(o.lost for o in found), sum(bool(o.wrong) for o in found)


def markdown(done: Totals) -> str:
    """Counts by kind."""
    lines = ["| fault | injected | recovered | lost steps | wrong weights |", "|---|--:|--:|--:|--:|"]
    for kind, outcomes in done.items():
        lines.append(f"| {kind} | " + " | ".join(map(str, counts([o for o in outcomes if o.injected]))) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
