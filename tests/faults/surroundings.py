"""Kinds of fault around the ranks: launcher, network, disks, W&B, strangers, and evaluation beside training."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from helpers import ROOT, environment, interrupt, launch, read_metrics, without_progress
from inject import FULL_SHM, fill_disk
from trial import (
    LAST_STEP,
    TIMEOUT,
    WORLD_SIZE,
    Kind,
    Outcome,
    Reference,
    Trial,
    mounted,
    reference_run,
    wait_like_launcher,
    wait_while,
)

from benchmarks.support.namespaces import network
from brain_dist.checkpoints.choice import best_step
from brain_dist.checkpoints.layout import complete_steps

STEPS = 15


def launcher_struck(kind: str, number: signal.Signals, trial: Trial, reference: Reference) -> Outcome:
    """A signal to launch/local.py: all ranks save and end."""
    step = trial.random.randrange(LAST_STEP)
    trial.attempts += 1
    result = interrupt(
        WORLD_SIZE, trial.arguments(), lambda: len(train_rows(trial.run)) > step,
        send=lambda launcher: launcher.send_signal(number),
    )  # fmt: skip
    trial.log.write_text(result.err)
    newest = trial.newest_step()
    outcome = trial.outcome(kind, newest < STEPS)
    if outcome.injected:
        assert result.code == (-number if number == signal.SIGKILL else 75), (result.code, result.err)
        assert f"stop requested: step {newest} of" in result.err, result.err
        assert newest == len(train_rows(trial.run)), "steps were not saved"
    trial.resume_and_compare(outcome, reference)
    return outcome


def train_rows(run: Path) -> list[dict[str, object]]:
    """Rows of the optimiser steps in metrics.jsonl."""
    return [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]


def partitioned(trial: Trial, reference: Reference) -> Outcome:
    """The network between two nodes is cut: both ranks end with one line within the timeout."""
    with network(WORLD_SIZE) as namespaces:
        ranks = trial.start(settings=["--train.timeout", str(TIMEOUT)], namespaces=namespaces)
        wait_while(ranks, lambda: "steps" not in trial.output())  # the ranks watch each other from the first line on
        running = trial.wait_for_random_moment(ranks)
        bridge = f"bd{os.getpid()}s"
        subprocess.run(["ip", "-n", bridge, "link", "set", "p1", "down"], check=True)
        codes = ranks.wait(3 * TIMEOUT + 30)
    outcome = trial.outcome("network partition", running and any(codes))
    if outcome.injected:
        assert 1 in codes, (codes, outcome.output)
        assert "brain-dist: error" in outcome.output, outcome.output
        assert "Traceback" not in outcome.output, outcome.output
    trial.resume_and_compare(outcome, reference)
    return outcome


def no_space(kind: str, trial: Trial, reference: Reference) -> Outcome:
    """The disk is full when a command writes: one line, nothing is left behind, and then it writes the right files."""
    verb, processes, arguments, name = {
        "evaluate": ("evaluate", WORLD_SIZE, [str(reference.run), "--split", "train"], "predictions"),
        "report": ("report", 1, [str(reference.run)], "page.html"),
        "build": ("shard", 1, ["build", "--source", str(trial.images), "--shard-size", "100kB"], "shards"),
    }[kind]
    if kind == "report" and not (reference.run / "predictions" / "test.parquet").exists():
        launch(1, "evaluate", str(reference.run))
    launch(processes, verb, *arguments, "--out", str(trial.base / name))
    expected = contents(trial.base / name)
    disk = trial.base / "disk"
    disk.mkdir()
    with mounted(disk, "size=16m"):
        ballast = fill_disk(disk, leave=trial.random.randrange(sum(map(len, expected.values()))))
        result = launch(processes, verb, *arguments, "--out", str(disk / name), expect=None)
        outcome = Outcome(f"full disk in {kind}", trial.setting, True, output=result.err)
        assert result.code in (1, 2), result
        assert "No space left on device" in result.err, result.err
        assert "Traceback" not in result.err, result.err
        assert not [path for path in disk.rglob("*") if path.is_file() and path != ballast and path.stat().st_size]
        ballast.unlink()
        result = launch(processes, verb, *arguments, "--out", str(disk / name), expect=None)
        outcome.recovered = result.code == 0
        outcome.output += result.err
        outcome.wrong_table = contents(disk / name) != expected
    return outcome


def contents(path: Path) -> dict[str, bytes]:
    """Contents of a file, or of all files in a folder by name."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def full_shared_memory(trial: Trial, reference: Reference) -> Outcome:
    """/dev/shm is full, through which the loading processes of one rank hand over images: one line that says so."""
    settings = ["--data.loader", "torch", "--data.prefetch", "1"]
    undisturbed = reference_run(trial.server, trial.shards, trial.base / "undisturbed", trial.setting, settings)
    rank = trial.random.randrange(WORLD_SIZE)
    count = trial.random.randint(1, LAST_STEP)
    fault = {"rank": rank, "place": "step", "count": count, "action": FULL_SHM}
    codes = wait_like_launcher(trial.start(fault, settings))
    outcome = trial.outcome("full /dev/shm", any(codes))
    if outcome.injected:
        assert codes[rank] == 1, (codes, outcome.output)
        assert "/dev/shm" in outcome.output, outcome.output
        assert "Traceback" not in outcome.output, outcome.output
    trial.resume_and_compare(outcome, undisturbed, settings)
    return outcome


