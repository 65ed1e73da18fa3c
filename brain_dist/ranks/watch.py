"""Who holds the others up: a sign of life of every rank, and an end with a name when there is none.

A rank that was killed or stopped leaves the others waiting in a collective, which knows no names. So a thread of every
rank tells the rendezvous store once a second that it lives and where its main thread is. When the main thread has made
no progress for ``train.timeout`` seconds, the thread reads what the others said, names the rank that holds the run up
and ends the process: the main thread, deep in a collective, can't.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from brain_dist.errors import EXIT_FAULT

if TYPE_CHECKING:
    from brain_dist.ranks.world import World

Item = TypeVar("Item")
BEAT = 1.0  # seconds between signs of life
_SILENT = 3.0  # seconds without one after which a rank counts as silent
_ANSWER = 5.0  # seconds that the store gets to answer
_START = 600.0  # seconds that a start gets at least: weights from a slow disk, a network compiled for the first time


@dataclass
class _Sign:
    """What a rank says of itself; ``beat`` and ``progress`` only grow."""

    beat: int
    progress: int
    where: str
    host: str


class Watch:
    """Notes where this rank is, and knows what the others said."""

    def __init__(self, world: World, timeout: float) -> None:
        self.world, self.timeout = world, timeout
        self.progress, self.where = 0, "starting"
        self.moved = time.monotonic()
        self._ended = threading.Event()
        self._store: Any = None

    def at(self, where: str) -> None:
        """The main thread makes progress; ``where`` completes the sentence "rank 1 is …"."""
        self.progress += 1
        self.where, self.moved = where, time.monotonic()

    def along(self, items: Iterable[Item], where: str) -> Iterator[Item]:
        """``items``, each of which is progress: what takes long as a whole is not taken for a rank that hangs."""
        for item in items:
            self.at(where)
            yield item

    def blame(self) -> str:
        """One clause that names whoever holds the others up; takes a few seconds."""
        if self._store is None:
            return "another rank ended"
        before = self._signs()
        time.sleep(_SILENT)
        now = self._signs()
        if before is None or now is None:
            return "rank 0, which serves the rendezvous, does not answer: it was killed, stopped or cut off"
        others = {rank: sign for rank, sign in now.items() if rank != self.world.rank}
        silent = [r for r, sign in others.items() if r not in before or before[r].beat == sign.beat]
        silent += [r for r in range(self.world.size) if r not in now and r != self.world.rank]
        if silent:
            told = [f"{_name(r, now.get(r))} (it was {now[r].where if r in now else 'starting'})" for r in silent]
            return f"no sign of life of {', '.join(told)}: killed, stopped or cut off"
        least = min(sign.progress for sign in now.values())
        behind = [r for r, sign in now.items() if sign.progress == least]
        if len(behind) < len(now):
            return f"the others wait for {', '.join(f'{_name(r, now[r])}, which is {now[r].where}' for r in behind)}"
        return f"every rank lives and is {self.where}: the network between them?"

    def _signs(self) -> dict[int, _Sign] | None:
        """What each rank said last; None where the store does not answer."""
        found: list[dict[int, _Sign]] = []

        def read() -> None:
            with contextlib.suppress(RuntimeError):
                keys = {rank: f"sign/{rank}" for rank in range(self.world.size)}
                said = {rank: self._store.get(key) for rank, key in keys.items() if self._store.check([key])}
                found.append({rank: _Sign(**json.loads(text)) for rank, text in said.items()})

        # a store whose process was stopped takes the question and never answers, whatever its time-out
        asking = threading.Thread(target=read, daemon=True)
        asking.start()
        asking.join(_ANSWER)
        return found[0] if found else None

    def _live(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT):
            beat += 1
            sign = _Sign(beat, self.progress, self.where, platform.node())
            with contextlib.suppress(RuntimeError):  # a store that does not answer is found out below, in time
                self._store.set(f"sign/{self.world.rank}", json.dumps(vars(sign)))
            still = time.monotonic() - self.moved
            limit = self.timeout if self.progress else max(self.timeout, _START)
            if still > limit and not self._ended.is_set():
                text = f"no progress for {still:.0f} s while {self.where}: {self.blame()}"
                print(f"brain-dist: error on rank {self.world.rank}: {text}", file=sys.stderr, flush=True)
                os._exit(EXIT_FAULT)


def _name(rank: int, sign: _Sign | None) -> str:
    return f"rank {rank} on {sign.host}" if sign else f"rank {rank}"


@contextlib.contextmanager
def watch_ranks(world: World, timeout: float) -> Iterator[Watch]:
    """Watch this rank and the others for the length of a block, with a connection to the store of its own."""
    watch = Watch(world, timeout)
    if world.size == 1:
        yield watch
        return
    from brain_dist.ranks.group import rendezvous

    watch._store = rendezvous(world)
    thread = threading.Thread(target=watch._live, name="watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch._ended.set()
