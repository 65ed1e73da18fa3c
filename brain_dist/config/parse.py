"""YAML files and command-line flags to a checked :class:`~brain_dist.config.Config`, and back to YAML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from brain_dist.common.commands import new_parser
from brain_dist.common.schema import Location, YamlMapping, load_yaml, places_of_keys
from brain_dist.config.config import Config
from brain_dist.errors import UserError


def load(
    arguments: Sequence[str], prog: str = "brain-dist train", description: str = "", *, advice: str = ""
) -> Config:
    """Read YAML files and flags, such as ``["--config", "a.yaml", "--optim.lr", "1e-4"]``.

    ``prog`` and ``description`` are for the help; ``advice`` ends an error and names ``prog``'s help by default.

    Raises:
        UserError: an unknown setting, a wrong type, a value out of range, or a file that is missing or invalid. The
            message begins with ``FILE:LINE`` if the setting is in a file.
    """
    places = _places(arguments)
    parser = new_parser(advice or f"`{prog} --help` lists all settings", prog=prog, description=description)
    parser.add_argument(
        "--config", action="config", help="YAML file of settings; later files and flags override earlier ones."
    )
    parser.add_class_arguments(Config, as_group=False)
    try:
        settings = parser.instantiate(parser.parse_args(list(arguments)))
        return Config(**{section.name: getattr(settings, section.name) for section in dataclasses.fields(Config)})
    except UserError as error:
        setting = re.match(r"(?:unknown setting )?([\w.]*)", str(error))
        if setting is None or setting[1] not in places:
            raise
        raise UserError(f"{places[setting[1]]}: {error}") from None


def _places(arguments: Sequence[str]) -> dict[str, Location]:
    """Where each setting gets its value, for the settings that the YAML files on the command line set."""
    places: dict[str, Location] = {}
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, _, value = word.partition("=")
        if option == "--config":
            places |= places_of_keys(_read_yaml(Path(value or following)), Location(value or following))
        else:
            places.pop(option.removeprefix("--"), None)  # a flag replaces the file's value
    return places


def _read_yaml(path: Path) -> YamlMapping:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read ({error}); configs/ has examples") from None
    if not isinstance(content, YamlMapping):
        raise UserError(f"{path}: must be a mapping of settings, such as `model: {{name: resnet50}}`")
    return content


def read(path: Path) -> Config:
    """Read the configuration that a run saved in its folder.

    Raises:
        UserError: ``path`` does not exist, lacks a section or contains an invalid setting.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; {path.parent} is not a run folder")
    advice = "copy it from where the run was trained"
    saved = _read_saved(path, advice)
    config = load(["--config", str(path)], advice="docs/configuration.md lists all settings")
    _require_sections(saved, path, advice)  # the settings that a cut file lacks would have defaults
    return config


def read_sections(path: Path, advice: str) -> dict[str, dict[str, Any]]:
    """The settings that a run saved, by section and unchecked; for readers of runs of other versions.

    Args:
        path: the file, which exists.
        advice: ends the error: how the file is made again.

    Raises:
        UserError: the file cannot be read, is not YAML, or lacks a section.
    """
    content = _read_saved(path, advice)
    _require_sections(content, path, advice)
    return content


def _read_saved(path: Path, advice: str) -> dict[str, dict[str, Any]]:
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {advice}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged (it is not text); {advice}") from None
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it is not a mapping of settings); {advice}")
    return content


def _require_sections(content: dict[str, dict[str, Any]], path: Path, advice: str) -> None:
    for section in dataclasses.fields(Config):
        if not isinstance(content.get(section.name), dict):
            raise UserError(f"{path} is damaged (it has no section {section.name}); {advice}")


def dump(config: Config) -> str:
    """All settings as YAML, in the order of their declaration."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def to_dict(config: Config) -> dict[str, Any]:
    """All settings as nested dicts and lists, ready for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))
