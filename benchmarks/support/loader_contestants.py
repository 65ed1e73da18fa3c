"""The loaders that ``benchmarks.loaders`` compares; each runs in its own process.

A contestant is called as ``epoch(setup)`` and yields the number of images of each batch, uint8 [B, C, size, size]
(DALI's own reader: [B, size, size, C]), of one shuffled epoch. All crop, resize, flip, rotate, and change brightness
and contrast within the same limits, each with the operations in its library's documentation.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.config import AugmentConfig

AUGMENT = AugmentConfig()


@dataclass(frozen=True)
class LoaderSetup:
    """Where the images are stored (``shards``, and ``work``/images, mds, litdata) and how to load them."""

    shards: Path
    work: Path
    color: str
    workers: int
    size: int
    batch: int

    @property
    def tars(self) -> list[str]:
        return sorted(str(path) for path in self.shards.glob("*.tar"))


def _jobs(setup: LoaderSetup) -> Any:
    from brain_dist.config import DataConfig
    from brain_dist.store.dataset import open_dataset
    from brain_dist.stream.batches import training_jobs
    from brain_dist.stream.plan import TrainingPlan

    dataset, config = open_dataset(setup.shards), DataConfig(size=setup.size, color=setup.color, threads=setup.workers)  # type: ignore[arg-type]
    rows = np.arange(len(dataset), dtype=np.int64)
    plan = TrainingPlan(
        rows=rows,
        shard=rows * 0,
        label=rows * 0,
        seed=0,
        epochs=1,
        global_batch=setup.batch,
        micro_batch=setup.batch,
    )
    micro_batches = plan.micro_batches(rank=0, world_size=1)
    return dataset, config, training_jobs(dataset, config, AUGMENT, micro_batches, seed=0)


def ours(setup: LoaderSetup, loader: str = "auto") -> Iterator[int]:
    """The product: a planned order, and OpenCV on threads."""
    import torch

    from brain_dist.stream.batches import open_loader

    dataset, config, jobs = _jobs(setup)
    config = replace(config, loader=loader)  # type: ignore[arg-type]
    device = torch.device("cpu")
    for batch in open_loader(config, dataset, jobs, augmented=True, micro_batch=setup.batch, device=device):
        yield int(batch.valid.sum())


def ours_dali(setup: LoaderSetup) -> Iterator[int]:
    """The product with the DALI graph on the CPU."""
    return ours(setup, "dali")


def decode_only(setup: LoaderSetup) -> Iterator[int]:
    """DALI's decoder alone, on the same crops of the same bytes, which are in memory already."""
    from nvidia.dali import fn, pipeline_def, types

    from brain_dist.store.reader import ShardReader

    dataset, _, jobs = _jobs(setup)
    reader = ShardReader(dataset)
    inputs, counts = [], []
    for job in jobs:
        encoded = [np.frombuffer(reader.read(int(row)), dtype=np.uint8) for row in job.micro.rows]
        crop = job.decisions.crop
        inputs.append((encoded, np.ascontiguousarray(crop[:, :2]), np.ascontiguousarray(crop[:, 2:])))
        counts.append(int(job.micro.valid.sum()))
    source = iter(inputs)

    @pipeline_def
    def graph() -> Any:
        dtypes = [types.UINT8, types.INT32, types.INT32]
        encoded, start, shape = fn.external_source(
            source=lambda: next(source), num_outputs=3, batch=True, dtype=dtypes, ndim=[1, 1, 1]
        )
        options = {"axis_names": "WH", "jpeg_fancy_upsampling": True, "adjust_orientation": False}
        color = types.GRAY if setup.color == "gray" else types.RGB
        return fn.decoders.image_slice(encoded, start=start, shape=shape, output_type=color, device="cpu", **options)

    pipeline = graph(batch_size=setup.batch, num_threads=setup.workers, device_id=None, prefetch_queue_depth=2)
    pipeline.build()
    for count in counts:
        pipeline.run()
        yield count


def dali_reader(setup: LoaderSetup) -> Iterator[int]:
    """DALI as in its documentation: its WebDataset reader and its random numbers, without exact resume."""
    from nvidia.dali import fn, pipeline_def, types

    low, high = 1 - AUGMENT.brightness, 1 + AUGMENT.brightness

    @pipeline_def
    def graph() -> Any:
        encoded, _ = fn.readers.webdataset(
            paths=setup.tars,
            index_paths=[tar.removesuffix(".tar") + ".idx" for tar in setup.tars],
            ext=["jpg;png", "cls"],
            random_shuffle=True,
            initial_fill=1024,
            missing_component_behavior="error",
            name="reader",
        )
        image = fn.decoders.image_random_crop(
            encoded,
            device="cpu",
            output_type=types.GRAY if setup.color == "gray" else types.RGB,
            random_area=list(AUGMENT.scale),
            random_aspect_ratio=list(AUGMENT.ratio),
        )
        image = fn.resize(image, size=[setup.size, setup.size], interp_type=types.INTERP_LINEAR, antialias=True)
        image = fn.flip(image, horizontal=fn.random.coin_flip(probability=AUGMENT.flip))
        angle = fn.random.uniform(range=[-AUGMENT.rotate, AUGMENT.rotate])
        image = fn.rotate(image, angle=angle, keep_size=True, fill_value=0)
        change = {name: fn.random.uniform(range=[low, high]) for name in ("brightness", "contrast")}
        return fn.brightness_contrast(image, **change)

    pipeline = graph(batch_size=setup.batch, num_threads=setup.workers, device_id=None, prefetch_queue_depth=2)
    pipeline.build()
    remaining = next(iter(pipeline.reader_meta().values()))["epoch_size"]
    while remaining > 0:
        pipeline.run()
        yield min(remaining, setup.batch)
        remaining -= setup.batch


