"""The kinds of fault: each starts a run, lets the fault strike at a random moment, and says what it saw."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from nursery import Ranks
from trial import WORLD, Outcome, Reference, Trial, end_of

from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps, verify_checkpoint

TIMEOUT = 6.0  # train.timeout where a rank hangs: how long it may hold the others up

Kind = Callable[[Trial, Reference], Outcome]


def outcome(kind: str, trial: Trial, injected: bool) -> Outcome:
    """An outcome with what the ranks printed."""
    return Outcome(kind, trial.setting, injected, said=trial.said())


def killed_inside(place: str, trial: Trial, reference: Reference) -> Outcome:
    """SIGKILL of one rank in the middle of a computation, a collective or a write."""
    rank = 0 if place == "checkpoint marker" else 1  # the main rank writes the marker
    passed = reference.passed[place]
    codes = end_of(trial.start({"place": place, "count": trial.random.randint(1, passed), "rank": rank}))
    assert codes[rank] == -signal.SIGKILL, (place, codes, trial.said())
    assert codes[1 - rank] != 0, "the other rank did not notice"
    found = outcome(f"SIGKILL in {place}", trial, True)
    trial.recover(found, reference)
    return found


def struck(kind: str, strike: Callable[[Ranks, Trial], None], trial: Trial, reference: Reference,
           *, stops: bool = False) -> Outcome:  # fmt: skip
    """``strike`` at a random moment of the run; ``stops``: all ranks must then save and end with code 75."""
    ranks = trial.start()
    injected = trial.moment(ranks)
    if injected:
        strike(ranks, trial)
    codes = end_of(ranks)
    found = outcome(kind, trial, injected and any(codes))  # it may have come when the last step was done
    if stops and found.injected:
        # a signal can come before Python has put a handler up, and then kills as it would any program
        assert codes == [75] * WORLD or -signal.SIGTERM in codes or -signal.SIGUSR1 in codes, (kind, codes, found.said)
    trial.recover(found, reference)
    return found


def kill_one(ranks: Ranks, trial: Trial) -> None:
    """SIGKILL to one rank."""
    ranks.signal(trial.random.randrange(WORLD), signal.SIGKILL)


def kill_all(ranks: Ranks, trial: Trial) -> None:
    """SIGKILL to all, as a machine that loses power."""
    for rank in range(WORLD):
        ranks.signal(rank, signal.SIGKILL)


def terminate_one(ranks: Ranks, trial: Trial) -> None:
    """SIGTERM or SIGUSR1 to one rank alone."""
    ranks.signal(trial.random.randrange(WORLD), trial.random.choice([signal.SIGTERM, signal.SIGUSR1]))


def signal_again(ranks: Ranks, trial: Trial) -> None:
    """A signal to one rank, and more to both while they save."""
    ranks.signal(trial.random.randrange(WORLD), signal.SIGUSR1)
    for _ in range(40):
        time.sleep(0.005)
        for rank in range(WORLD):
            ranks.signal(rank, signal.SIGTERM)


def stop_file(ranks: Ranks, trial: Trial) -> None:
    """A file named STOP in the run's folder."""
    trial.run.mkdir(exist_ok=True)
    (trial.run / "STOP").touch()


def hung(trial: Trial, reference: Reference) -> Outcome:
    """SIGSTOP of one rank: the other one ends within the time-out and names it and the step."""
    ranks = trial.start(more=["--train.timeout", str(TIMEOUT)])
    while "steps" not in trial.said() and ranks.running():  # from the first line on the ranks watch each other
        time.sleep(0.01)
    victim = trial.random.randrange(WORLD)
    injected = trial.moment(ranks)
    ranks.signal(victim, signal.SIGSTOP)
    other = ranks.pids[1 - victim]
    limit = time.monotonic() + 3 * TIMEOUT + 10
    while ranks.running() and ranks.codes[other] is None and time.monotonic() < limit:
        time.sleep(0.01)
    code = ranks.codes[other]
    ranks.signal(victim, signal.SIGKILL)
    ranks.wait(20)
    found = outcome("SIGSTOP", trial, injected and code != 0)
    if found.injected:
        assert code == 1, (code, found.said)
        named = rf"rank {victim}\b" if victim else r"rank 0\b"
        assert re.search(rf"error on rank {1 - victim}.*(after|while|step).*{named}", found.said), found.said
    trial.recover(found, reference)
    return found


def mounted(path: Path, *options: str) -> None:
    """Mount a file system of memory."""
    subprocess.run(["mount", "-t", "tmpfs", *options, "faults", str(path)], check=True)


