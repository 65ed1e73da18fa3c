"""One run with an injected fault: start it, resume it, and compare its end with that of an undisturbed run."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fork_server import ForkServer, Ranks
from helpers import TINY, read_metrics

from brain_dist.checkpoints.layout import MARKER, checkpoint_folder, complete_steps, verify_checkpoint

WORLD_SIZE = 2
LAST_STEP = 13  # of 15; a later fault often comes after the end of the run
TIMEOUT = 6.0  # train.timeout in seconds, for a rank that hangs
GRACE = 15.0  # seconds until the other ranks get SIGTERM after a failure; launch/local.py waits 10
# 15 steps of a tiny network, a checkpoint after every second one, and everything that makes an exact resume difficult
SETTINGS_OF_ALL = [
    *(*TINY, "--run.device", "cpu", "--augment.mixup", "0.4", "--model.drop_path", "0.2", "--optim.lr", "1e-3"),
    *("--train.global_batch", "24", "--train.micro_batch", "12", "--train.epochs", "3"),
    *("--train.save_every", "2", "--train.keep", "3", "--train.timeout", "60"),
]
SETTINGS = {
    "ZeRO 0, fp32, EMA": ["--train.zero_stage", "0", "--train.precision", "fp32", "--optim.ema", "0.9"],
    "ZeRO 1, bf16": ["--train.zero_stage", "1", "--train.precision", "bf16"],
    "ZeRO 2, amp, EMA": ["--train.zero_stage", "2", "--train.precision", "amp", "--optim.ema", "0.9"],
    "ZeRO 3, fp32": ["--train.zero_stage", "3", "--train.precision", "fp32"],
}


@dataclass
class Reference:
    """An undisturbed run.

    Attributes:
        setting: Key of :data:`SETTINGS`.
        run: Its folder.
        files: Contents of its last checkpoint's files, by name.
        executions: How often each place of :mod:`inject` was executed.
    """

    setting: str
    run: Path
    files: dict[str, bytes]
    executions: dict[str, int]


@dataclass
class Outcome:
    """Result of a run with a fault.

    Attributes:
        kind: Kind of fault.
        setting: Key of :data:`SETTINGS`.
        injected: The fault came before the end of the run.
        recovered: The same command then ran to its end.
        lost: Steps that the resumed run repeated although an intact checkpoint contained them.
        wrong: Names of files in the last checkpoint that differ from the reference.
        wrong_table: A table of predictions or of images differs from that of an undisturbed command.
        output: Output of the failed ranks.
    """

    kind: str
    setting: str
    injected: bool
    recovered: bool = False
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    wrong_table: bool = False
    output: str = ""


class Trial:
    """A run folder with its own copy of the shards. Each start of its ranks is one attempt."""

    def __init__(self, server: ForkServer, shards: Path, base: Path, setting: str, seed: int) -> None:
        self.server, self.setting, self.base = server, setting, base
        self.random = random.Random(seed)
        self.shards, self.runs = base / "shards", base / "runs"
        self.run = self.runs / "run"
        self.checkpoints = self.run / "checkpoints"
        self.attempts = 0
        self.images = shards.parent / "images"
        shutil.copytree(shards, self.shards)
        self.runs.mkdir()

    @property
    def log(self) -> Path:
        """Log file of the last attempt."""
        return self.base / f"log-{self.attempts}"

    def output(self) -> str:
        """Output of the last attempt."""
        return self.log.read_text() if self.log.exists() else ""

    def arguments(self, settings: Sequence[str] = ()) -> list[str]:
        """Arguments of ``train``."""
        paths = ["--data.shards", str(self.shards), "--run.dir", str(self.runs), "--run.name", "run"]
        return [*SETTINGS_OF_ALL, *SETTINGS[self.setting], *paths, *settings]

    def start(self, fault: dict[str, Any] | None = None, settings: Sequence[str] = (), **options: Any) -> Ranks:
        """Start the ranks, with a fault of :mod:`inject`, additional settings and options of :class:`Ranks`."""
        self.attempts += 1
        arguments = self.arguments(settings)
        return Ranks(self.server, WORLD_SIZE, "train", arguments, self.log, inject=fault, **options)

    def outcome(self, kind: str, injected: bool) -> Outcome:
        """An outcome with the output of the last attempt."""
        return Outcome(kind, self.setting, injected, output=self.output())

    def newest_step(self) -> int:
        """Step of the newest intact checkpoint; 0 if there is none."""
        steps = complete_steps(self.checkpoints)
        return max((s for s in steps if not verify_checkpoint(checkpoint_folder(self.checkpoints, s))), default=0)

    def newest_files(self) -> dict[str, bytes]:
        """Files of the newest intact checkpoint by name, without the marker, which contains times."""
        folder = checkpoint_folder(self.checkpoints, self.newest_step())
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}

    def wait_for_random_moment(self, ranks: Ranks) -> bool:
        """Wait for a random moment between start-up and step ``LAST_STEP``; return whether the ranks still run.

        Most moments are counted in steps, because the duration of a step depends on the load of the machine.
        """
        if self.random.random() < 0.2:
            wait_while(ranks, timeout=self.random.uniform(0, 2))
            return ranks.running()
        step = self.random.randrange(LAST_STEP)
        metrics = self.run / "metrics.jsonl"
        wait_while(ranks, lambda: all(row["step"] < step for row in read_metrics(metrics)))
        time.sleep(self.random.uniform(0, 0.2))
        return ranks.running()

    def resume_and_compare(self, outcome: Outcome, reference: Reference, settings: Sequence[str] = ()) -> None:
        """Run the same command again and complete ``outcome`` by comparison with the reference."""
        newest_step = self.newest_step()
        codes = self.start(settings=settings).wait(90)
        output = self.output()
        outcome.recovered = codes == [0] * WORLD_SIZE
        if not outcome.recovered:
            outcome.output += output
        elif "is already complete" not in output:
            resumed_at = re.search(r"resuming at step (\d+) of", output)
            outcome.lost = newest_step - (int(resumed_at[1]) if resumed_at else 0)
        files = self.newest_files() if outcome.recovered else {}
        names = sorted(set(files) | set(reference.files))
        outcome.wrong = [name for name in names if files.get(name) != reference.files.get(name)]


Kind = Callable[[Trial, Reference], Outcome]


def wait_while(ranks: Ranks, condition: Callable[[], bool] = lambda: True, timeout: float = math.inf) -> None:
    """Wait while a rank runs and the condition holds, at most ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while ranks.running() and condition() and time.monotonic() < deadline:
        time.sleep(0.005)


@contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory over a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def reference_run(
    server: ForkServer, shards: Path, base: Path, setting: str, settings: Sequence[str] = ()
) -> Reference:
    """Train undisturbed, and count how often the ranks execute each place."""
    trial = Trial(server, shards, base, setting, seed=0)
    codes = trial.start({"count_places": True}, settings).wait(120)
    assert codes == [0] * WORLD_SIZE, trial.output()
    counts = dict(re.findall(r"executions on rank (\d): (\{[^}]*\})", trial.output()))
    main_rank, second_rank = (json.loads(counts[str(rank)]) for rank in range(WORLD_SIZE))
    # faults are injected into the second rank, except at the marker, which only the main rank writes
    executions = {place: count or main_rank[place] for place, count in second_rank.items()}
    return Reference(setting, trial.run, trial.newest_files(), executions)


def wait_like_launcher(ranks: Ranks) -> list[int]:
    """Wait until one rank has failed, give the others ``GRACE`` seconds, then stop them; return the exit codes."""
    wait_while(ranks, lambda: not any(ranks.codes), timeout=60)
    for number in (signal.SIGTERM, signal.SIGKILL):
        wait_while(ranks, timeout=GRACE)
        for rank, code in enumerate(ranks.codes):
            if code is None:
                ranks.signal(rank, number)
    return ranks.wait(10)
