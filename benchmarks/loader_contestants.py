"""The loaders that ``benchmarks.loaders`` compares; each runs in a process of its own.

A contestant is called as ``epoch(place)`` and yields the number of images of each batch, uint8 [B, C, size, size]
(DALI's own reader: [B, size, size, C]), of one shuffled epoch. All cut, resize, mirror, rotate, and change brightness
and contrast within the same limits, each with its library's own operations, as its documentation writes them.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.config import AugmentConfig

AUGMENT = AugmentConfig()


@dataclass(frozen=True)
class Place:
    """Where the formats lie (``work``/images, mds, litdata, and ``shards``) and how to load them."""

    shards: Path
    work: Path
    color: str
    workers: int
    size: int
    batch: int

    @property
    def tars(self) -> list[str]:
        return sorted(str(path) for path in self.shards.glob("*.tar"))


def _jobs(place: Place) -> Any:
    from brain_dist.config import DataConfig
    from brain_dist.store.dataset import open_dataset
    from brain_dist.stream.jobs import training_jobs
    from brain_dist.stream.plan import TrainingPlan

    dataset, config = open_dataset(place.shards), DataConfig(size=place.size, color=place.color, threads=place.workers)  # type: ignore[arg-type]
    rows = np.arange(len(dataset), dtype=np.int64)
    plan = TrainingPlan(
        rows=rows,
        shard=rows * 0,
        label=rows * 0,
        seed=0,
        epochs=1,
        global_batch=place.batch,
        micro_batch=place.batch,
    )
    micro_batches = plan.micro_batches(rank=0, world_size=1)
    return dataset, config, training_jobs(dataset, config, AUGMENT, micro_batches, seed=0)


def ours(place: Place) -> Iterator[int]:
    """The product: planned order, DALI fed with bytes."""
    import torch

    from brain_dist.stream.loader import open_loader

    dataset, config, jobs = _jobs(place)
    device = torch.device("cpu")
    for batch in open_loader(config, dataset, jobs, augmented=True, micro_batch=place.batch, device=device):
        yield int(batch.valid.sum())


def decode_only(place: Place) -> Iterator[int]:
    """DALI's decoder alone, on the same parts of the same bytes, which lie in memory already."""
    from nvidia.dali import fn, pipeline_def, types

    from brain_dist.store.reader import ShardReader

    dataset, _, jobs = _jobs(place)
    reader = ShardReader(dataset)
    ready, counts = [], []
    for job in jobs:
        encoded = [np.frombuffer(reader.read(int(row)), dtype=np.uint8) for row in job.micro.rows]
        crop = job.decisions.crop
        ready.append((encoded, np.ascontiguousarray(crop[:, :2]), np.ascontiguousarray(crop[:, 2:])))
        counts.append(int(job.micro.valid.sum()))
    source = iter(ready)

    @pipeline_def
    def graph() -> Any:
        kinds = [types.UINT8, types.INT32, types.INT32]
        encoded, start, shape = fn.external_source(
            source=lambda: next(source), num_outputs=3, batch=True, dtype=kinds, ndim=[1, 1, 1]
        )
        options = {"axis_names": "WH", "jpeg_fancy_upsampling": True, "adjust_orientation": False}
        kind = types.GRAY if place.color == "gray" else types.RGB
        return fn.decoders.image_slice(encoded, start=start, shape=shape, output_type=kind, device="cpu", **options)

    made = graph(batch_size=place.batch, num_threads=place.workers, device_id=None, prefetch_queue_depth=2)
    made.build()
    for count in counts:
        made.run()
        yield count


def dali_reader(place: Place) -> Iterator[int]:
    """DALI as its documentation uses it: its own WebDataset reader and its own random numbers; no exact resume."""
    from nvidia.dali import fn, pipeline_def, types

    low, high = 1 - AUGMENT.brightness, 1 + AUGMENT.brightness

    @pipeline_def
    def graph() -> Any:
        encoded, _ = fn.readers.webdataset(
            paths=place.tars,
            index_paths=[tar.removesuffix(".tar") + ".idx" for tar in place.tars],
            ext=["jpg;png", "cls"],
            random_shuffle=True,
            initial_fill=1024,
            missing_component_behavior="error",
            name="reader",
        )
        image = fn.decoders.image_random_crop(
            encoded,
            device="cpu",
            output_type=types.GRAY if place.color == "gray" else types.RGB,
            random_area=list(AUGMENT.scale),
            random_aspect_ratio=list(AUGMENT.ratio),
        )
        image = fn.resize(image, size=[place.size, place.size], interp_type=types.INTERP_LINEAR, antialias=True)
        image = fn.flip(image, horizontal=fn.random.coin_flip(probability=AUGMENT.flip))
        angle = fn.random.uniform(range=[-AUGMENT.rotate, AUGMENT.rotate])
        image = fn.rotate(image, angle=angle, keep_size=True, fill_value=0)
        change = {name: fn.random.uniform(range=[low, high]) for name in ("brightness", "contrast")}
        return fn.brightness_contrast(image, **change)

    made = graph(batch_size=place.batch, num_threads=place.workers, device_id=None, prefetch_queue_depth=2)
    made.build()
    left = next(iter(made.reader_meta().values()))["epoch_size"]
    while left > 0:
        made.run()
        yield min(left, place.batch)
        left -= place.batch


