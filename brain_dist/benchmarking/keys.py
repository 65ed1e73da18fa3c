"""Names by content: of a cell, and of the measured costs of a network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_dist.checkpoints.choice import weights_file
from brain_dist.common.files import sha256_file
from brain_dist.config import Config, to_dict
from brain_dist.errors import UserError


def cell_key(config: Config, version: str, contents: Mapping[str, str] | None = None) -> str:
    """16 hex digits of the sha256 of a cell's settings, with the version of its shards instead of their folder.

    ``run.dir`` and ``run.name`` are left out. What does not change the trained network (W&B, threads) counts: the same
    settings are the same cell.

    Args:
        config: settings of the training.
        version: sha256 of the manifest of its shards.
        contents: :func:`file_contents` of the settings; they count instead of the paths.
    """
    settings = {**flattened(to_dict(config)), **(contents or {})}
    for name in ("run.dir", "run.name", "data.shards", "data.sources", "data.leave_out"):
        del settings[name]
    return settings_key({**settings, "dataset_version": version})


def file_contents(config: Config) -> dict[str, str]:
    """sha256 of the files that ``model.weights`` and ``train.deepspeed`` name, by setting; empty if neither is set.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    files = {"train.deepspeed": config.train.deepspeed, "model.weights": config.model.weights}
    contents = {}
    for name, path in files.items():
        if path:
            file = weights_file(Path(path)) if name == "model.weights" and Path(path).is_dir() else Path(path)
            try:
                contents[name] = sha256_file(file)
            except OSError as error:
                raise UserError(f"{name}={path}: {file} cannot be read ({error.strerror})") from None
    return contents


def costs_name(config: Config, classes: int) -> str:
    """Name of the measured costs of a network: its name in timm, and a hash of the settings that they depend on.

    These are ``model.*`` without the initial weights, the size of the images, the precision and the device. Methods of
    training one network share its costs.

    Args:
        config: settings of a training.
        classes: number of classes.
    """
    settings = flattened({"model": to_dict(config)["model"]})
    for name in ("model.pretrained", "model.weights"):
        del settings[name]
    settings |= {"data.size": config.data.size, "train.precision": config.train.precision}
    key = settings_key({**settings, "run.device": config.run.device, "classes": classes})
    name = re.sub(r"[^\w.-]", "_", config.model.name)
    return f"{name}-{key}"


def settings_key(settings: Mapping[str, Any]) -> str:
    """16 hex digits for settings by their dotted names.

    A setting that is off (0, empty, None) does not count, so a version with more settings continues a benchmark that
    an earlier one has begun.
    """
    text = json.dumps({name: value for name, value in settings.items() if value}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; options of a network stay one value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, dict) and not prefix else {name: value}
    return flat
