"""Build speed beside the plain ways: ``python -m benchmarks.shard_build SOURCE [--recipe YAML]``.

Every contestant packs the same files, in a process of its own, on the same cores, and counts from its first look at the
folder to the last byte on the disk (fsync of all it wrote). Loading its packages is not counted, but in workers it is.
Rounds are interleaved. Only ours and the floor decode: the peers copy bytes. The peers' packages are in an environment
of their own: ``make bench-setup``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from brain_dist.errors import Fault, UserError, run

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-bench" / "bin" / "python"
GOAL = 1.25  # ours / floor with decoding
FLOOR, OURS = "floor: read, decode, write", "ours: build with audit"
DECODE = {FLOOR, OURS}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shard_build", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--recipe", type=Path, help="as for `shard build`")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--without-peers", action="store_true", help="leave litdata and mosaicml-streaming out")
    parser.add_argument("--one", choices=tuple(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        for module in IMPORTS[args.one]:
            importlib.import_module(module)
        start, before = time.perf_counter(), os.times()
        CONTESTANTS[args.one](args.source, args.out, args.recipe, args.workers)
        written = 0.0
        durable = time.perf_counter()
        for path in args.out.rglob("*"):
            if path.is_file():
                written += path.stat().st_size
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        end, after = time.perf_counter(), os.times()
        cpu = sum(after[:4]) - sum(before[:4])
        memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(json.dumps({"s": end - start, "sync": end - durable, "cpu": cpu, "bytes": written, "mb": memory / 1024}))
        return 0
    return compare(args)


def compare(args: argparse.Namespace) -> int:
    """All rounds, the table, the verdict."""
    images = len(_files(args.source))
    if not images:
        raise UserError(f"{args.source} holds no .jpg or .png files")
    names = [name for name in CONTESTANTS if not (args.without_peers and name in IN_PEERS)]
    if not PEERS.exists() and any(name in IN_PEERS for name in names):
        raise UserError("the peers are not installed; run `make bench-setup`, or give --without-peers")
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            measured[name].append(_one(name, args))
    best = {name: min(runs, key=lambda r: r["s"]) for name, runs in measured.items()}
    table = Table(
        title=f"{args.source.name}: {images:,} images, {args.workers} workers, best and median of {args.rounds}",
        title_justify="left",
    )
    for column in ("", "decodes", "best s", "median s", "images/s", "of the floor", "CPU s", "MB written", "peak MB"):
        table.add_column(column, justify="left" if not column else "right")
    for name in names:
        one, middle = best[name], statistics.median(r["s"] for r in measured[name])
        table.add_row(
            name, "yes" if name in DECODE else "no", f"{one['s']:.1f}", f"{middle:.1f}", f"{images / one['s']:,.0f}",
            f"{one['s'] / best[FLOOR]['s']:.2f}", f"{one['cpu']:.1f}", f"{one['bytes'] / 1e6:.0f}", f"{one['mb']:.0f}",
        )  # fmt: skip
    Console(width=130).print(table)
    ratio = best[OURS]["s"] / best[FLOOR]["s"]
    print(f"ours / floor = {ratio:.2f} (goal: at most {GOAL}): {'met' if ratio <= GOAL else 'missed'}")
    print(f"peak MB: of the largest process. Load over the last minute: {os.getloadavg()[0]:.1f}")
    return 0


def _one(name: str, args: argparse.Namespace) -> dict[str, float]:
    python = str(PEERS) if name in IN_PEERS else sys.executable
    words = [python, "-m", "benchmarks.shard_build", str(args.source.resolve()), "--one", name]
    words += ["--workers", str(args.workers), *(["--recipe", str(args.recipe.resolve())] if args.recipe else [])]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [*words, "--out", f"{scratch}/out"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise Fault(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _files(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def _labels(files: Sequence[Path]) -> list[int]:
    kinds = sorted({path.parent.name for path in files})
    return [kinds.index(path.parent.name) for path in files]


def ours(source: Path, out: Path, recipe: Path | None, workers: int) -> None:
    """The product: decode, audit, groups, splits, checksums, index, all durable."""
    from brain_dist.data.build import Options, build
    from brain_dist.data.recipes import default_recipe, read_recipe

    chosen = read_recipe(recipe) if recipe else default_recipe(source)
    build(source, out, chosen, Options(), workers=workers, progress=lambda stage, done, total: None)


def floor(source: Path, out: Path, recipe: Path | None, workers: int) -> None:
    """What any builder that decodes must do: read, decode to gray in all processes, write one stream with checksums."""
    from brain_dist.data.pool import worker_pool

    files = _files(source)
    with worker_pool(workers) as pool:
        for _ in pool(_decode, files, 32):
            pass
    out.mkdir()
    _copy(files, out)


def _decode(path: Path) -> int:
    from PIL import Image

    with Image.open(path) as image:
        image.draft("L", image.size)
        image.load()
        return image.width


def copy(source: Path, out: Path, recipe: Path | None, workers: int) -> None:
    """Read every file and write one stream, with checksums."""
    out.mkdir()
    _copy(_files(source), out)


def _copy(files: Sequence[Path], out: Path) -> None:
    import hashlib
    import zlib

    digest = hashlib.sha256()
    with (out / "stream").open("wb") as stream:
        for path in files:
            data = path.read_bytes()
            zlib.crc32(data)
            digest.update(data)
            stream.write(data)


def plain_webdataset(source: Path, out: Path, recipe: Path | None, workers: int) -> None:
    """The loop that the package's documentation shows; one process."""
    import webdataset

    out.mkdir()
    files = _files(source)
    with webdataset.ShardWriter(f"{out}/shard-%05d.tar", maxsize=64e6, verbose=0) as sink:
        for number, (path, label) in enumerate(zip(files, _labels(files), strict=True)):
            sink.write({"__key__": f"{number:06d}", path.suffix[1:].lower(): path.read_bytes(), "cls": label})


