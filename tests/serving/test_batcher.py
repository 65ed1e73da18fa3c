"""Batches: who shares one, who waits, and that one failure or withdrawal stays one, also of the files of a request."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import draw
from PIL import Image

import brain_dist
from brain_dist.prediction.predictor import Output, Predictor
from brain_dist.serving.batcher import Batcher
from brain_dist.serving.metrics import Metrics
from brain_dist.serving.service import Service
from brain_dist.serving.settings import Settings
from brain_dist.serving.uploads import Upload


def image(number: int) -> np.ndarray:
    return np.full((2, 2), number, dtype=np.uint8)


def in_batcher(compute: Any, work: Callable[[Batcher], Awaitable[Any]], *, max_batch: int = 4, wait: float = 0) -> Any:
    """The result of ``work`` with a running batcher."""

    async def main() -> Any:
        metrics = Metrics(in_service=lambda: 0, waiting=lambda: 0, ready=lambda: True)
        batcher = Batcher(compute, metrics, max_batch=max_batch, max_wait=wait)
        running = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(work(batcher), 30)
        finally:
            running.cancel()

    return asyncio.run(main())


class Recorder:
    """Returns the number of each image, keeps the batches, and fails for the number 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, images: list[np.ndarray]) -> list[int]:
        numbers = [int(each[0, 0]) for each in images]
        self.batches.append(numbers)
        time.sleep(0.02)
        if 13 in numbers:
            raise ValueError("13")
        return numbers


def test_images_that_arrive_during_a_batch_share_the_next() -> None:
    compute = Recorder()

    async def work(batcher: Batcher) -> list[list[int]]:
        first = asyncio.create_task(batcher.results([image(1)]))
        await asyncio.sleep(0.01)
        return [await first, *await asyncio.gather(*(batcher.results([image(n)]) for n in range(2, 8)))]

    assert in_batcher(compute, work) == [[n] for n in range(1, 8)]
    assert compute.batches == [[1], [2, 3, 4, 5], [6, 7]]


def test_the_slices_of_a_volume_take_turns_with_other_requests() -> None:
    compute = Recorder()

    async def work(batcher: Batcher) -> Any:
        volume = asyncio.create_task(batcher.results([image(n) for n in range(20, 40)]))
        await asyncio.sleep(0.01)
        single = await batcher.results([image(1)])
        return single, volume.done(), await volume

    single, finished, volume = in_batcher(compute, work)
    assert (single, finished, volume) == ([1], False, list(range(20, 40)))
    assert 1 in compute.batches[1]


def test_a_failing_image_fails_its_own_request_only() -> None:
    compute = Recorder()

    async def work(batcher: Batcher) -> Any:
        requests = (batcher.results([image(n), image(n + 1)]) for n in (1, 13, 5))
        return await asyncio.gather(*requests, return_exceptions=True)

    first, second, third = in_batcher(compute, work, max_batch=8)
    assert (first, third) == ([1, 2], [5, 6])
    assert isinstance(second, ValueError)


class FailsForDots(Predictor):
    """A model that fails for images with a single bright pixel, as a library may for some."""

    def outputs(self, images: list[np.ndarray]) -> list[Output]:
        if any((each > each.mean() + 10).sum() < 9 for each in images):
            raise ValueError("Zebediah Quux")
        return super().outputs(images)


def test_a_fault_of_the_service_in_one_file_is_reported_for_that_file(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        "127.0.0.1", 0, reuse_port=False, token=None, threads=1, max_batch=8, max_wait=0, queue=8, max_bytes=10**6,
        max_pixels=10**6, max_frames=10, deadline=30, grace=1, linger=0,
    )  # fmt: skip
    service = Service(FailsForDots(brain_dist.load(trained_run, device="cpu").model), settings)
    good, bad = draw(3, 96), Image.new("L", (96, 96))
    bad.putpixel((48, 48), 255)
    uploads = []
    for name, picture in (("a.png", good), ("b.png", bad), ("c.png", good)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        uploads.append(Upload(name, bytearray(buffer.getvalue())))

    async def main() -> list[dict[str, Any]]:
        running = asyncio.create_task(service.batcher.run())
        try:
            return await service.predict_each(uploads, list)
        finally:
            running.cancel()

    items = asyncio.run(main())
    assert [(item["name"], item["status"], len(item["predictions"])) for item in items] == [
        ("a.png", 200, 1), ("b.png", 500, 0), ("c.png", 200, 1)
    ]  # fmt: skip
    assert items[1]["problem"] == {
        "type": "urn:brain-dist:internal", "title": "The service failed", "status": 500,
        "detail": "see the service's log",
    }  # fmt: skip
    log = capsys.readouterr().err
    assert re.fullmatch(r"brain-dist: error: ValueError at .*test_batcher\.py:\d+\n", log)


def test_withdrawn_images_are_not_computed() -> None:
    compute = Recorder()

    async def work(batcher: Batcher) -> Any:
        first = asyncio.create_task(batcher.results([image(1)]))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(batcher.results([image(2)]))
        kept = asyncio.create_task(batcher.results([image(3)]))
        await asyncio.sleep(0)
        gone.cancel()
        return await first, await kept, batcher.waiting

    assert in_batcher(compute, work) == ([1], [3], 0)
    assert compute.batches == [[1], [3]]


@pytest.mark.parametrize(("others", "batches"), [(True, [[1, 2]]), (False, [[1], [2]])])
def test_a_batch_waits_only_while_others_are_being_decoded(others: bool, batches: list[list[int]]) -> None:
    compute = Recorder()

    async def work(batcher: Batcher) -> None:
        async def late() -> None:
            if others:
                with batcher.arriving():
                    await asyncio.sleep(0.01)
            else:
                await asyncio.sleep(0.01)
            await batcher.results([image(2)])

        other = asyncio.create_task(late())
        await asyncio.sleep(0)
        await batcher.results([image(1)])
        await other

    in_batcher(compute, work, wait=20)
    assert compute.batches == batches