def tracker_unreachable(trial: Trial, reference: Reference) -> Outcome:
    """W&B does not answer although there is a key: training goes on and keeps all rows in its folder."""
    from wandb_files import history

    account = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    codes = trial.start(settings=["--track.wandb", "auto"], env=account).wait(120)
    outcome = trial.outcome("W&B unreachable", True)
    assert codes == [0] * WORLD_SIZE, (codes, outcome.output)
    assert "logging offline, as W&B did not answer" in outcome.output, outcome.output
    (folder,) = trial.run.glob("wandb/offline-run-*")
    assert len(history(folder)) == len(read_metrics(trial.run / "metrics.jsonl"))
    trial.resume_and_compare(outcome, reference)
    return outcome


def metrics_lost(trial: Trial, reference: Reference) -> Outcome:
    """All ranks are killed and metrics.jsonl is cut or deleted: the best checkpoint stays the best one."""
    settings = ["--train.best", "accuracy", "--train.keep", "1"]
    ranks = trial.start(settings=settings)
    step = trial.random.randrange(6, LAST_STEP)  # after the first evaluation
    wait_while(ranks, lambda: len(train_rows(trial.run)) < step or max(complete_steps(trial.checkpoints)) < 5)
    for rank in range(WORLD_SIZE):
        ranks.signal(rank, signal.SIGKILL)
    codes = ranks.wait(10)
    file = trial.run / "metrics.jsonl"
    if trial.random.random() < 0.5:
        file.unlink()
    else:
        os.truncate(file, trial.random.randrange(file.stat().st_size))
    outcome = trial.outcome("metrics.jsonl lost", any(codes))
    trial.resume_and_compare(outcome, reference, settings)
    accuracy = {r["step"]: r["accuracy"] for r in read_metrics(reference.run / "metrics.jsonl") if r["kind"] == "eval"}
    saved = complete_steps(trial.checkpoints)
    assert best_step(trial.run, "accuracy", saved) == max(accuracy, key=lambda s: accuracy[s]), (accuracy, saved)
    return outcome


