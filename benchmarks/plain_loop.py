"""A plain PyTorch loop over the same shards and split: what the whole machinery must not be worse than.

``python -m benchmarks.plain_loop SHARDS --model tf_efficientnet_lite0 --weights FILE`` trains in one process with a
map-style dataset, bf16 autocast, AdamW and a one-cycle schedule, flips and small shifts, as a careful person would
write it in an hour. It shares the split, the cut to the head and the metrics with the product.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from brain_dist.judging.metrics import evaluate_predictions
from brain_dist.networks.weights import load_into, read_weights
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader


class Pictures(Dataset):  # type: ignore[type-arg]
    """Gray images of all rows, decoded and resized at each access."""

    def __init__(self, shards: str, size: int, train: bool) -> None:
        self.data = open_dataset(shards)
        self.reader, self.size, self.train = ShardReader(self.data), size, train

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        x, y, width, height = (int(self.data.columns[f"head_{side}"][row]) for side in "xywh")
        picture = Image.open(io.BytesIO(self.reader.read(row))).convert("L").crop((x, y, x + width, y + height))
        picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.float32) / 255
        if self.train:
            if np.random.rand() < 0.5:
                pixels = pixels[:, ::-1]
            reach = self.size // 20
            pixels = np.roll(pixels, np.random.randint(-reach, reach + 1, 2), (0, 1))
        image = torch.from_numpy(np.ascontiguousarray(pixels))[None].repeat(3, 1, 1)
        return (image - 0.45) / 0.225, int(self.data.columns["label"][row])


def main() -> None:
    """Train, test, print one JSON line."""
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
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    np.random.seed(a.seed)
    train, test = Pictures(a.shards, a.size, True), Pictures(a.shards, a.size, False)
    rows, held = train.data.rows("train"), train.data.rows("test")
    model = timm.create_model(a.model, num_classes=len(train.data.classes))
    if a.weights:
        load_into(model, read_weights(Path(a.weights)), where=a.weights)
    loader = DataLoader(
        Subset(train, rows.tolist()),
        a.batch,
        shuffle=True,
        drop_last=True,
        num_workers=a.workers,
        persistent_workers=True,
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=a.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, a.lr, total_steps=a.epochs * len(loader))
    began = time.perf_counter()
    for _ in range(a.epochs):
        model.train()
        for image, label in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(
                    model(image.contiguous(memory_format=torch.channels_last)), label
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    seconds = time.perf_counter() - began
    model.eval()
    logits = []
    with torch.inference_mode():
        for image, _ in DataLoader(Subset(test, held.tolist()), 64, num_workers=a.workers):
            logits.append(model(image))
    prob = torch.cat(logits).double().softmax(1).numpy()
    judged = evaluate_predictions(test.data.columns["label"][held].astype(np.int64), prob, train.data.classes)
    row = {name: judged[name] for name in ("accuracy", "f1_macro", "auc_macro", "kappa", "ece")}
    print(json.dumps({"loop": "plain", **vars(a), "seconds": round(seconds, 1), **row}))


if __name__ == "__main__":
    main()
