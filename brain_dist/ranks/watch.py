"""Find the rank that blocks the others, and end the run with its name.

If a rank is killed or stopped, the others wait in a collective, which cannot tell which rank is missing. Therefore a
thread of every rank writes a heartbeat to the rendezvous store once a second. A heartbeat says what the main thread is
doing. If the main thread makes no progress for ``train.timeout`` seconds, the thread reads the heartbeats of all ranks,
names the rank that blocks the run, and ends the process. The main thread cannot do this: it is blocked in the
collective. A rank may take longer for some activities, such as copying shards; meanwhile the others wait for it. Time
in which a whole process was stopped (Ctrl-Z, a scheduler that suspends jobs) does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from brain_dist.errors import EXIT_FAULT, Fault, UserError
from brain_dist.ranks.rendezvous import LONGEST_STEP, SHORTEST_WAIT, connect, serve_store

if TYPE_CHECKING:
    from brain_dist.ranks.world import World

Item = TypeVar("Item")
HEARTBEAT_INTERVAL = 1.0  # seconds
SILENCE = 3.0  # seconds without a heartbeat after which a rank counts as silent
STORE_TIMEOUT = 5.0  # seconds that the store has to answer
SHARED_MEMORY = Path("/dev/shm")
SCARCE = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Heartbeat:
    """What a rank reports to the others.

    Attributes:
        count: number of this heartbeat; it only grows.
        progress: number of progress reports of the main thread; it only grows.
        activity: what the main thread is doing.
        overdue: whether the main thread makes no progress for longer than it may.
        host: name of the node.
    """

    count: int
    progress: int
    activity: str
    overdue: bool
    host: str


class Watch:
    """Records the progress of this rank and reads the heartbeats of the others.

    Attributes:
        progress: number of progress reports so far.
        activity: what the main thread is doing; completes the sentence "rank 1 is …".
        last_progress: time of the last progress report, of ``time.monotonic``.
        worker_processes: whether worker processes hand over images through shared memory (``data.loader=torch``).
    """

    def __init__(self, world: World, timeout: float, store: Any = None) -> None:
        """``timeout``: seconds without progress; ``store``: the rendezvous store, None until this rank is connected."""
        self.world, self.timeout = world, timeout
        self.progress, self.worker_processes = -1, False
        self.report_progress("starting", LONGEST_STEP)
        self._store = store
        self._closed = threading.Event()

    def report_progress(self, activity: str, allowance: float = 0.0) -> None:
        """Record that the main thread makes progress, and what it does next.

        ``allowance``: seconds that this may take, if that is more than the timeout.
        """
        self.progress += 1
        self.activity, self.last_progress = activity, time.monotonic()
        self._limit = max(self.timeout, allowance)

    def watch_items(self, items: Iterable[Item], activity: str) -> Iterator[Item]:
        """Yield ``items`` and report progress for each, so that a long loop does not look like a blocked rank."""
        for item in items:
            self.report_progress(activity)
            yield item

    def find_cause(self, *, patient: bool = False) -> str:
        """Name what blocks this rank, as one clause; takes a few seconds.

        With ``patient``, the result is empty if all ranks are alive and one of them may still take its time.
        """
        loading = self.activity.startswith(("loading", "evaluating"))
        if loading and self.worker_processes and SHARED_MEMORY.is_dir():
            free = shutil.disk_usage(SHARED_MEMORY).free
            if free < SCARCE:
                return (
                    f"{SHARED_MEMORY}, through which worker processes hand over images, has only {free // 1024} KiB"
                    " free: give it more (docker run --shm-size=8g), or lower data.threads or data.prefetch"
                )
        if self.world.size == 1:
            storage = "the storage of the shards, " if loading else ""
            return f"{storage}a library or a worker process of this run does not answer"
        earlier = self._read_heartbeats()
        time.sleep(SILENCE)
        heartbeats = self._read_heartbeats()
        if earlier is None or heartbeats is None:
            return f"rank 0, which serves the rendezvous at {self.world.address}:{self.world.port}, does not answer"

        def names(ranks: list[int]) -> str:
            return ", ".join(_describe(rank, heartbeats.get(rank)) for rank in ranks)

        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        silent = [rank for rank in others if rank not in heartbeats or heartbeats[rank] == earlier.get(rank)]
        if silent:
            return f"no heartbeat from {names(silent)}: killed, stopped or disconnected"
        if patient and not all(heartbeats[rank].overdue for rank in others):
            return ""
        least = min(heartbeat.progress for heartbeat in heartbeats.values())
        behind = [rank for rank, heartbeat in heartbeats.items() if heartbeat.progress == least]
        if len(behind) < len(heartbeats):
            return f"the others wait for {names(behind)}"
        return f"every rank is alive and {self.activity}; check the network between them"

    def _read_heartbeats(self) -> dict[int, Heartbeat] | None:
        """The last heartbeat of each rank that has one; None if the store does not answer."""
        if self._store is None:
            return None
        answers: list[dict[int, Heartbeat]] = []

        def read() -> None:
            with contextlib.suppress(RuntimeError, ValueError, TypeError):
                keys = {rank: _key(rank) for rank in range(self.world.size)}
                texts = {rank: self._store.get(key) for rank, key in keys.items() if self._store.check([key])}
                answers.append({rank: Heartbeat(**json.loads(text)) for rank, text in texts.items()})

        # if the store's process is stopped, a request never returns, whatever the store's own timeout
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(STORE_TIMEOUT)
        return answers[0] if answers else None

    def _write_heartbeats(self) -> None:
        """Write heartbeats until closed; end the process if the main thread makes no progress."""
        count, start = 0, time.monotonic()
        while not self._closed.wait(HEARTBEAT_INTERVAL):
            count += 1
            now = time.monotonic()
            if (stopped := now - start - HEARTBEAT_INTERVAL) > SILENCE:  # this process did not run
                self.last_progress = min(now, self.last_progress + stopped)
            idle, progress = now - self.last_progress, self.progress
            if self._store is not None:
                heartbeat = Heartbeat(count, progress, self.activity, idle > self._limit, platform.node())
                with contextlib.suppress(RuntimeError):  # a store that does not answer shows up in find_cause
                    self._store.set(_key(self.world.rank), json.dumps(vars(heartbeat)))
            if idle > self._limit:
                cause = self.find_cause(patient=True)
                if cause and progress == self.progress and not self._closed.is_set():
                    message = f"no progress for {idle:.0f} s while {self.activity}: {cause}"
                    print(f"brain-dist: error on rank {self.world.rank}: {message}", file=sys.stderr, flush=True)
                    os._exit(EXIT_FAULT)
            start = time.monotonic()

    def _connect(self) -> None:
        """Connect to the store, then write heartbeats; in a thread, as the main thread may be opening the data."""
        if self.world.size > 1:
            with contextlib.suppress(Fault):  # the main thread raises it, too
                self._store = connect(self.world, max(self.timeout, SHORTEST_WAIT))
        self._write_heartbeats()


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"


def _describe(rank: int, heartbeat: Heartbeat | None) -> str:
    if heartbeat is None:
        return f"rank {rank} (not started)"
    return f"rank {rank} on {heartbeat.host} ({heartbeat.activity})"


def check_timeout(timeout: float) -> None:
    """Check the seconds without progress that an option ``--timeout`` allows.

    Raises:
        UserError: they are not between 1 and 1,000,000.
    """
    if not 1 <= timeout <= 1_000_000:
        raise UserError(f"--timeout {timeout:g}: must be a number of seconds between 1 and 1000000")


@contextlib.contextmanager
def watch_ranks(world: World, timeout: float) -> Iterator[Watch]:
    """Watch all ranks for the length of a block, over a separate connection to the store, which rank 0 serves.

    Args:
        world: this process among all processes.
        timeout: seconds without progress after which the process ends.
    """
    server = serve_store(world)
    watch = Watch(world, timeout)
    threading.Thread(target=watch._connect, name="watch", daemon=True).start()
    try:
        yield watch
    finally:
        watch._closed.set()
        del server
