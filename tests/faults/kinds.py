"""The kinds of fault. Each one starts a run, causes the fault at a random moment, and checks how the run ends."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from functools import partial

import surroundings
from fork_server import Ranks
from inject import fill_disk
from trial import TIMEOUT, WORLD_SIZE, Kind, Outcome, Reference, Trial, mounted, wait_like_launcher, wait_while

from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps, verify_checkpoint

USER_ERROR = [2] * WORLD_SIZE


def killed_at(place: str, trial: Trial, reference: Reference) -> Outcome:
    """SIGKILL of one rank during a computation, a collective or a write."""
    rank = 0 if place == "checkpoint marker" else 1  # only the main rank writes the marker
    count = trial.random.randint(1, reference.executions[place])
    codes = wait_like_launcher(trial.start({"place": place, "count": count, "rank": rank}))
    assert codes[rank] == -signal.SIGKILL, (place, codes, trial.output())
    assert codes[1 - rank] != 0, "the other rank did not notice"
    outcome = trial.outcome(f"SIGKILL in {place}", True)
    trial.resume_and_compare(outcome, reference)
    return outcome


def killed(kind: str, strike: Callable[[Ranks, Trial], None], trial: Trial, reference: Reference) -> Outcome:
    """``strike`` kills ranks at a random moment."""
    outcome, _ = struck(kind, strike, trial)
    trial.resume_and_compare(outcome, reference)
    return outcome


def stopped(kind: str, strike: Callable[[Ranks, Trial], None], trial: Trial, reference: Reference) -> Outcome:
    """``strike`` asks the run to stop at a random moment: all ranks save and exit with code 75."""
    outcome, codes = struck(kind, strike, trial)
    if outcome.injected:
        # before the first step only the ranks that got the signal stop by themselves, and the launcher ends the others
        ended_by = {128 + signal.SIGTERM, 128 + signal.SIGUSR1} & set(codes)
        early = ended_by and "before the first step" in outcome.output
        # before Python has installed the handler, a signal kills the process
        killed = {-signal.SIGTERM, -signal.SIGUSR1} & set(codes)
        assert codes == [75] * WORLD_SIZE or early or killed, (codes, outcome.output)
    trial.resume_and_compare(outcome, reference)
    return outcome


def struck(kind: str, strike: Callable[[Ranks, Trial], None], trial: Trial) -> tuple[Outcome, list[int]]:
    """Start a run and call ``strike`` at a random moment; return the outcome and the exit codes."""
    ranks = trial.start()
    running = trial.wait_for_random_moment(ranks)
    if running:
        strike(ranks, trial)
    codes = wait_like_launcher(ranks)
    return trial.outcome(kind, running and any(codes)), codes  # all codes are 0 after a fault in the last step


def kill_one(ranks: Ranks, trial: Trial) -> None:
    """SIGKILL to one rank."""
    ranks.signal(trial.random.randrange(WORLD_SIZE), signal.SIGKILL)


def kill_all(ranks: Ranks, trial: Trial) -> None:
    """SIGKILL to all ranks, as when a machine loses power."""
    for rank in range(WORLD_SIZE):
        ranks.signal(rank, signal.SIGKILL)


def terminate_one(ranks: Ranks, trial: Trial) -> None:
    """SIGTERM or SIGUSR1 to one rank only."""
    ranks.signal(trial.random.randrange(WORLD_SIZE), trial.random.choice([signal.SIGTERM, signal.SIGUSR1]))


def signal_repeatedly(ranks: Ranks, trial: Trial) -> None:
    """SIGUSR1 to one rank, then SIGTERM to both many times while they save."""
    ranks.signal(trial.random.randrange(WORLD_SIZE), signal.SIGUSR1)
    for _ in range(40):
        time.sleep(0.005)
        for rank in range(WORLD_SIZE):
            ranks.signal(rank, signal.SIGTERM)


def create_stop_file(ranks: Ranks, trial: Trial) -> None:
    """A file named STOP in the run's folder."""
    trial.run.mkdir(exist_ok=True)
    (trial.run / "STOP").touch()


def hung(trial: Trial, reference: Reference) -> Outcome:
    """SIGSTOP of one rank: the other one ends within the timeout and names the hanging rank and the step."""
    ranks = trial.start(settings=["--train.timeout", str(TIMEOUT)])
    wait_while(ranks, lambda: "steps" not in trial.output())  # the ranks watch each other from the first line on
    victim = trial.random.randrange(WORLD_SIZE)
    other = 1 - victim
    running = trial.wait_for_random_moment(ranks)
    ranks.signal(victim, signal.SIGSTOP)
    wait_while(ranks, lambda: ranks.codes[other] is None, timeout=3 * TIMEOUT + 10)
    code = ranks.codes[other]
    ranks.signal(victim, signal.SIGKILL)
    ranks.wait(20)
    outcome = trial.outcome("SIGSTOP", running and code != 0)
    if outcome.injected:
        assert code == 1, (code, outcome.output)
        message = rf"error on rank {other}.*(after|while|step).*rank {victim}\b"
        assert re.search(message, outcome.output), outcome.output
    trial.resume_and_compare(outcome, reference)
    return outcome


