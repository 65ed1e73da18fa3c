"""Command lines: errors of one line, and subcommands whose options are the fields of dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Protocol, get_args, get_origin, get_type_hints

from brain_dist.errors import UserError

_METAVARS = {int: "N", float: "X", Path: "PATH"}
_MAX_ERROR = 400  # characters


class Command(Protocol):
    """A dataclass of options, and what the command does with them.

    A field without a default is a positional argument, or a required flag if it is keyword-only; every other field is
    a flag. A list is several positional arguments, or a flag that may be repeated; a bool is a flag without a value.
    Integers must be ≥ 0. The docstring is the help: its first line, its description, and ``Args:`` for the fields.
    """

    def run(self) -> int:
        """Run the command; returns the exit code."""
        ...


class ArgumentParser(argparse.ArgumentParser):
    """An ``argparse`` parser whose errors are a :class:`UserError` of one line; options cannot be abbreviated."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings, allow_abbrev=False)  # type: ignore[misc]

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UserError`."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def cpu_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def new_parser(advice: str, **settings: Any) -> Any:
    """A ``jsonargparse.ArgumentParser`` whose errors are a :class:`UserError` of one line.

    Args:
        advice: end of the line.
        settings: arguments of the parser.
    """
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            cause: BaseException | None = ex
            while cause is not None:
                if isinstance(cause, UserError):
                    raise cause
                cause = cause.__cause__ or cause.__context__
            raise UserError(f"{_plain(message)}; {advice}")

    return Parser(**settings)


def parse_command(
    prog: str, description: str, commands: Mapping[str, type[Command]], argv: Sequence[str] | None, *, epilog: str = ""
) -> Command:
    """Parse a command line into the dataclass of its subcommand.

    Args:
        prog: the program's name in the help.
        description: text at the top of the help.
        commands: name → dataclass of each subcommand, see :class:`Command`.
        argv: words of the command line; None takes ``sys.argv``.
        epilog: text at the end of the help.

    Raises:
        UserError: an unknown or missing option, or a value of the wrong type; one line.
    """
    from docstring_parser import parse as parse_docstring

    advice, layout = f"see `{prog} --help`", argparse.RawDescriptionHelpFormatter
    parser = new_parser(advice, prog=prog, description=description, epilog=epilog, formatter_class=layout)
    subcommands = parser.add_subcommands(dest="command", title="commands", description=None)
    for name, options in commands.items():
        text = parse_docstring(options.__doc__ or "")
        about = f"{text.short_description}\n\n{text.long_description}"
        subparser = new_parser(advice, description=about, formatter_class=layout)
        help_texts = {param.arg_name: " ".join((param.description or "").split()) for param in text.params}
        types = get_type_hints(options)
        for field in dataclasses.fields(options):  # type: ignore[arg-type]
            _add_field(subparser, field, types[field.name], help_texts[field.name])
        subcommands.add_subcommand(name, subparser, help=text.short_description)
    namespace = parser.parse_args(argv)
    values = vars(namespace[namespace.command])
    for name, value in values.items():
        if isinstance(value, int) and value < 0:
            raise UserError(f"{_flag(name)} {value} must be ≥ 0")
    return commands[namespace.command](**values)


def _add_field(parser: Any, field: dataclasses.Field[Any], annotation: Any, help_text: str) -> None:
    """Add an argument for a field of a dataclass."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    is_required = default is dataclasses.MISSING
    is_positional = is_required and not field.kw_only
    if isinstance(default, str | float) or type(default) is int:
        help_text += f" (default: {default})"
    if isinstance(annotation, UnionType):  # ``X | None``: what the user gives is an X
        annotation = get_args(annotation)[0]
    settings: dict[str, Any] = {"type": annotation, "help": help_text}
    if annotation is bool:
        settings = {"action": "store_true", "help": help_text}
    elif get_origin(annotation) is list:
        (settings["type"],) = get_args(annotation)
        settings |= {"nargs": "+"} if is_positional else {"action": "append"}
    if settings.get("type") in _METAVARS:
        settings["metavar"] = _METAVARS[settings["type"]]
    if not is_positional:
        settings |= {"required": True} if is_required else {"default": default}
    parser.add_argument(field.name if is_positional else _flag(field.name), **settings)


def _plain(message: str) -> str:
    """jsonargparse's message on one line, with options and types named as the user writes them."""
    text = " ".join(message.split()).rstrip(".")
    text = re.sub(r'^Parser key "(\w+)":', lambda match: f"{_flag(match[1])}:", text)
    text = re.sub(r'^Parser key "([\w.]+)":', r"\1:", text)
    text = re.sub(r"Expected a (?:<class '(\w+)'>|typing\.(\S))", r"expected \1\2", text)
    text = re.sub(r"\b[a-z]+\.(?=[a-z_]+\b)", "", text) if "are required" in text else text
    return text if len(text) < _MAX_ERROR else f"{text[:_MAX_ERROR]}…"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
