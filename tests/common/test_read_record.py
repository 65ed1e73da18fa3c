"""Records that a command reads back: whatever the damage is, one line names the file, the damage and the fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from damage import DAMAGES, damage

from brain_dist.common.records import read_json, read_record
from brain_dist.errors import UserError

ADVICE = "write it again with `brain-dist verb`"
KEYS = {"job": str, "cells": list, "fold": (int, type(None))}
RECORD = {"job": "17", "cells": ["a", "b"], "fold": None}


def test_an_intact_record_is_returned(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps(RECORD))
    assert read_record(file, ADVICE, KEYS) == RECORD
    assert read_record(file, ADVICE) == RECORD


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_one_line_with_the_file_and_the_fix(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps(RECORD))
    damage(file, kind)
    with pytest.raises(UserError) as caught:
        read_record(file, ADVICE, KEYS)
    message = str(caught.value)
    assert message.startswith(f"{file} is damaged (")
    assert message.endswith(f"); {ADVICE}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("null", "it is not a JSON object"),
        ('"text"', "it is not a JSON object"),
        ('{"job": "17", "cells": []}', "it has no 'fold'"),
        ('{"job": 17, "cells": [], "fold": 0}', "'job' is 17"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_the_damage_is_named(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "record.json"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        read_record(file, ADVICE, KEYS)
    assert str(caught.value) == f"{file} is damaged ({reason}); {ADVICE}"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "gone.json", ADVICE)
    assert str(caught.value) == f"{tmp_path / 'gone.json'} cannot be read (No such file or directory); {ADVICE}"
