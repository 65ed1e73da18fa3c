"""The model in use by many clients: admission, decoding, batching, answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from brain_dist.common.cores import core_limits
from brain_dist.prediction.predictor import Predictor
from brain_dist.prediction.reading import Choose
from brain_dist.serving.batcher import Batcher
from brain_dist.serving.decoding import slices_of
from brain_dist.serving.documents import explanation, prediction_document
from brain_dist.serving.maps import load_libraries
from brain_dist.serving.metrics import Metrics
from brain_dist.serving.problems import Problem, internal_problem
from brain_dist.serving.settings import Settings
from brain_dist.serving.uploads import Upload

FILES_AT_ONCE = 4  # of one request


class Service:
    """A model that answers requests.

    Attributes:
        predictor: the model.
        settings: the limits.
        metrics: what is counted.
        draining: whether the process is about to end, so that no new requests are wanted.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.predictor, self.settings = predictor, settings
        self.draining = False
        self._requests = 0
        self.metrics = Metrics(
            in_service=lambda: self._requests, waiting=lambda: self.batcher.waiting, ready=lambda: not self.draining
        )
        self.batcher = Batcher(
            predictor.outputs, self.metrics, max_batch=settings.max_batch, max_wait=settings.max_wait
        )
        self._loading: asyncio.Future[None] | None = None
        self._decoders = ThreadPoolExecutor(max(2, min(8, *core_limits().values())), "decoding")

    @property
    def in_service(self) -> int:
        """Number of requests that are being read, decoded, computed, or wait."""
        return self._requests

    def check_room(self) -> None:
        """Whether there is a place for a request.

        Raises:
            Problem: all places are taken; says after how many seconds to try again.
        """
        if self._requests >= self.settings.queue:
            seconds = math.ceil(max(1, self.batcher.waiting * self.metrics.seconds_per_image))
            raise Problem(
                "busy", f"{self._requests} requests are in the service; try again in {seconds} s",
                {"Retry-After": str(seconds)},
            )  # fmt: skip

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place for a request; raises as :meth:`check_room` does."""
        self.check_room()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def predict(self, data: bytes, choose: Choose) -> list[dict[str, Any]]:
        """The predictions of a file, as JSON: one for each slice, and one for the file if it has several.

        Raises:
            Problem: the file cannot be predicted.
        """
        with self.batcher.arriving():
            slices = await self._decode(data, choose)
        images = [each.pixels for each in slices if each.pixels is not None]
        outputs = await self.batcher.results(images)
        predictions = self.predictor.answers("", slices, iter(outputs))
        for prediction in predictions:
            if prediction.image is not None:
                self.metrics.prediction(prediction.verdict)
        return [prediction_document(each, self.predictor.contract.classes) for each in predictions]

    async def predict_each(self, uploads: list[Upload], choose: Choose) -> list[dict[str, Any]]:
        """For each file its predictions, or the problem with it, which can be a fault of the service."""
        places = asyncio.Semaphore(FILES_AT_ONCE)

        async def item(upload: Upload) -> dict[str, Any]:
            try:
                if upload.problem is not None:
                    raise upload.problem
                if not upload.data:
                    raise Problem("unreadable", "the file is empty (0 bytes)")
                async with places:
                    predictions = await self.predict(bytes(upload.data), choose)
                return {"name": upload.name, "status": 200, "predictions": predictions, "problem": None}
            except Problem as error:
                problem = error
            except Exception as error:  # the other files still get their answers
                problem = internal_problem(error)
            finally:
                upload.data = bytearray()
            return {"name": upload.name, "status": problem.status, "predictions": [], "problem": problem.document()}

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(item(upload)) for upload in uploads]
        return [task.result() for task in tasks]

    async def explain(self, data: bytes, frame: int | None) -> dict[str, Any]:
        """What the network saw of a slice, and for each class a map of what raised its score.

        Args:
            data: bytes of the file.
            frame: number of the slice; None takes the middle one.

        Raises:
            Problem: the file cannot be predicted, or has no such slice.
        """

        def choose(frames: list[int | None]) -> list[int | None]:
            return (
                frames[len(frames) // 2 : len(frames) // 2 + 1] if frame is None else [n for n in frames if n == frame]
            )

        await asyncio.shield(self.load_maps())
        (piece,) = await self._decode(data, choose)
        assert piece.pixels is not None
        image: np.ndarray = piece.pixels
        return await self.batcher.call(lambda: explanation(self.predictor.model, image, piece.frame))

    def load_maps(self) -> asyncio.Future[None]:
        """Begin, once, to load what :meth:`explain` needs. It takes seconds, during which other requests go on."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().run_in_executor(None, load_libraries, self.predictor.model)
        return self._loading

    async def _decode(self, data: bytes, choose: Choose) -> list[Any]:
        arguments = (data, self.predictor.contract, choose, self.settings)
        return await asyncio.get_running_loop().run_in_executor(self._decoders, slices_of, *arguments)