def _transform(setup: LoaderSetup) -> Any:
    """torchvision's augmentation of PIL images."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(setup.size, scale=AUGMENT.scale, ratio=AUGMENT.ratio),
            transforms.RandomHorizontalFlip(AUGMENT.flip),
            transforms.RandomRotation(AUGMENT.rotate, transforms.InterpolationMode.BILINEAR),
            transforms.ColorJitter(AUGMENT.brightness, AUGMENT.contrast),
            transforms.PILToTensor(),
        ]
    )


class _Decoder:
    """Encoded bytes → augmented tensor; picklable."""

    def __init__(self, setup: LoaderSetup) -> None:
        self.mode, self.transform = "L" if setup.color == "gray" else "RGB", _transform(setup)

    def __call__(self, data: Any) -> Any:
        from PIL import Image

        return self.transform(Image.open(io.BytesIO(data)).convert(self.mode))

    def load(self, path: str) -> Any:
        from PIL import Image

        with open(path, "rb") as file:  # noqa: PTH123 (as torchvision's own loader)
            return Image.open(file).convert(self.mode)


def _lengths(loader: Any) -> Iterator[int]:
    for image, *_ in loader:
        yield len(image)


def image_folder(setup: LoaderSetup) -> Iterator[int]:
    """torchvision ``ImageFolder`` + ``DataLoader``."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    decoder = _Decoder(setup)
    folder = ImageFolder(str(setup.work / "images"), transform=decoder.transform, loader=decoder.load)
    return _lengths(DataLoader(folder, setup.batch, shuffle=True, num_workers=setup.workers))


def webdataset(setup: LoaderSetup) -> Iterator[int]:
    """The webdataset package with a shuffle buffer; the workers make the batches."""
    import webdataset as wds

    decoder = _Decoder(setup)
    stages = wds.WebDataset(setup.tars, shardshuffle=len(setup.tars), empty_check=False).shuffle(1000)
    stages = stages.to_tuple("jpg;png", "cls").map_tuple(decoder, int).batched(setup.batch)
    return _lengths(wds.WebLoader(stages, batch_size=None, num_workers=setup.workers))


def litdata(setup: LoaderSetup) -> Iterator[int]:
    """litdata's ``StreamingDataset`` + ``StreamingDataLoader``."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return decoder(item["image"]), item["label"]

    decoder = _Decoder(setup)
    dataset = Decoding(str(setup.work / "litdata"), shuffle=True)
    return _lengths(StreamingDataLoader(dataset, batch_size=setup.batch, num_workers=setup.workers))


def mds(setup: LoaderSetup) -> Iterator[int]:
    """mosaicml-streaming's ``StreamingDataset`` + ``DataLoader``."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return decoder(item["image"]), item["label"]

    clean_stale_shared_memory()
    decoder = _Decoder(setup)
    dataset = Decoding(local=str(setup.work / "mds"), shuffle=True, batch_size=setup.batch)
    return _lengths(DataLoader(dataset, setup.batch, num_workers=setup.workers))


@dataclass(frozen=True)
class Contestant:
    """A loader to compare.

    Attributes:
        title: Name in the table.
        epoch: The loader.
        files: Folder that it reads, "" if none: shards, or a folder of LoaderSetup.work.
        peer: Whether it needs the environment of the peers.
        python: Whether it decodes in Python.
    """

    title: str
    epoch: Callable[[LoaderSetup], Iterator[int]]
    files: str
    peer: bool = False
    python: bool = True


CONTESTANTS = {
    "decode": Contestant("ceiling: DALI decodes only", decode_only, "", python=False),
    "ours": Contestant("ours", ours, "shards", python=False),
    "ours-dali": Contestant("ours with data.loader=dali", ours_dali, "shards", python=False),
    "dali": Contestant("DALI's WebDataset reader", dali_reader, "shards", python=False),
    "imagefolder": Contestant("ImageFolder + DataLoader", image_folder, "images"),
    "webdataset": Contestant("webdataset", webdataset, "shards"),
    "litdata": Contestant("litdata", litdata, "litdata", peer=True),
    "mds": Contestant("mosaicml-streaming", mds, "mds", peer=True),
}


PEER_MODULES = ("litdata", "streaming")


def write_formats(shards: Path, work: Path) -> None:
    """Write the images as one folder per class, as litdata chunks and as MDS (in the peers' environment)."""
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
    optimize(fn=_identity, inputs=items, output_dir=str(work / "litdata"), chunk_bytes=8 << 20, num_workers=1)


def _identity(item: dict[str, Any]) -> dict[str, Any]:
    return item


if __name__ == "__main__":
    write_formats(Path(sys.argv[1]), Path(sys.argv[2]))
