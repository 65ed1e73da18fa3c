"""Stages ``peer`` and ``peercompile``: a plain training loop with timm and torchvision, for comparison."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.frame import Check

if TYPE_CHECKING:
    import torch

    Pairs = Iterator[tuple[torch.Tensor, torch.Tensor]]  # images [B, 3, H, W], labels [B]


@dataclass(frozen=True)
class Loop:
    """How the plain loop trains; also columns of its row.

    Attributes:
        compiled: compile the network.
        batch: images per step.
        weights: "autocast" keeps fp32 weights, "bf16" converts them.
        steps: timed steps.
    """

    compiled: bool
    batch: int
    weights: str
    steps: int


def run_peer(check: Check) -> None:
    """Rate of the plain loop on noise, of torch's DataLoader, and of the plain loop on real images."""
    sizes, workers = check.sizes, 1 if check.dry else 15
    for weights in ("autocast", "bf16"):
        _record_loop(check, Loop(False, sizes.batch, weights, sizes.steps))
    loop = Loop(False, sizes.batch, "autocast", sizes.steps)
    check.attempt("plain loop", lambda: plain_loop(check, loop, benchmark=False), **asdict(loop), bench=False)
    check.attempt("torch DataLoader alone", lambda: loading_rate(check, workers), workers=workers)
    real = Loop(False, sizes.batch, "autocast", 2 * sizes.steps)
    check.attempt(
        "plain loop on real images",
        lambda: plain_loop(check, real, load_pairs(check, workers)),
        **asdict(real),
        workers=workers,
    )


def run_peercompile(check: Check) -> None:
    """Rate of the plain loop with a compiled network."""
    for weights in ("bf16", "autocast"):
        if check.has_time(25):
            _record_loop(check, Loop(True, check.sizes.batch, weights, 2 * check.sizes.steps))


def _record_loop(check: Check, loop: Loop) -> None:
    check.attempt("plain loop", lambda: plain_loop(check, loop), **asdict(loop))


def plain_loop(check: Check, loop: Loop, pairs: Pairs | None = None, *, benchmark: bool = True) -> dict[str, float]:
    """Train with channels-last memory, autocast or bf16 weights, fused AdamW and gradient clipping.

    Args:
        check: the stage.
        loop: how to train.
        pairs: images and labels; None trains on one batch of noise.
        benchmark: let cuDNN time its kernels and choose the fastest.

    Returns:
        images_per_s; step_ms (mean); first_step_s, which includes compilation; peak_gib.
    """
    import torch

    sizes, device = check.sizes, check.device()
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision("high")
    step = _plain_step(check, loop, pairs or _noise(loop, sizes.size, device), device)
    start = check.now()
    step()
    first = check.now() - start
    for _ in range(sizes.warmup):
        step()
    start = check.now()
    for _ in range(loop.steps):
        step()
    seconds = check.now() - start
    return {
        "images_per_s": loop.batch * loop.steps / seconds,
        "step_ms": 1e3 * seconds / loop.steps,
        "first_step_s": first,
        "peak_gib": check.peak_gib(),
    }


def _plain_step(check: Check, loop: Loop, pairs: Pairs, device: torch.device) -> Callable[[], None]:
    import timm
    import torch

    model = timm.create_model(check.sizes.model, num_classes=4, drop_path_rate=0.2).train()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = _dtype(loop)
    model = model.to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=True)
    network = torch.compile(model, backend="eager" if check.dry else "inductor") if loop.compiled else model

    def step() -> None:
        image, label = (tensor.to(device, non_blocking=True) for tensor in next(pairs))
        image = image.to(dtype).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.weights == "autocast"):
            loss = torch.nn.functional.cross_entropy(network(image).float(), label, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _noise(loop: Loop, size: int, device: torch.device) -> Pairs:
    """The same batch of noise again and again, in the network's type and memory format."""
    import torch

    image = torch.randn(loop.batch, 3, size, size, device=device, dtype=_dtype(loop))
    label = torch.randint(0, 4, (loop.batch,), device=device)
    return itertools.repeat((image.contiguous(memory_format=torch.channels_last), label))


def _dtype(loop: Loop) -> torch.dtype:
    import torch

    return torch.bfloat16 if loop.weights == "bf16" else torch.float32


def loading_rate(check: Check, workers: int) -> dict[str, float]:
    """Images per second of torch's DataLoader alone."""
    batch, pairs = check.sizes.batch, load_pairs(check, workers)
    warmup, count = (1, 1) if check.dry else (8, 25)
    for _ in range(warmup):
        next(pairs)
    start = time.perf_counter()
    for _ in range(count):
        next(pairs)
    return {"images_per_s": count * batch / (time.perf_counter() - start)}


def load_pairs(check: Check, workers: int) -> Pairs:
    """Batches of augmented training images from torch's DataLoader."""
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        AugmentedImages(str(check.shards), check.sizes.size),  # type: ignore[arg-type]
        batch_size=check.sizes.batch,
        num_workers=workers,
        pin_memory=not check.dry,
        persistent_workers=True,
        prefetch_factor=4,
        drop_last=True,
        multiprocessing_context="forkserver",
    )
    return iter(loader)


class AugmentedImages:
    """The training split with torchvision's augmentation, repeated 1000 times."""

    def __init__(self, shards: str, size: int) -> None:
        from torchvision import transforms

        from brain_dist.store.dataset import open_dataset
        from brain_dist.store.reader import ShardReader

        dataset = open_dataset(shards)
        self.rows, self.labels = dataset.rows("train"), dataset.columns["label"]
        self.reader = ShardReader(dataset)
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, (0.6, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomRotation(15),
                transforms.ColorJitter(0.2, 0.2),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                transforms.RandomErasing(0.25),
            ]
        )

    def __len__(self) -> int:
        return 1000 * len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        row = int(self.rows[index % len(self.rows)])
        image = Image.open(io.BytesIO(self.reader.read(row))).convert("RGB")
        return self.augment(image), int(self.labels[row])
