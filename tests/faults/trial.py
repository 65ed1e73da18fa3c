"""One run that a fault hits, and whether it ends as an undisturbed one does."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import read_metrics
from nursery import Nursery, Ranks

from brain_dist.checkpoints.layout import MARKER, checkpoint_folder, complete_steps, verify_checkpoint

WORLD = 2
LAST = 13  # of the fifteen steps, the last one before which a fault is timed to strike
GRACE = 15.0  # seconds that the others get to end by themselves, then SIGTERM, as launch/local.py does after 10
# 15 steps, a checkpoint every second one; so small that a step is a blink, with all that could spoil an exact resume
COMMON = [
    *("--model.name", "test_convnext", "--data.size", "32", "--data.threads", "1", "--track.wandb", "off"),
    *("--train.global_batch", "24", "--train.micro_batch", "12", "--train.epochs", "3", "--optim.lr", "1e-3"),
    *("--train.save_every", "2", "--train.keep", "3", "--train.timeout", "60", "--run.device", "cpu"),
    *("--augment.mixup", "0.4", "--model.drop_path", "0.2"),
]
SETTINGS = {
    "ZeRO 0, fp32, average": ["--train.zero_stage", "0", "--train.precision", "fp32", "--optim.ema", "0.9"],
    "ZeRO 1, bf16": ["--train.zero_stage", "1", "--train.precision", "bf16"],
    "ZeRO 2, amp, average": ["--train.zero_stage", "2", "--train.precision", "amp", "--optim.ema", "0.9"],
    "ZeRO 3, fp32": ["--train.zero_stage", "3", "--train.precision", "fp32"],
}


@dataclass
class Reference:
    """An undisturbed run: its files, and how often each place of :mod:`inject` was passed."""

    final: dict[str, bytes]
    passed: dict[str, int]


@dataclass
class Outcome:
    """What became of a run after its fault.

    ``injected``: the fault struck before the run's end; ``recovered``: the same command then ran to its end;
    ``lost``: steps that the newest intact checkpoint had and the resumed run did again; ``wrong``: final files that
    differ from the undisturbed run's.
    """

    kind: str
    setting: str
    injected: bool
    recovered: bool = False
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    said: str = ""


class Trial:
    """A run folder, shards of its own, and the means to start ranks on them."""

    def __init__(self, nursery: Nursery, shards: Path, base: Path, setting: str, seed: int) -> None:
        self.nursery, self.setting, self.base = nursery, setting, base
        self.random = random.Random(seed)
        self.shards, self.runs = base / "shards", base / "runs"
        shutil.copytree(shards, self.shards)
        self.runs.mkdir()
        self.attempts = 0

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.runs / "run"

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.run / "checkpoints"

    def start(self, fault: dict[str, Any] | None = None, more: Sequence[str] = ()) -> Ranks:
        """Start the ranks, with ``more`` settings; each attempt has a log of its own."""
        self.attempts += 1
        where = ["--data.shards", str(self.shards), "--run.dir", str(self.runs), "--run.name", "run"]
        arguments = [*COMMON, *SETTINGS[self.setting], *where, *more]
        return Ranks(self.nursery, WORLD, "train", arguments, self.base / f"log-{self.attempts}", inside=fault)

    def said(self) -> str:
        """What the last attempt printed."""
        log = self.base / f"log-{self.attempts}"
        return log.read_text() if log.exists() else ""

    def newest(self) -> int:
        """Step of the newest checkpoint that is complete and intact; 0 for none."""
        found = complete_steps(self.checkpoints)
        intact = [step for step in found if not verify_checkpoint(checkpoint_folder(self.checkpoints, step))]
        return max(intact, default=0)

    def moment(self, ranks: Ranks) -> bool:
        """Wait for a random moment of the run, its start included; whether the ranks still run then.

        Counted in steps, not in seconds: how long a step takes depends on what else the machine does.
        """
        if self.random.random() < 0.2:
            until = time.monotonic() + self.random.uniform(0, 2)
            while ranks.running() and time.monotonic() < until:
                time.sleep(0.005)
            return ranks.running()
        step = self.random.randrange(LAST)
        while ranks.running() and not any(row["step"] >= step for row in read_metrics(self.run / "metrics.jsonl")):
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, 0.2))
        return ranks.running()

    def final(self) -> dict[str, bytes]:
        """The files of the newest checkpoint but its marker, whose facts name nothing that matters here."""
        newest = checkpoint_folder(self.checkpoints, self.newest())
        return {p.name: p.read_bytes() for p in newest.iterdir() if p.name != MARKER}

    def recover(self, outcome: Outcome, reference: Reference) -> None:
        """Give the same command again, and compare its end with the undisturbed one."""
        known = self.newest()
        codes = self.start().wait(90)
        said = self.said()
        resumed = re.search(r"resuming at step (\d+) of", said)
        finished = "is trained to its end" in said
        outcome.recovered = codes == [0] * WORLD
        outcome.said += said if not outcome.recovered else ""
        if outcome.recovered and not finished:
            outcome.lost = known - (int(resumed[1]) if resumed else 0)
        mine = self.final() if outcome.recovered else {}
        names = sorted(set(mine) | set(reference.final))
        outcome.wrong = [name for name in names if mine.get(name) != reference.final.get(name)]


def undisturbed(nursery: Nursery, shards: Path, base: Path, setting: str) -> Reference:
    """The run that all others of this setting are compared with, and how often it passes each place; made twice."""
    found: list[Reference] = []
    for number in range(2):
        trial = Trial(nursery, shards, base / f"undisturbed-{number}", setting, 0)
        codes = trial.start({"rank": number}).wait(120)
        assert codes == [0] * WORLD, trial.said()
        passed = {place: int(times) for place, times in re.findall(r"passed ([\w -]+): (\d+)", trial.said())}
        found.append(Reference(trial.final(), passed))
    assert found[0].final == found[1].final, "two undisturbed runs differ"
    # the second rank is the one that dies, but for the marker, which the main rank writes
    passed = {place: found[1].passed[place] or times for place, times in found[0].passed.items()}
    return Reference(found[0].final, passed)


def end_of(ranks: Ranks) -> list[int]:
    """Exit codes, once one rank has ended by itself and the others were given their grace, as the launcher does it."""
    limit = time.monotonic() + 60
    while ranks.running() and not any(ranks.codes.values()) and time.monotonic() < limit:
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGKILL):
        grace = time.monotonic() + GRACE
        while ranks.running() and time.monotonic() < grace:
            time.sleep(0.01)
        for rank in range(len(ranks.pids)):
            if ranks.codes[ranks.pids[rank]] is None:
                ranks.signal(rank, number)
    return ranks.wait(10)
