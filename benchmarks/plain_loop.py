"""A plain PyTorch training loop over the same shards and split: the accuracy that the product must at least reach.

``python -m benchmarks.plain_loop SHARDS --model tf_efficientnet_lite0 --weights FILE`` trains in one process with a
map-style dataset, bf16 autocast, AdamW, a one-cycle schedule, flips and small shifts. It shares the split, the crop to
the head and the metrics with the product.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.networks.weights import apply_weights, read_weights
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader


class ShardImages(Dataset):
    """Images of all rows, decoded to gray, cropped and resized at each access."""

    def __init__(self, shards: str, size: int, train: bool) -> None:
        self.data = open_dataset(shards)
        self.reader, self.size, self.train = ShardReader(self.data), size, train

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        x, y, width, height = (int(self.data.columns[f"head_{side}"][row]) for side in "xywh")
        image = Image.open(io.BytesIO(self.reader.read(row))).convert("L").crop((x, y, x + width, y + height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, dtype=np.float32) / 255
        if self.train:
            if np.random.rand() < 0.5:
                pixels = pixels[:, ::-1]
            limit = self.size // 20
            pixels = np.roll(pixels, np.random.randint(-limit, limit + 1, 2), (0, 1))
        tensor = torch.from_numpy(np.ascontiguousarray(pixels))[None].repeat(3, 1, 1)
        return (tensor - 0.45) / 0.225, int(self.data.columns["label"][row])


def main() -> None:
    """Train, test, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("shards")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    np.random.seed(arguments.seed)
    images = ShardImages(arguments.shards, arguments.size, train=True)
    model = timm.create_model(arguments.model, num_classes=len(images.data.classes))
    if arguments.weights:
        apply_weights(model, read_weights(Path(arguments.weights)), source=arguments.weights)
    start = time.perf_counter()
    train(model, images, arguments)
    seconds = time.perf_counter() - start
    metrics = test(model, ShardImages(arguments.shards, arguments.size, train=False), arguments.workers)
    row = {name: metrics[name] for name in ("accuracy", "f1_macro", "auc_macro", "kappa", "ece")}
    print(json.dumps({"loop": "plain", **vars(arguments), "seconds": round(seconds, 1), **row}))


def train(model: torch.nn.Module, images: ShardImages, arguments: argparse.Namespace) -> None:
    """Train on the training split."""
    loader = DataLoader(
        Subset(images, images.data.rows("train").tolist()),
        arguments.batch,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
        persistent_workers=True,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.01)
    steps = arguments.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, arguments.lr, total_steps=steps)
    model.train()
    for _ in range(arguments.epochs):
        for image, label in loader:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(image.contiguous(memory_format=torch.channels_last))
                loss = torch.nn.functional.cross_entropy(logits, label)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()


def test(model: torch.nn.Module, images: ShardImages, workers: int) -> dict[str, Any]:
    """Metrics on the test split."""
    rows = images.data.rows("test")
    model.eval()
    with torch.inference_mode():
        batches = DataLoader(Subset(images, rows.tolist()), 64, num_workers=workers)
        logits = torch.cat([model(image) for image, _ in batches])
    labels = images.data.columns["label"][rows].astype(np.int64)
    return evaluate_predictions(labels, logits.double().softmax(1).numpy(), images.data.classes)


if __name__ == "__main__":
    main()
