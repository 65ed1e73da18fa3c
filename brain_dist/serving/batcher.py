"""Dynamic batching: images of several requests go through the network together, in one thread.

While the thread computes a batch, further images arrive and become the next one, so batches grow with the load. The
slices of a volume take turns with the images of other requests. Images that nobody waits for any more are left out.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brain_dist.serving.metrics import Metrics

Compute = Callable[[list[np.ndarray]], list[Any]]


@dataclass(eq=False)
class _Job:
    """The images of one file, how many of them are in a batch, and the results so far."""

    images: list[np.ndarray]
    answer: asyncio.Future[list[Any]]
    taken: int = 0
    results: list[Any] = field(default_factory=list)


class Batcher:
    """Collects images into batches and computes them while :meth:`run` is running."""

    def __init__(self, compute: Compute, metrics: Metrics, *, max_batch: int, max_wait: float) -> None:
        self._compute, self._metrics, self._max_batch, self._max_wait = compute, metrics, max_batch, max_wait
        self._jobs: deque[_Job] = deque()
        self._arrival = asyncio.Event()
        self._arriving = 0
        self._worker = ThreadPoolExecutor(1, "network")

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """While a request's images are being decoded: a batch that is not full waits for them, a little."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1
            self._arrival.set()

    @property
    def waiting(self) -> int:
        """Number of images that no batch has taken yet."""
        return sum(len(job.images) - job.taken for job in self._jobs)

    async def results(self, images: list[np.ndarray]) -> list[Any]:
        """The results of ``compute`` for images uint8 [S, S] or [S, S, 3], in their order.

        Cancelling it withdraws the images.
        """
        job = _Job(images, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._arrival.set()
        return await job.answer

    async def call(self, function: Callable[[], Any]) -> Any:
        """The result of a function that is called in the network's thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)

    async def run(self) -> None:
        """Compute batches until this is cancelled."""
        while True:
            await self._collect()
            batch = self._take()
            if batch:
                start = time.perf_counter()
                await self._finish(batch)
                self._metrics.batch(len(batch), time.perf_counter() - start)

    async def _collect(self) -> None:
        """Wait for images, and for a full batch as long as others are about to arrive."""
        while not self._jobs:
            self._arrival.clear()
            await self._arrival.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait):
                while self._arriving and self.waiting < self._max_batch:
                    self._arrival.clear()
                    await self._arrival.wait()

    def _take(self) -> list[tuple[_Job, np.ndarray]]:
        """The next batch: one image of each job in turn."""
        batch: list[tuple[_Job, np.ndarray]] = []
        while self._jobs and len(batch) < self._max_batch:
            job = self._jobs.popleft()
            if job.answer.done():  # withdrawn, or failed
                continue
            batch.append((job, job.images[job.taken]))
            job.taken += 1
            if job.taken < len(job.images):
                self._jobs.append(job)
        return batch

    async def _finish(self, batch: list[tuple[_Job, np.ndarray]]) -> None:
        """Compute a batch and deliver its results. If it fails, each job is computed alone, so that one fails alone."""
        try:
            results = await self.call(lambda: self._compute([image for _, image in batch]))
        except Exception as error:
            jobs = list(dict.fromkeys(job for job, _ in batch))
            if len(jobs) > 1:
                for job in jobs:
                    await self._finish([pair for pair in batch if pair[0] is job])
            elif not jobs[0].answer.done():
                jobs[0].answer.set_exception(error)
            return
        for (job, _), result in zip(batch, results, strict=True):
            job.results.append(result)
            if len(job.results) == len(job.images) and not job.answer.done():
                job.answer.set_result(job.results)
