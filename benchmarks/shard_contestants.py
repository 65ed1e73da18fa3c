"""The ways to pack a folder of images that ``benchmarks.shard_build`` compares; each runs in a process of its own.

A contestant is called as ``pack(source, out, recipe, workers)``, makes the folder ``out`` and returns how many images
it packed. It lists the folder itself, so that its clock starts at the first listing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png")
SHARD = 64_000_000  # bytes a shard, of every contestant
BLOCK = 512
STAGES: dict[str, float] = {}  # seconds after our start


def listed(source: Path) -> list[tuple[str, str]]:
    """(path, name of its folder) of every image below ``source``."""
    found = [
        (os.path.join(base, name), os.path.basename(base))  # noqa: PTH118, PTH119 (paths as strings travel to workers)
        for base, _, names in os.walk(source, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    return sorted(found)


def numbered(source: Path) -> list[tuple[str, int]]:
    """(path, label) of every image: the folders' names in alphabetical order give the labels."""
    files = listed(source)
    names = sorted({kind for _, kind in files})
    return [(path, names.index(kind)) for path, kind in files]


def ours(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """Decode, audit, groups, splits, checksums, index; durable. ``STAGES`` keeps when each stage ended."""
    from brain_dist.collection.recipes import default_recipe, read_recipe
    from brain_dist.store.build import Options, build

    start = time.perf_counter()

    def told(stage: str, done: int, total: int) -> None:
        STAGES.setdefault("first image", time.perf_counter() - start)
        STAGES[stage] = time.perf_counter() - start

    chosen = read_recipe(recipe) if recipe else default_recipe(source)
    return len(build(source, out, chosen, Options(), workers=workers, progress=told).dataset)


def webdataset(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """The loop of its documentation: one process."""
    from webdataset import ShardWriter

    out.mkdir()
    files = numbered(source)
    with ShardWriter(f"{out}/shard-%05d.tar", maxsize=SHARD, verbose=0) as sink:
        for number, (path, label) in enumerate(files):
            data = Path(path).read_bytes()
            sink.write({"__key__": f"{number:06d}", "jpg": data, "cls": label, "json": {"source": path}})
    return len(files)


def litdata(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """``optimize`` with as many workers."""
    from litdata import optimize

    files = numbered(source)
    optimize(fn=_read, inputs=files, output_dir=str(out), chunk_bytes=SHARD, num_workers=workers, verbose=False)
    return len(files)


def _read(item: tuple[str, int]) -> dict[str, object]:
    return {"image": Path(item[0]).read_bytes(), "label": item[1]}


def mds(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """``MDSWriter`` as its page on parallel conversion shows: a sub-folder a process, then ``merge_index``."""
    from multiprocessing import Pool

    from streaming.base.util import merge_index

    files = numbered(source)
    with Pool(workers) as pool:
        pool.map(_write_mds, [(files[part::workers], f"{out}/{part}") for part in range(workers)], chunksize=1)
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
    """Nothing but what cannot be left out: decode in all processes, meanwhile write one stream with checksums."""
    from multiprocessing import get_context

    files = [path for path, _ in listed(source)]
    context = get_context("fork")  # the cheapest start there is
    decoders = [context.Process(target=_decode, args=(files[part::workers],)) for part in range(workers)]
    for decoder in decoders:
        decoder.start()
    _stream(files, out)
    for decoder in decoders:
        decoder.join()
        if decoder.exitcode:
            raise SystemExit("a decoder failed")
    return len(files)


def copy(source: Path, out: Path, recipe: Path | None, workers: int) -> int:
    """The same without decoding: one process."""
    files = [path for path, _ in listed(source)]
    _stream(files, out)
    return len(files)


def _decode(files: Sequence[str]) -> None:
    """As :mod:`brain_dist.collection.pixels` decodes: colour JPEGs to their luminance, all the others in full."""
    for path in files:
        with Image.open(path) as image:
            if image.mode == "RGB":
                image.draft("L", image.size)
            image.load()


def _stream(files: Sequence[str], out: Path) -> None:
    """The bytes of a tar of these images, their labels and their texts, with crc32, sha256 and fsync."""
    out.mkdir()
    digest, about = hashlib.sha256(), bytes(4 * BLOCK)  # headers and contents of a .cls and a .json
    with (out / "stream.tar").open("wb") as stream:
        for path in files:
            data = Path(path).read_bytes()
            zlib.crc32(data)
            piece = b"".join((bytes(BLOCK), data, bytes(-len(data) % BLOCK), about))
            digest.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    (out / "stream.json").write_text(json.dumps({"sha256": digest.hexdigest()}))


@dataclass(frozen=True)
class Contestant:
    """``imports`` are loaded before the clock starts; what worker processes load counts.

    ``peer``: its packages are in the environment of the peers. ``processes``: None where it takes the asked workers.
    """

    title: str
    pack: Callable[[Path, Path, Path | None, int], int]
    imports: tuple[str, ...] = ()
    decodes: bool = False
    peer: bool = False
    processes: int | None = None


CONTESTANTS = {
    "floor": Contestant("floor: read, decode, write", floor, decodes=True),
    "ours": Contestant(
        "ours, with everything",
        ours,
        ("pyarrow.parquet", "brain_dist.store.build"),
        decodes=True,
    ),
    "webdataset": Contestant("webdataset ShardWriter", webdataset, ("webdataset",), processes=1),
    "litdata": Contestant("litdata.optimize", litdata, ("litdata",), peer=True),
    "mds": Contestant("mosaicml MDSWriter", mds, ("streaming",), peer=True),
    "copy": Contestant("floor: read, write", copy, processes=1),
}