def _transform(place: Place) -> Any:
    """torchvision's, for PIL pictures."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(place.size, scale=AUGMENT.scale, ratio=AUGMENT.ratio),
            transforms.RandomHorizontalFlip(AUGMENT.flip),
            transforms.RandomRotation(AUGMENT.rotate, transforms.InterpolationMode.BILINEAR),
            transforms.ColorJitter(AUGMENT.brightness, AUGMENT.contrast),
            transforms.PILToTensor(),
        ]
    )


class _Decoded:
    """(encoded bytes) → augmented tensor; picklable."""

    def __init__(self, place: Place) -> None:
        self.mode, self.transform = "L" if place.color == "gray" else "RGB", _transform(place)

    def __call__(self, data: Any) -> Any:
        from PIL import Image

        return self.transform(Image.open(io.BytesIO(data)).convert(self.mode))

    def picture(self, path: str) -> Any:
        from PIL import Image

        with open(path, "rb") as opened:  # noqa: PTH123 (as torchvision's own loader)
            return Image.open(opened).convert(self.mode)


def _lengths(loader: Any) -> Iterator[int]:
    for image, *_ in loader:
        yield len(image)


def image_folder(place: Place) -> Iterator[int]:
    """torchvision ``ImageFolder`` + ``DataLoader``."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    decoded = _Decoded(place)
    folder = ImageFolder(str(place.work / "images"), transform=decoded.transform, loader=decoded.picture)
    return _lengths(DataLoader(folder, place.batch, shuffle=True, num_workers=place.workers))


def webdataset(place: Place) -> Iterator[int]:
    """The webdataset package: shuffle buffer, batches made in the workers."""
    import webdataset as wds

    decoded = _Decoded(place)
    stages = wds.WebDataset(place.tars, shardshuffle=len(place.tars), empty_check=False).shuffle(1000)
    stages = stages.to_tuple("jpg;png", "cls").map_tuple(decoded, int).batched(place.batch)
    return _lengths(wds.WebLoader(stages, batch_size=None, num_workers=place.workers))


def litdata(place: Place) -> Iterator[int]:
    """litdata's ``StreamingDataset`` + ``StreamingDataLoader``."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return decoded(item["image"]), item["label"]

    decoded = _Decoded(place)
    dataset = Decoding(str(place.work / "litdata"), shuffle=True)
    return _lengths(StreamingDataLoader(dataset, batch_size=place.batch, num_workers=place.workers))


def mds(place: Place) -> Iterator[int]:
    """mosaicml-streaming's ``StreamingDataset`` + ``DataLoader``."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            item = super().__getitem__(at)
            return decoded(item["image"]), item["label"]

    clean_stale_shared_memory()
    decoded = _Decoded(place)
    dataset = Decoding(local=str(place.work / "mds"), shuffle=True, batch_size=place.batch)
    return _lengths(DataLoader(dataset, place.batch, num_workers=place.workers))


@dataclass(frozen=True)
class Contestant:
    """``peer``: needs the environment of the peers. ``python``: decodes by Python. ``files``: what it reads."""

    title: str
    epoch: Callable[[Place], Iterator[int]]
    files: str
    peer: bool = False
    python: bool = True


CONTESTANTS = {
    "decode": Contestant("ceiling: DALI decodes, no more", decode_only, "", python=False),
    "ours": Contestant("ours", ours, "shards", python=False),
    "dali": Contestant("DALI's WebDataset reader", dali_reader, "shards", python=False),
    "imagefolder": Contestant("ImageFolder + DataLoader", image_folder, "images"),
    "webdataset": Contestant("webdataset", webdataset, "shards"),
    "litdata": Contestant("litdata", litdata, "litdata", peer=True),
    "mds": Contestant("mosaicml-streaming", mds, "mds", peer=True),
}


def write_formats(shards: Path, work: Path) -> None:
    """The images of ``shards`` as a folder a class, as litdata's chunks and as MDS; in the environment of the peers."""
    from litdata import optimize
    from streaming import MDSWriter

    from brain_dist.store.dataset import open_dataset
    from brain_dist.store.reader import ShardReader

    dataset = open_dataset(shards)
    reader, labels = ShardReader(dataset), dataset.columns["label"]
    items = [{"image": reader.read(row), "label": int(labels[row])} for row in range(len(dataset))]
    with MDSWriter(out=str(work / "mds"), columns={"image": "bytes", "label": "int"}, size_limit=8 << 20) as writer:
        for row, item in enumerate(items):
            writer.write(item)
            folder = work / "images" / dataset.classes[item["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            suffix = "png" if item["image"].startswith(b"\x89PNG") else "jpg"
            (folder / f"{row:06d}.{suffix}").write_bytes(item["image"])
    optimize(fn=_same, inputs=items, output_dir=str(work / "litdata"), chunk_bytes=8 << 20, num_workers=1)


def _same(item: dict[str, Any]) -> dict[str, Any]:
    return item


if __name__ == "__main__":
    write_formats(Path(sys.argv[1]), Path(sys.argv[2]))
