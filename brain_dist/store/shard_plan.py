"""Which image goes into which shard, and its row in the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.collection.examination import Examination
from brain_dist.common.text import printable
from brain_dist.store.options import BuildOptions
from brain_dist.store.split import Split
from brain_dist.store.tar import Sample, Shard, assign_shards


def index_rows(examined: Examination, groups: np.ndarray, splits: np.ndarray) -> list[dict[str, Any]]:
    """A row of the index for each of N images, without its place (shard and offset).

    Args:
        examined: the images.
        groups: int [N], the first image of each image's group; its key names the group.
        splits: object [N], names.
    """
    rows = []
    for record, image, group, split in zip(examined.records, examined.images, groups, splits, strict=True):
        x, y, width, height = image.head
        rows.append({
            "key": record.key, "size": image.size, "crc32": image.crc32, "label": record.label,
            "dataset": record.dataset, "split": split, "group": examined.records[group].key, "patient": record.patient,
            "width": image.width, "height": image.height, "mode": image.mode, "pixel_hash": image.pixel_hash,
            "phash": image.phash, "source": printable(record.path), "head_x": x, "head_y": y, "head_w": width,
            "head_h": height, "attributes": json.dumps(record.attributes, sort_keys=True, separators=(",", ":")),
        })  # fmt: skip
    return rows


def plan_shards(name: str, samples: list[Sample], split: Split, options: BuildOptions) -> list[Shard]:
    """Shuffle each split, so that every shard mixes the classes, and divide it into shards, sorted by name."""
    shards = []
    for code, split_name in enumerate(split.names):
        rows = np.flatnonzero(split.codes == code)
        order = rows[np.random.default_rng([options.seed, 2, code]).permutation(len(rows))].tolist()
        numbers = assign_shards([samples[row].size for row in order], options.shard_size)
        contents: list[list[Sample]] = [[] for _ in range(max(numbers, default=-1) + 1)]
        for row, number in zip(order, numbers, strict=True):
            contents[number].append(samples[row])
        shards += [Shard(f"{name}-{split_name}-{number:05d}.tar", content) for number, content in enumerate(contents)]
    return sorted(shards, key=lambda shard: shard.name)


def samples_to_write(
    examined: Examination, rows: list[dict[str, Any]], classes: tuple[str, ...], source: Path, spool: Path
) -> list[Sample]:
    """The samples of N images: their bytes are in the source folder, or in ``spool`` if they were encoded again."""
    samples = []
    for number, (record, image, row) in enumerate(zip(examined.records, examined.images, rows, strict=True)):
        metadata = {key: row[key] for key in ("dataset", "patient", "group", "source", "split")}
        metadata["class"] = classes[record.label]
        file = source / record.path if image.payload is None else spool / record.key
        text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        samples.append(Sample(number, record.key, image.ext, file, image.size, image.crc32, record.label, text))
    return samples
