"""Descriptions of machines, ``configs/machines/*.yaml``, for :mod:`brain_dist.scalability.predict`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from brain_dist.common.schema import Location, YamlMapping, load_yaml, places_of_keys, read_dataclass
from brain_dist.config.checks import numbers
from brain_dist.errors import UserError
from brain_dist.scalability.cost import Compute, Link
from brain_dist.scalability.traffic import BYTES

FOLDER = "configs/machines"
ADAM_BYTES = 28.0  # memory traffic per parameter: fp32 weight, mean and variance read and written, gradient read


@dataclass(frozen=True)
class DeviceRates:
    """What one device computes.

    Attributes:
        memory_bandwidth: Memory bandwidth [bytes/s], which limits the optimiser.
        rate: Peak rate [FLOP/s] by precision.
        mfu: Share of ``rate`` that training reaches (model FLOPs utilisation).
        images_per_s: Measured images/s of forward and backward by network; takes precedence over ``rate``.
    """

    memory_bandwidth: float
    rate: dict[str, float] = field(default_factory=dict)
    mfu: float | None = None
    images_per_s: dict[str, float] = field(default_factory=dict)

    def compute(self, model: str, precision: str, flops: float, backward_share: float) -> Compute:
        """Compute times of a network.

        Args:
            model: Name of the network.
            precision: train.precision.
            flops: FLOP per image, forward and backward.
            backward_share: Share of backward in forward and backward.

        Raises:
            UserError: neither the network's images/s nor the rate of ``precision`` is described.
        """
        if model in self.images_per_s:
            per_image = 1 / self.images_per_s[model]
        elif precision in self.rate:
            per_image = flops / (self.rate[precision] * (self.mfu or 1.0))
        else:
            raise UserError(f"the machine's compute.rate has no {precision}, the precision of {model}; add it")
        return Compute(0.0, per_image, backward_share, ADAM_BYTES / self.memory_bandwidth, 0.0, 0.0)


@dataclass(frozen=True)
class Machine:
    """A node and the network between nodes. A section is None if the file says ``measured``.

    Attributes:
        name: Name of the machine.
        source: Where the numbers come from, and which are assumed.
        ranks_per_node: Number of ranks of a node.
        device: cpu or cuda.
        cores: CPU cores of a node; None: as measured.
        loader_images_per_s: Images/s of a node's loaders; None: as measured, or no limit on a described device.
        compute: Compute rates of a device.
        link: Link inside a node.
        network: Network of a node.
    """

    name: str
    source: str
    ranks_per_node: int
    device: Literal["cpu", "cuda"]
    cores: int | None = None
    loader_images_per_s: float | None = None
    compute: DeviceRates | None = None
    link: Link | None = None
    network: Link | None = None


SECTIONS = ("compute", "link", "network")


def read_machine(path: Path) -> Machine:
    """Read and check a description.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing, or has an invalid value.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--machine {path} cannot be read ({error}); {FOLDER}/ has examples") from None
    location = Location(str(path))
    if not isinstance(content, YamlMapping):
        raise UserError(f"{path}: must be a mapping of keys to values; {FOLDER}/ has examples")
    places = places_of_keys(content, location)
    for name in SECTIONS:
        value = content.get(name)
        if value == "measured":
            del content[name]
        elif isinstance(value, str):
            raise UserError(f"{location.inside(content, name)} must be measured or a mapping of keys, got {value!r}")
    machine = read_dataclass(Machine, content, location)
    for key, number in numbers(dataclasses.asdict(machine)):
        if not 0 < number < math.inf:
            raise UserError(f"{places.get(key, path)}: {key}={number:g}: must be finite and > 0")
    _check(path, machine)
    return dataclasses.replace(machine, source=" ".join(machine.source.split()))


def _check(path: Path, machine: Machine) -> None:
    """Check what the types do not: precisions, and the numbers that belong together."""
    if (compute := machine.compute) is None:
        return
    for precision in compute.rate:
        if precision not in BYTES:
            raise UserError(f"{path}: compute.rate.{precision}: unknown precision; allowed: {', '.join(BYTES)}")
    if compute.rate and compute.mfu is None:
        raise UserError(f"{path}: compute.mfu is missing: the share of compute.rate that training reaches")
    if compute.mfu is not None and compute.mfu > 1:
        raise UserError(f"{path}: compute.mfu={compute.mfu:g}: must be ≤ 1")
    if not compute.rate and not compute.images_per_s:
        raise UserError(f"{path}: compute needs rate and mfu, or images_per_s, or must be the word measured")
