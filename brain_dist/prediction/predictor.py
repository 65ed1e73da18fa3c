"""Predict image files: ``brain_dist.load("runs/NAME").predict("slice.jpg")``."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.collection.decoding import BadImage
from brain_dist.common.workers import use_one_opencv_thread
from brain_dist.errors import Fault, UserError
from brain_dist.prediction.answers import Prediction, answer, mean_of_slices
from brain_dist.prediction.model import open_model
from brain_dist.prediction.outputs import Model, stack_pixels
from brain_dist.prediction.reading import Choose, Slice, array_slices, image_slices, parse_slices, read_slices
from brain_dist.prediction.sources import Source, find_sources
from brain_dist.stream.contract import Contract

BATCH = 32
THREADS = 2  # that decode while the network computes
AHEAD = 8  # files that are read ahead
Load = Callable[[], list[Slice]]
Output = tuple[np.ndarray, float | None]  # logits [K] of an image, and its p-value of being like the training's


class Predictor:
    """A model for images of any format; see :func:`load`."""

    def __init__(self, model: Model) -> None:
        use_one_opencv_thread()
        self.model = model

    @property
    def contract(self) -> Contract:
        """How an image becomes the network's input, and the names of the classes."""
        return self.model.contract

    def predict(self, images: Any, *, batch: int = BATCH, slices: str = "all") -> list[Prediction]:
        """Predict images. An image that cannot be used gives a prediction with an ``error``; the others are predicted.

        For the pixels of the evaluation, give the file or its bytes rather than an image that another library decoded.

        Args:
            images: a path (of a file, a folder, an archive, or a pattern such as ``scans/*.png``), the bytes of a file,
                a Pillow image, an array ([H, W], uint8 [H, W, 3], or slices [N, H, W]), or an iterable of these.
            batch: images per forward pass.
            slices: which slices of a file or array with several: ``all``, ``middle``, or ``FIRST:END``.

        Returns:
            A prediction for each slice, in the order of the images, and one for each file with several slices.

        Raises:
            UserError: an argument that is not an image.
            Fault: the network's logits are not finite.
        """
        choose = parse_slices(slices)
        if batch < 1:
            raise UserError(f"batch={batch}: must be ≥ 1")
        single = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray)) or _is_pillow(images)
        items = [images] if single else images
        loads: Iterator[tuple[str, Load]] = (
            pair for number, item in enumerate(items) for pair in _loads(item, number, self.contract, choose)
        )
        return list(self.stream(loads, batch=batch))

    def stream(self, files: Iterable[tuple[str, Load]], *, batch: int) -> Iterator[Prediction]:
        """The predictions of files, each given by its name and a function that reads its slices, in their order."""
        waiting: deque[tuple[str, list[Slice]]] = deque()
        count = 0
        for name, loaded in _read_ahead(files):
            waiting.append((name, loaded))
            count += sum(each.pixels is not None for each in loaded)
            if count >= batch:
                yield from self._answers(list(waiting), batch)
                waiting.clear()
                count = 0
        yield from self._answers(list(waiting), batch)

    def outputs(self, images: list[np.ndarray]) -> list[Output]:
        """What the network says about images, in one forward pass.

        Args:
            images: the pixels of slices, uint8 [S, S] or [S, S, 3].

        Raises:
            Fault: the network's logits are not finite.
        """
        outputs, detector = self.model.outputs(stack_pixels(images, self.contract)), self.model.detector
        if not np.isfinite(outputs.logits).all():
            raise Fault("the network's logits are not finite; train with train.precision=amp or a smaller optim.lr")
        p_values: list[float | None] = [None] * len(images)
        if detector is not None:
            p_values = detector.p_values(outputs.features, outputs.logits).tolist()
        return list(zip(outputs.logits, p_values, strict=True))

    def answers(self, name: str, slices: list[Slice], outputs: Iterator[Output]) -> list[Prediction]:
        """The predictions of a file: one for each slice, and one for the file if it has several.

        Args:
            name: the file.
            slices: its slices.
            outputs: what the network says about those with pixels, in their order.
        """
        predictions = []
        detector = self.model.detector
        limit = 0.0 if detector is None else detector.limit
        for each in slices:
            if each.pixels is None:
                predictions.append(Prediction(name, each.frame, error=each.error))
                continue
            logit, ood_p = next(outputs)
            predictions.append(
                answer(name, each.frame, each.pixels, logit, ood_p, self.contract, unlike=each.unlike, limit=limit)
            )
        mean = mean_of_slices(predictions)
        return predictions if mean is None else [*predictions, mean]

    def _answers(self, files: list[tuple[str, list[Slice]]], batch: int) -> Iterator[Prediction]:
        images = [each.pixels for _, loaded in files for each in loaded if each.pixels is not None]
        batches = (images[start : start + batch] for start in range(0, len(images), batch))
        outputs = iter([output for each in batches for output in self.outputs(each)])
        for name, loaded in files:
            yield from self.answers(name, loaded, outputs)


def load(model: str | Path, *, step: int | str | None = None, device: str = "auto") -> Predictor:
    """Open a model to predict images with.

    Args:
        model: the folder of a run, whose shards are not needed, or of an export. An ONNX export needs no torch.
        step: of a run's checkpoint, see :func:`brain_dist.inference.run.load_run`.
        device: auto, cpu or cuda.

    Raises:
        UserError: it is not a model, or has no complete checkpoint.
        Fault: its weights are damaged.
    """
    return Predictor(open_model(Path(model), step=step, device=device))


def file_load(source: Source, contract: Contract, choose: Choose) -> Load:
    """A function that reads a file's slices."""

    def read() -> list[Slice]:
        try:
            return read_slices(source.read(), source.name, contract, choose)
        except BadImage as error:
            return [Slice(None, error=str(error))]

    return read


def _loads(item: Any, number: int, contract: Contract, choose: Choose) -> Iterator[tuple[str, Load]]:
    """The files that an item means, by name."""
    name = f"image[{number}]"
    if isinstance(item, (str, os.PathLike)):
        for source in find_sources([os.fspath(item)]):
            yield source.name, file_load(source, contract, choose)
    elif isinstance(item, (bytes, bytearray, memoryview)):
        yield name, lambda: read_slices(bytes(item), "", contract, choose)
    elif isinstance(item, np.ndarray):
        yield name, lambda: array_slices(item, contract, choose)
    elif _is_pillow(item):
        yield name, lambda: image_slices(item, contract)
    else:
        raise UserError(
            f"{name} is of type {type(item).__name__}; give a path, the bytes of a file, a Pillow image or an array"
        )


def _is_pillow(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def _read_ahead(files: Iterable[tuple[str, Load]]) -> Iterator[tuple[str, list[Slice]]]:
    """Read files by threads, a few ahead of the caller."""
    pending: deque[tuple[str, Future[list[Slice]]]] = deque()
    with ThreadPoolExecutor(THREADS, "files") as pool:
        try:
            for name, read in files:
                pending.append((name, pool.submit(read)))
                if len(pending) > AHEAD:
                    name, future = pending.popleft()
                    yield name, future.result()
            while pending:
                name, future = pending.popleft()
                yield name, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
