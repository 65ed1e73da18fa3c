"""The watch: what counts as progress, and which rank is named as the cause of a block."""

from __future__ import annotations

import dataclasses

import pytest
import torch.distributed as dist

from brain_dist.ranks import watch
from brain_dist.ranks.watch import Watch
from brain_dist.ranks.world import discover


def test_each_batch_of_a_long_evaluation_is_progress() -> None:
    alone = Watch(discover({}), timeout=1.0)
    before = alone.last_progress
    progress = [alone.progress for _ in alone.watch_items("abc", "evaluating after step 7")]
    assert progress == [1, 2, 3]
    assert alone.activity == "evaluating after step 7"
    assert alone.last_progress > before


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[Watch]:
    """The watches of three ranks on one store, each after one report of progress."""
    monkeypatch.setattr(watch, "SILENCE", 0.5)
    monkeypatch.setattr(watch, "HEARTBEAT_INTERVAL", 0.1)
    store = dist.HashStore()
    worlds = [dataclasses.replace(discover({}), rank=rank, size=3) for rank in range(3)]
    created = [Watch(world, 600.0, store) for world in worlds]
    for each in created:
        each.report_progress("computing step 4")
    return created


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
