"""Descriptions of machines, ``configs/machines/*.yaml``, for :mod:`brain_dist.scalability.predict`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

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


SECTIONS: Mapping[str, type] = {"compute": DeviceRates, "link": Link, "network": Link}


def read_machine(path: Path) -> Machine:
    """Read and check a description.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing, or has an invalid value.
    """
    values = _read_yaml(path)
    parser = _parser(path)
    parser.add_class_arguments(Machine, as_group=False, skip=set(SECTIONS))
    for name, section in SECTIONS.items():
        if values.get(name) == "measured":
            del values[name]
        elif isinstance(values.get(name, {}), dict):
            parser.add_class_arguments(section, name)
        else:
            raise UserError(f"{path}: {name}={values[name]!r}: must be measured or hold {', '.join(_keys(section))}")
    machine = Machine(**parser.instantiate(parser.parse_object(values)).as_dict())
    _check(path, machine)
    return dataclasses.replace(machine, source=" ".join(machine.source.split()))


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--machine {path}: {error.strerror}; {FOLDER}/ has examples") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--machine {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold {', '.join(_keys(Machine))}; {FOLDER}/ has examples")
    return values


def _parser(path: Path) -> Any:
    """A jsonargparse parser that raises :class:`UserError` with the file's path."""
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            text = " ".join(message.replace("Parser key", "key").split())
            if "not accept" in text:
                nested = [f"{name}.{key}" for name, section in SECTIONS.items() for key in _keys(section)]
                text += f"; allowed: {', '.join([*_keys(Machine), *nested])}"
            raise UserError(f"{path}: {text}")

    return Parser()


def _keys(section: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(section)]


def _check(path: Path, machine: Machine) -> None:
    """Check what the types do not: ranges, precisions, and the numbers that belong together."""
    for name in ("name", "source"):
        if not getattr(machine, name).strip():
            raise UserError(f"{path}: {name} is empty; it must be text")
    for key, number in numbers(dataclasses.asdict(machine)):
        if not 0 < number < math.inf:
            raise UserError(f"{path}: {key}={number:g}: must be finite and > 0")
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