def _sample(item: tuple[int, str, int]) -> dict[str, object]:
    number, path, label = item
    return {"index": number, "image": Path(path).read_bytes(), "label": label}


def litdata_optimize(source: Path, out: Path, recipe: Path | None, workers: int) -> None:
    """``litdata.optimize`` with as many workers."""
    import litdata

    files = _files(source)
    items = [(n, str(path), label) for n, (path, label) in enumerate(zip(files, _labels(files), strict=True))]
    litdata.optimize(fn=_sample, inputs=items, output_dir=str(out), chunk_bytes="64MB", num_workers=workers)


def streaming_mds(source: Path, out: Path, recipe: Path | None, workers: int) -> None:
    """mosaicml-streaming's ``MDSWriter``; one process, as its documentation shows."""
    from streaming import MDSWriter

    files = _files(source)
    with MDSWriter(out=str(out), columns={"image": "bytes", "label": "int"}) as writer:
        for path, label in zip(files, _labels(files), strict=True):
            writer.write({"image": path.read_bytes(), "label": label})


CONTESTANTS: dict[str, Callable[[Path, Path, Path | None, int], None]] = {
    FLOOR: floor,
    OURS: ours,
    "webdataset ShardWriter loop": plain_webdataset,
    "litdata.optimize": litdata_optimize,
    "mosaicml-streaming MDSWriter": streaming_mds,
    "floor: read, write": copy,
}
# loaded before the clock starts; what worker processes load counts
IMPORTS = {
    FLOOR: ("PIL.Image", "brain_dist.data.pool"),
    OURS: ("torch", "scipy.sparse.linalg", "pyarrow.parquet", "brain_dist.data.build"),
    "webdataset ShardWriter loop": ("webdataset",),
    "litdata.optimize": ("litdata",),
    "mosaicml-streaming MDSWriter": ("streaming",),
    "floor: read, write": (),
}
IN_PEERS = {"litdata.optimize", "mosaicml-streaming MDSWriter"}


if __name__ == "__main__":
    raise SystemExit(run(main))