def full_disk(trial: Trial, reference: Reference) -> Outcome:
    """Another program fills the disk: the run ends with a one-line error and resumes once there is space again."""
    with mounted(trial.runs, "size=64m"):
        ranks = trial.start()
        running = trial.wait_for_random_moment(ranks)
        ballast = fill_disk(trial.runs)
        codes = wait_like_launcher(ranks)
        outcome = trial.outcome("full disk", running and any(codes))
        if outcome.injected:
            assert "No space left on device" in outcome.output, outcome.output
            assert "Traceback" not in outcome.output, outcome.output
        ballast.unlink()
        trial.resume_and_compare(outcome, reference)
    return outcome


def read_only(trial: Trial, reference: Reference) -> Outcome:
    """The run's folder becomes read-only: the run and a new start end with an error, and a later start resumes."""
    ranks = trial.start()
    wait_while(ranks, lambda: not trial.checkpoints.exists())
    running = trial.wait_for_random_moment(ranks)
    with mounted(trial.run, "ro"):
        codes = wait_like_launcher(ranks)
        outcome = trial.outcome("read-only run folder", running and any(codes))
        if outcome.injected:
            assert re.search("could not be (written|used)", outcome.output), outcome.output
            assert "Traceback" not in outcome.output, outcome.output
            assert trial.start().wait(60) == USER_ERROR
            assert "can't be written (Read-only file system); choose another run.dir" in trial.output()
    trial.resume_and_compare(outcome, reference)
    return outcome


def truncate(data: bytearray, trial: Trial) -> None:
    """Cut the data at a random place."""
    del data[trial.random.randrange(len(data)) :]


def flip_bit(data: bytearray, trial: Trial) -> None:
    """Flip one random bit of the data."""
    data[trial.random.randrange(len(data))] ^= 1 << trial.random.randrange(8)


def damaged(kind: str, damage: Callable[[bytearray, Trial], None], trial: Trial, reference: Reference) -> Outcome:
    """All ranks are killed and a file of the newest checkpoint is damaged: the run resumes from the one before."""
    ranks = trial.start()
    wait_while(ranks, lambda: len(complete_steps(trial.checkpoints)) < 2)
    trial.wait_for_random_moment(ranks)
    kill_all(ranks, trial)
    ranks.wait(10)
    newest = checkpoint_folder(trial.checkpoints, trial.newest_step())
    victim = trial.random.choice(sorted(newest.iterdir()))
    data = bytearray(victim.read_bytes())
    damage(data, trial)
    victim.write_bytes(data)
    assert verify_checkpoint(newest), f"the damage of {victim} was not detected"
    outcome = trial.outcome(kind, True)
    trial.resume_and_compare(outcome, reference)
    assert f"checkpoint {int(newest.name)} is damaged and skipped" in trial.output(), trial.output()
    return outcome


def shard_deleted(trial: Trial, reference: Reference) -> Outcome:
    """A shard is deleted during the run: the run ends with an error that names it, or has read it already."""
    ranks = trial.start()
    running = trial.wait_for_random_moment(ranks)
    victim = trial.random.choice(sorted(trial.shards.glob("*-train-*.tar")))
    backup = trial.base / "backup.tar"
    victim.rename(backup)
    codes = wait_like_launcher(ranks)
    outcome = trial.outcome("shard deleted", running)
    if any(codes):
        assert victim.name in outcome.output, outcome.output
    if trial.run.exists() and any(codes):
        codes = wait_like_launcher(trial.start())  # still without the shard
        assert codes == USER_ERROR, trial.output()
        assert victim.name in trial.output(), trial.output()
        assert "Traceback" not in trial.output(), trial.output()
    backup.rename(victim)
    trial.resume_and_compare(outcome, reference)
    return outcome


PLACES = ["forward", "backward", "all-reduce", "checkpoint file", "checkpoint marker"]
KINDS: dict[str, Kind] = {
    **{f"SIGKILL in {place}": partial(killed_at, place) for place in PLACES},
    "SIGKILL of one rank": partial(killed, "SIGKILL of one rank", kill_one),
    "SIGKILL of all ranks": partial(killed, "SIGKILL of all ranks", kill_all),
    "signal to one rank": partial(stopped, "signal to one rank", terminate_one),
    "signals during the save": partial(stopped, "signals during the save", signal_repeatedly),
    "STOP file": partial(stopped, "STOP file", create_stop_file),
    "SIGSTOP": hung,
    "full disk": full_disk,
    "read-only run folder": read_only,
    "checkpoint file truncated": partial(damaged, "checkpoint file truncated", truncate),
    "checkpoint file flipped": partial(damaged, "checkpoint file flipped", flip_bit),
    "shard deleted": shard_deleted,
    **surroundings.KINDS,
}
