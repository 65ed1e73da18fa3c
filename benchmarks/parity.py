"""What prediction sees and says beside evaluation: ``python -m benchmarks.parity RUN [--source DIR] [--browser DIR]``.

Evaluation reads the test split from the shards with each loader. Prediction reads the encoded images, or with
``--source`` the publisher's own files, through the preprocessing contract. The table has the differences of pixels
(8-bit gray levels) and of probabilities, and the number of images with another label. The exit code is 1 if the pixels
differ from those of the loader for CPUs, or a label changes.

``--browser`` adds the browser edition of the run in Chromium, whose pixels and network are its own: its row compares
what it says with prediction from the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.chromium import chromium, served
from brain_dist.errors import UserError, run
from brain_dist.inference.run import LoadedRun, load_run
from brain_dist.prediction.answers import softmax
from brain_dist.prediction.outputs import stack_pixels
from brain_dist.prediction.predictor import load
from brain_dist.prediction.reading import read_slices
from brain_dist.prediction.torch_model import TorchModel
from brain_dist.ranks.world import discover
from brain_dist.store.reader import ShardReader

LOADERS = ("opencv", "torch", "dali")
BATCH = 32


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--source", type=Path, help="the folder that the shards were built from")
    parser.add_argument("--shards", help="where the run's shards are now")
    parser.add_argument("--browser", type=Path, metavar="DIR", help="the run's browser edition, exported by `--to web`")
    parser.add_argument("--images", type=int, default=200, help="images that the browser predicts (default: 200)")
    options = parser.parse_args(arguments)
    evaluated = {name: load_run(options.run, loader=name, shards=options.shards) for name in LOADERS}
    first = evaluated["opencv"]
    rows = first.rows("test")
    predicted = predicted_pixels(options.run, first, rows, options.source)
    model = load(options.run).model
    assert isinstance(model, TorchModel)
    answers = outputs(model, predicted)
    origin = "stored images" if options.source is None else f"files in {options.source}"
    print(f"{options.run}, step {first.step}: {len(rows):,} test images, prediction from {origin}\n")
    print("| loader | max Δ pixel | mean Δ pixel | max Δ probability | other labels |\n|---|--:|--:|--:|--:|")
    failed = False
    for name, loaded in evaluated.items():
        images = evaluation_images(loaded, rows)
        difference = np.abs(images.astype(np.int16) - predicted)
        other = outputs(model, images)
        labels = int((other.argmax(axis=1) != answers.argmax(axis=1)).sum())
        change = float(np.abs(other - answers).max())
        print(f"| {name} | {difference.max()} | {difference.mean():.4f} | {change:.1e} | {labels} |")
        failed |= labels > 0 or (name == "opencv" and bool(difference.any()))
    if options.browser is not None:
        chosen = np.unique(np.linspace(0, len(rows) - 1, options.images).astype(int))
        files = [data for _, data in encoded(first, rows[chosen], options.source)]
        images, other = in_browser(options.browser, files)
        difference = np.abs(images - predicted[chosen].reshape(images.shape))
        changes = np.abs(other - answers[chosen]).max(axis=1)
        labels = int((other.argmax(axis=1) != answers[chosen].argmax(axis=1)).sum())
        print(
            f"| browser, {len(chosen)} images | {difference.max()} | {difference.mean():.4f} | {changes.max():.1e},"
            f" median {np.median(changes):.1e} | {labels} |"
        )
        failed |= labels > 0
    return int(failed)


def evaluation_images(loaded: LoadedRun, rows: np.ndarray) -> np.ndarray:
    """The images of the rows as a loader makes them, uint8 [N, C, S, S]."""
    batches = loaded.batches(rows, micro_batch=BATCH, world=discover({}))
    return np.concatenate([batch.image[batch.valid].cpu().numpy() for batch in batches])


def predicted_pixels(path: Path, loaded: LoadedRun, rows: np.ndarray, source: Path | None) -> np.ndarray:
    """The same images as prediction makes them from encoded images or files."""
    contract = load(path).contract
    images = []
    for name, data in encoded(loaded, rows, source):
        (piece,) = read_slices(data, name, contract, list)
        if piece.pixels is None:
            raise UserError(f"{name}: {piece.error}")
        images.append(piece.pixels)
    return stack_pixels(images, contract)


def encoded(loaded: LoadedRun, rows: np.ndarray, source: Path | None) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each image, from the shards or from the publisher's files."""
    reader = ShardReader(loaded.dataset)
    for row in rows.tolist():
        name = str(loaded.dataset.columns["source"][row])
        if source is None:
            yield name.replace("/", "_") + ".stored", reader.read(row)
        else:
            yield name, (source / name).read_bytes()


def in_browser(edition: Path, files: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels int16 [N, ...], flat, that the browser edition makes of encoded images, and probabilities [N, K]."""
    script = """async (text) => {
      const { openNetwork } = await import("./page/network.js");
      window.network ??= await openNetwork();
      const [answer] = await window.network.predict(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]));
      return [answer.pixels.planes.flatMap((plane) => [...plane]), answer.logits];
    }"""
    with served(edition) as address, chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        results = [page.evaluate(script, base64.b64encode(data).decode()) for data in files]
    pixels, logits = zip(*results, strict=True)
    return np.array(pixels, dtype=np.int16), np.stack([softmax(np.array(each)) for each in logits])


def outputs(model: Any, images: np.ndarray) -> np.ndarray:
    """Probabilities float64 [N, K]."""
    logits = [model.outputs(images[start : start + BATCH]).logits for start in range(0, len(images), BATCH)]
    return np.stack([softmax(logit) for logit in np.concatenate(logits)])


if __name__ == "__main__":
    sys.exit(run(main))
