"""YAML files and command-line flags to a checked :class:`~brain_dist.config.Config`, and back to YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_dist.config.config import Config
from brain_dist.errors import UserError


def parser(prog: str, description: str) -> Any:
    """A jsonargparse parser of :class:`Config` whose mistakes are one :class:`UserError` line."""
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            cause: BaseException | None = ex
            while cause is not None:
                if isinstance(cause, UserError):
                    raise cause
                cause = cause.__cause__ or cause.__context__
            raise UserError(f"{_one_line(message)}; `{prog} --help` lists every setting")

    made = Parser(prog=prog, description=description)
    made.add_argument(
        "--config", action="config", help="YAML file of settings; later ones and flags win over earlier ones."
    )
    made.add_class_arguments(Config, as_group=False)
    return made


def _one_line(message: str) -> str:
    """The first informative words of jsonargparse's message, on one line."""
    text = " ".join(message.split())
    return text if len(text) < 400 else text[:397] + "…"


def load(argv: Sequence[str], prog: str = "brain-dist train", description: str = "") -> Config:
    """Read YAML files and flags into a checked :class:`Config`.

    Raises:
        UserError: an unknown key, a wrong type, an impossible value, a file that is not there.
    """
    made = parser(prog, description)
    ready = made.instantiate(made.parse_args(list(argv)))
    return Config(**{f.name: getattr(ready, f.name) for f in dataclasses.fields(Config)})


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict of the resolved configuration, fit for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))


def dump(config: Config) -> str:
    """The resolved configuration as YAML, in the order in which it is declared."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read(path: Path) -> Config:
    """The configuration that a run wrote beside its results."""
    if not path.is_file():
        raise UserError(f"{path} is not there; is {path.parent} a run's folder?")
    return load(["--config", str(path)], prog=str(path))
