"""Read back a JSON file that a command has written: damage is one line that names the file and the fix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError

Kind = type | tuple[type, ...]


def read_record(path: Path, advice: str, keys: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """The content of a JSON file that holds one object.

    Args:
        path: the file, which exists.
        advice: ends the error: how the file is made again.
        keys: keys that it must have, and their types.

    Raises:
        UserError: the file cannot be read, is not JSON, is not an object, or lacks a key.
    """
    return checked_record(read_json(path, advice), path, advice, keys)


def checked_record(content: Any, path: Path, advice: str, keys: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """Content of a file, if it is an object with these keys; see :func:`read_record`.

    Raises:
        UserError: it is not.
    """
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it is not a JSON object); {advice}")
    for key, kind in (keys or {}).items():
        if key not in content:
            raise UserError(f"{path} is damaged (it has no {key!r}); {advice}")
        if not isinstance(content[key], kind):
            raise UserError(f"{path} is damaged ({key!r} is {content[key]!r:.40}); {advice}")
    return content


def read_json(path: Path, advice: str) -> Any:
    """The content of a JSON file; see :func:`read_record`.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {advice}") from None
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested too deeply
        raise UserError(f"{path} is damaged (it is not JSON); {advice}") from None
