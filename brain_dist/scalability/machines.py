"""Descriptions of machines, ``configs/machines/*.yaml``, that :mod:`brain_dist.scalability.predict` extrapolates to."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError
from brain_dist.scalability.cost import BYTES, Compute, Link

FOLDER = "configs/machines"
ADAM_BYTES = 28.0  # a parameter: fp32 weight, mean and variance read and written, its gradient read


@dataclass(frozen=True)
class Rates:
    """What a device computes: images/s of forward and backward by network, where measured, else a share of its peak."""

    rate: Mapping[str, float]  # FLOP/s by precision
    mfu: float
    memory_bandwidth: float  # bytes/s
    images_per_s: Mapping[str, float]

    def compute(self, model: str, precision: str, flops: float, backward: float) -> Compute:
        """Of a network of ``flops`` an image, whose backward pass takes that share."""
        each = self.images_per_s.get(model)
        if each is None and precision not in self.rate:
            raise UserError(f"the machine's compute.rate has no {precision}, in which {model} was measured; add it")
        seconds = 1 / each if each else flops / (self.rate[precision] * self.mfu)
        return Compute(0.0, seconds, backward, ADAM_BYTES / self.memory_bandwidth, 0.0, 0.0)


@dataclass(frozen=True)
class Machine:
    """A node and what joins nodes. None stands for "as measured", of ``loader`` for "never binds"."""

    name: str
    source: str
    ranks_per_node: int
    device: str
    compute: Rates | None
    link: Link | None
    network: Link | None
    cores: int | None = None
    loader: float | None = None  # images/s of a node


def load(path: Path) -> Machine:
    """Read a description; UserError, with the key, for whatever is wrong with it."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--machine {path}: {error.strerror}; {FOLDER}/ holds examples") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--machine {path} is not YAML: {error}") from None
    keys = ("name", "source", "ranks_per_node", "device", "compute", "link", "network")
    top = _keys(path, "", found, keys, ("cores", "loader_images_per_s"))
    for name in ("name", "source"):
        if not isinstance(top[name], str) or not top[name].strip():
            raise UserError(f"{path}: '{name}' must say it in words: {_WORDS[name]}")
    if top["device"] not in ("cpu", "cuda"):
        raise UserError(f"{path}: device={top['device']!r}: cpu or cuda")
    return Machine(
        name=top["name"],
        source=" ".join(top["source"].split()),
        ranks_per_node=_whole(path, "ranks_per_node", top["ranks_per_node"]),
        device=top["device"],
        compute=None if top["compute"] == "measured" else _rates(path, top["compute"]),
        link=_link(path, "link", top["link"]),
        network=_link(path, "network", top["network"]),
        cores=None if top.get("cores") is None else _whole(path, "cores", top["cores"]),
        loader=None
        if top.get("loader_images_per_s") is None
        else _positive(path, "loader_images_per_s", top["loader_images_per_s"]),
    )


_WORDS = {"name": "the machine", "source": "where its numbers come from, and which are assumed"}


def _keys(path: Path, where: str, found: Any, must: Collection[str], may: Collection[str] = ()) -> dict[str, Any]:
    if not isinstance(found, dict):
        other = ", or the word measured" if where else ""
        raise UserError(f"{path}: {where or 'the file'} must hold {', '.join(must or may)}{other}")
    for name in found:
        if name not in must and name not in may:
            raise UserError(f"{path}: no key '{where}{name}'; there are {', '.join([*must, *may])}")
    for name in must:
        if name not in found:
            raise UserError(f"{path}: '{where}{name}' is missing")
    return found


def _positive(path: Path, name: str, value: Any) -> float:
    try:  # YAML reads 1e9 without a point as text
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number <= 0:
        raise UserError(f"{path}: {name}={value!r} is no number above 0")
    return number


def _whole(path: Path, name: str, value: Any) -> int:
    number = _positive(path, name, value)
    if number != int(number):
        raise UserError(f"{path}: {name}={value!r} is no whole number")
    return int(number)


def _link(path: Path, name: str, found: Any) -> Link | None:
    if found == "measured":
        return None
    own = _keys(path, f"{name}.", found, ("bandwidth", "latency"))
    return Link(*(_positive(path, f"{name}.{key}", own[key]) for key in ("latency", "bandwidth")))


def _rates(path: Path, found: Any) -> Rates:
    own = _keys(path, "compute.", found, ("memory_bandwidth",), ("rate", "mfu", "images_per_s"))
    rate = _keys(path, "compute.rate.", own.get("rate", {}), (), tuple(BYTES))
    each = own.get("images_per_s", {})
    if not isinstance(each, dict):
        raise UserError(f"{path}: compute.images_per_s must hold networks and their measured images/s of one device")
    if rate and "mfu" not in own:
        raise UserError(f"{path}: 'compute.mfu' is missing: the share of compute.rate that training reaches")
    if not rate and not each:
        raise UserError(f"{path}: compute needs rate and mfu, or images_per_s, or the word measured")
    mfu = _positive(path, "compute.mfu", own["mfu"]) if rate else 1.0
    if mfu > 1:
        raise UserError(f"{path}: compute.mfu={mfu:g} is a share, so at most 1")
    return Rates(
        rate={name: _positive(path, f"compute.rate.{name}", value) for name, value in rate.items()},
        mfu=mfu,
        memory_bandwidth=_positive(path, "compute.memory_bandwidth", own["memory_bandwidth"]),
        images_per_s={str(name): _positive(path, f"compute.images_per_s.{name}", rate) for name, rate in each.items()},
    )