def saved_during_evaluation(trial: Trial, reference: Reference) -> Outcome:
    """Two ranks evaluate while checkpoints are written: every row comes from the one that the table names."""
    from brain_dist.judging.predictions import read_predictions

    training = trial.start(settings=["--train.keep", "100", "--train.save_every", "1"])
    wait_while(training, lambda: not complete_steps(trial.checkpoints))
    wait_while(training, timeout=trial.random.uniform(0, 1))
    before = len(complete_steps(trial.checkpoints))
    arguments = ["evaluate", str(trial.run), "--split", "train"]
    launch(WORLD_SIZE, *arguments, "--name", "during")
    saved = len(complete_steps(trial.checkpoints)) - before
    assert training.wait(120) == [0] * WORLD_SIZE, trial.output()
    outcome = trial.outcome("checkpoint during evaluation", saved > 0)
    during = read_predictions(trial.run / "predictions" / "during.parquet")
    launch(WORLD_SIZE, *arguments, "--name", "after", "--step", str(during.step))
    after = read_predictions(trial.run / "predictions" / "after.parquet")
    outcome.wrong_table = not (np.array_equal(during.row, after.row) and np.array_equal(during.logit, after.logit))
    trial.resume_and_compare(outcome, reference)
    return outcome


def absent(trial: Trial, reference: Reference) -> Outcome:
    """A rank never arrives at the rendezvous: the other one ends with one line that names it."""
    ranks = trial.start(settings=["--train.timeout", str(TIMEOUT)])
    victim = trial.random.randrange(WORLD_SIZE)
    ranks.signal(victim, signal.SIGKILL)
    codes = ranks.wait(90)
    outcome = trial.outcome("absent rank", True)
    assert codes[1 - victim] == 1, (codes, outcome.output)
    message = (
        "rank 0 does not answer at" if victim == 0 else "waiting for the other ranks to start: no heartbeat from rank 1"
    )
    assert message in outcome.output, outcome.output
    assert without_progress(outcome.output).count("\n") == 1, outcome.output
    trial.resume_and_compare(outcome, reference)
    return outcome


def stranger(trial: Trial, reference: Reference) -> Outcome:
    """A process without the secret joins or sends garbage: training goes on or ends, and no pickle is loaded."""
    early = trial.random.random() < 0.5
    sprung = trial.base / "sprung"
    ranks = trial.start()
    if early:
        ranks.signal(1, signal.SIGSTOP)  # the stranger takes its place
    running = early or trial.wait_for_random_moment(ranks)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.port)}
    command = [sys.executable, str(ROOT / "tests" / "support" / "stranger.py"), "1", str(sprung)]
    with subprocess.Popen(
        command, env=environment(**address), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as joining:
        try:
            if early:
                assert joining.stdout is not None
                joining.stdout.readline()  # it joins
                wait_while(ranks, timeout=2)
                ranks.signal(1, signal.SIGCONT)
            else:
                send_garbage(ranks.port, trial)
            codes = wait_like_launcher(ranks)
        finally:
            joining.kill()
    outcome = trial.outcome("stranger at the rendezvous", running)
    if any(codes):
        assert "brain-dist: error" in outcome.output, outcome.output
        assert "Traceback" not in outcome.output, outcome.output
    assert not sprung.exists(), "a pickle was loaded"
    trial.resume_and_compare(outcome, reference)
    return outcome


def send_garbage(port: int, trial: Trial) -> None:
    """Send random bytes to the rendezvous in several connections."""
    for _ in range(5):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(trial.random.randbytes(trial.random.randrange(1, 5000)))
                time.sleep(0.05)
        except OSError:  # the training has ended
            return


KINDS: dict[str, Kind] = {
    "SIGKILL of the launcher": partial(launcher_struck, "SIGKILL of the launcher", signal.SIGKILL),
    "SIGHUP to the launcher": partial(launcher_struck, "SIGHUP to the launcher", signal.SIGHUP),
    **{f"full disk in {verb}": partial(no_space, verb) for verb in ("evaluate", "report", "build")},
    "network partition": partitioned,
    "full /dev/shm": full_shared_memory,
    "W&B unreachable": tracker_unreachable,
    "metrics.jsonl lost": metrics_lost,
    "checkpoint during evaluation": saved_during_evaluation,
    "absent rank": absent,
    "stranger at the rendezvous": stranger,
}
