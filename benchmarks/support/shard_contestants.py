"""The ways to pack a folder of images that ``benchmarks.shard_build`` compares; each runs in its own process.

A contestant is called as ``pack(source, out, recipe, workers)``, creates the folder ``out`` and returns the number of
images. It lists ``source`` itself, which is part of its time.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.support.processes import cpu_seconds

SUFFIXES = (".jpg", ".jpeg", ".png")
SHARD = 64_000_000  # bytes per shard of every contestant
BLOCK = 512
STAGES: dict[str, float] = {}  # CPU time of our build until the end of each stage [s]


def list_images(source: Path) -> list[tuple[str, str]]:
    """(path, name of its folder) of every image below ``source``, sorted."""
    images = [
        (os.path.join(base, name), os.path.basename(base))  # noqa: PTH118, PTH119 (paths as strings travel to workers)
        for base, _, names in os.walk(source, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    return sorted(images)


def labelled_images(source: Path) -> list[tuple[str, int]]:
    """(path, label) of every image; labels follow the alphabetical order of the folders."""
    files = list_images(source)
    classes = sorted({name for _, name in files})
    return [(path, classes.index(name)) for path, name in files]


def ours(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """The product: decode, audit, group, split, checksums, index, fsync. Fills ``STAGES``."""
    from brain_dist.building.build import build
    from brain_dist.collection.recipes import default_recipe, read_recipe
    from brain_dist.store.options import BuildOptions

    start = cpu_seconds()

    def progress(stage: str, done: int, total: int) -> None:
        if not STAGES or done == total:  # rarely, as reading the time of other processes takes time itself
            STAGES["first image" if not STAGES else stage] = cpu_seconds() - start

    settings = read_recipe(recipe) if recipe else default_recipe(source)
    result = build(source, out, settings, BuildOptions(), workers=workers, allow_missing=True, progress=progress)
    return len(result.dataset)


def webdataset(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """The loop in its documentation: one process."""
    from webdataset import ShardWriter

    out.mkdir()
    files = labelled_images(source)
    with ShardWriter(f"{out}/shard-%05d.tar", maxsize=SHARD, verbose=0) as sink:
        for number, (path, label) in enumerate(files):
            data = Path(path).read_bytes()
            sink.write({"__key__": f"{number:06d}", "jpg": data, "cls": label, "json": {"source": path}})
    return len(files)


def litdata(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """``optimize`` with the given number of workers."""
    from litdata import optimize

    files = labelled_images(source)
    optimize(fn=_read, inputs=files, output_dir=str(out), chunk_bytes=SHARD, num_workers=workers, verbose=False)
    return len(files)


def _read(item: tuple[str, int]) -> dict[str, object]:
    return {"image": Path(item[0]).read_bytes(), "label": item[1]}


def mds(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """``MDSWriter`` as in its documentation of parallel conversion: a subfolder per process, then ``merge_index``."""
    from multiprocessing import Pool

    from streaming.base.util import merge_index

    files = labelled_images(source)
    with Pool(workers) as pool:
        pool.map(_write_mds, [(files[index::workers], f"{out}/{index}") for index in range(workers)], chunksize=1)
        pool.close()
        pool.join()
    merge_index(str(out), keep_local=True)
    return len(files)


def _write_mds(part: tuple[Sequence[tuple[str, int]], str]) -> None:
    from streaming import MDSWriter

    files, folder = part
    with MDSWriter(out=folder, columns={"image": "bytes", "label": "int"}, size_limit=SHARD) as writer:
        for item in files:
            writer.write(_read(item))


def floor(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """The minimum: decode in all processes, and meanwhile write one stream with checksums."""
    return _decode_and_stream(source, out, workers, _decode)


def pillow_floor(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """The same with Pillow as the decoder."""
    return _decode_and_stream(source, out, workers, _decode_with_pillow)


def _decode_and_stream(source: Path, out: Path, workers: int, decode: Callable[[Sequence[str]], None]) -> int:
    from multiprocessing import get_context

    files = [path for path, _ in list_images(source)]
    context = get_context("fork")  # the fastest start
    decoders = [context.Process(target=decode, args=(files[index::workers],)) for index in range(workers)]
    for decoder in decoders:
        decoder.start()
    _stream(files, out)
    for decoder in decoders:
        decoder.join()
        if decoder.exitcode:
            raise SystemExit("a decoder failed")
    return len(files)


def copy(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """The minimum without decoding: one process."""
    files = [path for path, _ in list_images(source)]
    _stream(files, out)
    return len(files)


def _decode(files: Sequence[str]) -> None:
    """As :mod:`brain_dist.collection.pixels`: only the luminance of colour JPEGs, other formats with Pillow."""
    import simplejpeg

    for path in files:
        data = Path(path).read_bytes()
        try:
            simplejpeg.decode_jpeg(data, "GRAY")
        except ValueError:
            _decode_with_pillow([path])


def _decode_with_pillow(files: Sequence[str]) -> None:
    for path in files:
        with Image.open(path) as image:
            if image.mode == "RGB":
                image.draft("L", image.size)
            image.load()


def _stream(files: Sequence[str], out: Path) -> None:
    """Write as many bytes as a tar of these images with their labels and JSON, with crc32, sha256 and fsync."""
    out.mkdir()
    digest, metadata = hashlib.sha256(), bytes(4 * BLOCK)  # headers and contents of a .cls and a .json
    with (out / "stream.tar").open("wb") as stream:
        for path in files:
            data = Path(path).read_bytes()
            zlib.crc32(data)
            sample = b"".join((bytes(BLOCK), data, bytes(-len(data) % BLOCK), metadata))
            digest.update(sample)
            stream.write(sample)
        stream.flush()
        os.fsync(stream.fileno())
    (out / "stream.json").write_text(json.dumps({"sha256": digest.hexdigest()}))


@dataclass(frozen=True)
class Contestant:
    """A way to pack.

    Attributes:
        title: Name in the table.
        pack: The function.
        imports: Modules that are imported before the clock starts; imports of its workers count.
        decodes: Whether it decodes the images.
        peer: Whether it needs the environment of the peers.
        processes: Number of processes; None: the number of workers.
    """

    title: str
    pack: Callable[[Path, Path, Path | None, int], int]
    imports: tuple[str, ...] = ()
    decodes: bool = False
    peer: bool = False
    processes: int | None = None


CONTESTANTS = {
    "floor": Contestant("floor: read, decode, write", floor, ("simplejpeg",), decodes=True),
    "pillow-floor": Contestant("floor with Pillow's decoder", pillow_floor, decodes=True),
    "ours": Contestant(
        "ours, with everything",
        ours,
        ("pyarrow.parquet", "brain_dist.building.build"),
        decodes=True,
    ),
    "webdataset": Contestant("webdataset ShardWriter", webdataset, ("webdataset",), processes=1),
    "litdata": Contestant("litdata.optimize", litdata, ("litdata",), peer=True),
    "mds": Contestant("mosaicml MDSWriter", mds, ("streaming",), peer=True),
    "copy": Contestant("floor: read, write", copy, processes=1),
}
