"""The watch: what counts as progress, which rank is named as the cause of a block, and how long a rank may take."""

from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch.distributed as dist
from helpers import ROOT, command, environment

from brain_dist.ranks import watch
from brain_dist.ranks.watch import Watch
from brain_dist.ranks.world import discover


def test_each_batch_of_a_long_evaluation_is_progress() -> None:
    alone = Watch(discover({}), timeout=1.0)
    before = alone.last_progress
    first = alone.progress
    progress = [alone.progress - first for _ in alone.watch_items("abc", "evaluating after step 7")]
    assert progress == [1, 2, 3]
    assert alone.activity == "evaluating after step 7"
    assert alone.last_progress > before


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watch]]:
    """The watches of three ranks on one store, each after one report of progress."""
    monkeypatch.setattr(watch, "SILENCE", 0.5)
    monkeypatch.setattr(watch, "HEARTBEAT_INTERVAL", 0.1)
    store = dist.HashStore()
    worlds = [dataclasses.replace(discover({}), rank=rank, size=3) for rank in range(3)]
    created = [Watch(world, 600.0, store) for world in worlds]
    for each in created:
        each.report_progress("computing step 4")
    yield created
    for each in created:
        each._closed.set()


def start(watches: list[Watch]) -> None:
    for each in watches:
        watch.threading.Thread(target=each._write_heartbeats, daemon=True).start()


def test_a_rank_without_heartbeats_is_named(watches: list[Watch]) -> None:
    start(watches[:2])
    assert watches[0].find_cause() == "no heartbeat from rank 2 (not started): killed, stopped or disconnected"
    start(watches[2:])
    watch.time.sleep(0.5)
    watches[2]._closed.set()  # as if killed
    watch.time.sleep(0.2)
    cause = watches[0].find_cause()
    assert cause.startswith("no heartbeat from rank 2 on ")
    assert cause.endswith(" (computing step 4): killed, stopped or disconnected")


def test_the_rank_with_the_least_progress_is_named(watches: list[Watch]) -> None:
    for each in watches[1:]:
        each.report_progress("waiting for the others after step 4")
    start(watches)
    watch.time.sleep(0.5)
    cause = watches[1].find_cause()
    assert cause.startswith("the others wait for rank 0 on ")
    assert cause.endswith(" (computing step 4)")
    watches[0].report_progress("waiting for the others after step 4")
    watch.time.sleep(0.5)
    assert watches[1].find_cause().startswith("every rank is alive and waiting for the others")


def test_a_rank_waits_for_another_one_that_may_take_its_time(watches: list[Watch]) -> None:
    start(watches)
    watch.time.sleep(0.5)
    assert watches[0].find_cause(patient=True) == ""
    for each in watches:
        each.last_progress -= 500.0
    watches[2].report_progress("opening the shards", math.inf)
    watches[2].last_progress -= 1e6
    watch.time.sleep(0.5)
    assert watches[0].find_cause(patient=True) == ""


ALONE = """
import subprocess, sys, time
from brain_dist.errors import leave
from brain_dist.ranks.watch import watch_ranks
from brain_dist.ranks.world import discover

def main():
    loader, *mount = sys.argv[1:]
    if mount:
        subprocess.run(mount, check=True)
    with watch_ranks(discover(), 1.0) as watch:
        watch.worker_processes = loader == "torch"
        watch.report_progress("computing step 0", 4.0)
        time.sleep(3)
        watch.report_progress("loading step 1")
        time.sleep(60)
    return 0

leave(main)
"""


def test_a_single_rank_is_watched_and_may_take_longer_for_its_first_step() -> None:
    result = command([sys.executable, "-c", ALONE, "opencv"], expect=1)
    assert result.err.count("\n") == 1
    assert "error on rank 0: no progress for " in result.err
    assert " while loading step 1: the storage of the shards, a library or a worker process of this run" in result.err


STOPPED = """
import sys
from brain_dist.errors import leave
from brain_dist.ranks.watch import watch_ranks
from brain_dist.ranks.world import discover

def main():
    with watch_ranks(discover(), 3.0) as watch:
        watch.report_progress("computing step 0")
        print("started", flush=True)
        return 0 if sys.stdin.readline() else 9

leave(main)
"""


def test_the_time_in_which_a_process_is_stopped_does_not_count() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=ROOT, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    watch.time.sleep(6)
    process.send_signal(signal.SIGCONT)
    watch.time.sleep(1.5)  # the watch looks once a second
    _, errors = process.communicate("go on\n", timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("loader", ["torch", "opencv"])
def test_full_shared_memory_is_named_if_images_pass_through_it(loader: str) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", "/dev/shm"]  # for one process only
    if subprocess.run(["unshare", "--mount", *mount], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    result = command(["unshare", "--mount", sys.executable, "-c", ALONE, loader, *mount], expect=1)
    named = "/dev/shm, through which worker processes hand over images, has only 256 KiB free" in result.err
    assert named == (loader == "torch"), result.err
