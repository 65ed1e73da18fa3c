"""YAML files become dataclasses; a mistake names the file, the line and what is allowed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from brain_dist.common.schema import Location, load_yaml, read_dataclass
from brain_dist.errors import UserError


@dataclass(frozen=True)
class Item:
    name: str
    weight: float | None = None


@dataclass(frozen=True)
class Order:
    kind: Literal["fast", "slow"]
    items: list[Item]
    limits: dict[str, int] = field(default_factory=dict)


VALID = """\
# an order
kind: fast
items:
- name: a
  weight: 1e3
- {name: b}
limits:
  weight: 5
"""


def read(text: str) -> Order:
    return read_dataclass(Order, load_yaml(text, "order.yaml"), Location("order.yaml"))


def test_a_file_becomes_a_dataclass() -> None:
    assert read(VALID) == Order("fast", [Item("a", 1000.0), Item("b")], {"weight": 5})
    assert read(json.dumps({"kind": "fast", "items": [{"name": "\U0001f9e0 ü"}]})).items == [Item("\U0001f9e0 ü")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: fast", "knid: fast", r"^order\.yaml:2: unknown key 'knid' \(did you mean kind\?\); known"),
        ("kind: fast", "kind: quick", r"^order\.yaml:2: kind must be one of fast, slow, got 'quick'"),
        ("weight: 1e3", "weight: heavy", r"^order\.yaml:5: items\[0\]: weight must be a number, got 'heavy'"),
        ("weight: 1e3", "wieght: 1", r"^order\.yaml:5: items\[0\]: unknown key 'wieght' \(did you mean weight\?\)"),
        ("{name: b}", "{weight: 2}", r"^order\.yaml:3: items\[1\]: the key 'name' is missing"),
        ("{name: b}", "b", r"^order\.yaml:3: items\[1\] must be a mapping of keys to values, got 'b'"),
        ("weight: 5", "weight: many", r"^order\.yaml:8: limits: weight must be an integer, got 'many'"),
        ("weight: 5", "1: 5", r"^order\.yaml:8: limits: the key must be text, got 1"),
        ("limits:", "kind:", r"^order\.yaml:7: 'kind' is given twice"),
        ("{name: b}", "{name: b", r"^order\.yaml:7: not valid YAML: "),
        ("  weight: 1e3", "\tweight: 1e3", r"^order\.yaml:5: not valid YAML: found character '\\t'"),
        ("  weight: 5", "  weight: \x07", r"^order\.yaml:8: not valid YAML: "),
        ("kind: fast", "kind: 2020-13-45", r"^order\.yaml:2: not valid YAML: '2020-13-45' \(month must be in"),
        ("weight: 5", "weight: 0x_", r"^order\.yaml:8: not valid YAML: '0x_' \(invalid literal for int.*put a text in"),
        ("weight: 5", "weight: !!bool maybe", r"^order\.yaml:8: not valid YAML: 'maybe' "),
        ("name: a", r'name: "\ud83d"', r"^order\.yaml:4: not valid YAML: .*put a text in quotes"),
        ("{name: b}", "[" * 5000, r"^order\.yaml: not valid YAML: it is nested too deeply$"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_file_the_line_and_what_is_allowed(old: str, new: str, message: str) -> None:
    assert old in VALID
    with pytest.raises(UserError, match=message) as caught:
        read(VALID.replace(old, new, 1))
    assert "\n" not in str(caught.value)