@contextmanager
def covered(path: Path, *options: str) -> Iterator[None]:
    """A mount for the length of a block."""
    mounted(path, *options)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def full_disk(trial: Trial, reference: Reference) -> Outcome:
    """Something else fills the disk: the run ends with a line; freed, it goes on."""
    with covered(trial.runs, "-o", "size=64m"):
        ranks = trial.start()
        injected = trial.moment(ranks)
        ballast = trial.runs / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as opened:
            while True:
                opened.write(bytes(1 << 16))
        codes = end_of(ranks)
        found = outcome("full disk", trial, injected and any(codes))
        if found.injected:
            assert "No space left on device" in found.said, found.said
            assert "Traceback" not in found.said, found.said
        ballast.unlink()
        trial.recover(found, reference)
    return found


def read_only(trial: Trial, reference: Reference) -> Outcome:
    """The run's folder can't be written any more; a start on it says so, and on its return all goes on."""
    ranks = trial.start()
    while not trial.checkpoints.exists() and ranks.running():
        time.sleep(0.01)
    injected = trial.moment(ranks)
    with covered(trial.run, "-o", "ro"):
        codes = end_of(ranks)
        found = outcome("read-only run folder", trial, injected and any(codes))
        if found.injected:
            assert re.search("could not be (written|used)", found.said), found.said
            assert "Traceback" not in found.said, found.said
            assert trial.start().wait(60) == [2] * WORLD
            assert "can't be written (Read-only file system); choose another run.dir" in trial.said()
    trial.recover(found, reference)
    return found


def damaged(how: str, trial: Trial, reference: Reference) -> Outcome:
    """Killed, and a file of the newest checkpoint truncated or one of its bytes flipped: the one before is taken."""
    ranks = trial.start()
    while len(complete_steps(trial.checkpoints)) < 2 and ranks.running():
        time.sleep(0.01)
    trial.moment(ranks)
    kill_all(ranks, trial)
    ranks.wait(10)
    newest = checkpoint_folder(trial.checkpoints, trial.newest())
    victim = trial.random.choice(sorted(newest.iterdir()))
    data = bytearray(victim.read_bytes())
    at = trial.random.randrange(len(data))
    if how == "truncated":
        del data[at:]
    else:
        data[at] ^= 1 << trial.random.randrange(8)
    victim.write_bytes(data)
    assert verify_checkpoint(newest), f"{victim} is damaged and not found so"
    found = outcome(f"checkpoint file {how}", trial, True)
    trial.recover(found, reference)
    assert f"checkpoint {int(newest.name)} is damaged and skipped" in trial.said(), trial.said()
    return found


def shard_lost(trial: Trial, reference: Reference) -> Outcome:
    """A shard is deleted under the running job; the run names it, or holds it open and needs it no more."""
    ranks = trial.start()
    injected = trial.moment(ranks)
    victim = trial.random.choice(sorted(trial.shards.glob("*-train-*.tar")))
    aside = trial.base / "aside.tar"
    victim.rename(aside)
    codes = end_of(ranks)
    found = outcome("shard deleted", trial, injected)
    if any(codes):
        assert victim.name in found.said, found.said
    if trial.run.exists() and any(codes):  # started without it, the run says what is missing
        codes = end_of(trial.start())
        assert codes == [2] * WORLD, trial.said()
        assert victim.name in trial.said(), trial.said()
        assert "Traceback" not in trial.said(), trial.said()
    aside.rename(victim)
    trial.recover(found, reference)
    return found


PLACES = ["forward", "backward", "all-reduce", "checkpoint file", "checkpoint marker"]
KINDS: dict[str, Kind] = {
    **{f"SIGKILL in {place}": partial(killed_inside, place) for place in PLACES},
    "SIGKILL of one rank": partial(struck, "SIGKILL of one rank", kill_one),
    "SIGKILL of all ranks": partial(struck, "SIGKILL of all ranks", kill_all),
    "signal to one rank": partial(struck, "signal to one rank", terminate_one, stops=True),
    "signals during the save": partial(struck, "signals during the save", signal_again, stops=True),
    "STOP file": partial(struck, "STOP file", stop_file, stops=True),
    "SIGSTOP": hung,
    "full disk": full_disk,
    "read-only run folder": read_only,
    "checkpoint file truncated": partial(damaged, "truncated"),
    "checkpoint file flipped": partial(damaged, "flipped"),
    "shard deleted": shard_lost,
}
