"""Command lines: errors of one line, and subcommands whose options are the fields of dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Protocol, get_args, get_origin, get_type_hints

from brain_dist.common.text import in_words, nearest
from brain_dist.errors import UserError

_METAVARS = {int: "N", float: "X", Path: "PATH"}
_MAX_ERROR = 400  # characters


class Command(Protocol):
    """A dataclass of options, and what the command does with them.

    A field without a default is a positional argument, or a required flag if it is keyword-only; every other field is
    a flag. A list is several positional arguments, or a flag that may be repeated; a bool is a flag without a value.
    Integers must be ≥ 0 and < 2**63. The docstring is the help: its first line, its description, and ``Args:`` for the
    fields.
    """

    def run(self) -> int:
        """Run the command; returns the exit code."""
        ...


def call_subcommand(verb: str, usage: str, modules: Mapping[str, str], argv: Sequence[str] | None) -> int:
    """Call ``main`` of the module of a verb's subcommand, which is imported only then; without one print the usage.

    Args:
        verb: the verb, for the error.
        usage: the help.
        modules: name of each subcommand → its module below brain_dist.
        argv: the subcommand and its arguments; None are those of the process.

    Raises:
        UserError: the subcommand is unknown; or as its ``main``.
    """
    command, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if command in ("-h", "--help"):
        print(usage, end="")
        return 0
    if command not in modules:
        raise UserError(
            f"{verb}: unknown command '{command}'{nearest(command, modules)}; choose from {', '.join(modules)}"
        )
    return int(import_module(f"brain_dist.{modules[command]}").main(arguments))


class ArgumentParser(argparse.ArgumentParser):
    """An ``argparse`` parser whose errors are a :class:`UserError` of one line; options cannot be abbreviated."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings, allow_abbrev=False)  # type: ignore[misc]

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UserError`."""
        raise UserError(f"{_explain(message, self)}; `{self.prog} --help` lists all options")

    def parse_with_settings(
        self, words: Sequence[str], show_settings: Callable[[], object]
    ) -> tuple[argparse.Namespace, list[str]]:
        """The options of this parser, and the other words, which are settings of a run.

        Args:
            words: the command line.
            show_settings: prints the help of the settings and ends the process; called if the user asks for help.

        Raises:
            UserError: an option that is neither.
        """
        if {"-h", "--help"} & set(words):
            print(f"{self.format_help()}\nand every setting of a run:\n")
            show_settings()
        options, settings = self.parse_known_args(list(words))
        for word in settings:
            if re.match(r"--(?!config\b|print_config\b)[\w-]+(=|$)", word):  # the name of a setting has a dot
                self.error(f"unrecognized arguments: {word}")
        return options, settings


STEP = "step of the run's checkpoint, best or newest (default: best if the run sets train.best, else newest)"


def checkpoint_step(text: str) -> int | str:
    """The value of `--step`: a number of optimiser steps, "best" or "newest".

    Raises:
        UserError: anything else.
    """
    if text in ("best", "newest"):
        return text
    if not text.isdecimal():
        raise UserError(f"--step {text}: must be a number of optimiser steps, best or newest")
    return int(text)


def new_parser(advice: str, **settings: Any) -> Any:
    """A ``jsonargparse.ArgumentParser`` whose errors are a :class:`UserError` of one line; without abbreviations.

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
            raise UserError(f"{_explain(message, self)}; {advice}")

    return Parser(**settings, allow_abbrev=False)


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
        if isinstance(value, int) and not 0 <= value < 2**63:
            raise UserError(f"{_flag(name)} {value} must be ≥ 0{'' if value < 0 else ' and < 2**63'}")
    return commands[namespace.command](**{name: _expanded(value) for name, value in values.items()})


def _expanded(value: Any) -> Any:
    """A path with the home folder for ``~``, which shells leave in ``--out=~/DIR``."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value  # noqa: PTH111 (raises nothing)


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


def _explain(message: str, parser: argparse.ArgumentParser) -> str:
    """An error of argparse or jsonargparse on one line, with options, types and hints in the user's words."""
    text = " ".join(message.split()).rstrip(".")
    actions = _actions(parser)
    options = [option for action in actions for option in action.option_strings]
    if match := re.match(r"unrecognized arguments: ((?:-[\d.]*[^\s\d.=][^\s=]*)?)(.*)", text):
        option, rest = match.groups()
        return f"unknown option {option}{nearest(option, options)}" if option else f"unexpected argument {rest}"
    if match := re.match(r"Group '([\w.]+)' does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted", text):
        name = ".".join(part for part in match.groups() if part)
        return f"unknown setting {name}{nearest(name, [option.lstrip('-') for option in options])}"
    value = r"(?:Got value|Given value(?! type)|Unable to load config)(?: '|: ?)(.*?)(?:' - .*)?$"
    if match := re.match(rf'Parser key "([\w.]+)":.*?{value}', text):
        action = next((action for action in actions if action.dest == match[1]), None)
        kind = in_words(getattr(action, "_typehint", None) or getattr(action, "type", None))
        is_setting = any(option.startswith(f"--{match[1].partition('.')[0]}.") for option in options)
        name = f"{match[1]}=" if is_setting else f"{_flag(match[1])} "
        return f"{name}{_shortened(match[2])}: must be {kind}"
    if match := re.match(r"argument (?:\S+/)?(\S+): invalid (int|float) value: '(.*)'", text):
        return f"{match[1]} {_shortened(match[3])}: must be {in_words({'int': int, 'float': float}[match[2]])}"
    if match := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", text):
        choices = match[3].replace("'", "").split(", ")
        return f"{match[1]}: invalid choice: '{match[2]}'{nearest(match[2], choices)}; choose from {', '.join(choices)}"
    text = re.sub(r'^Parser key "([\w.]+)":', r"\1:", text)
    if "are required" in text:
        flags = {action.dest: action.option_strings[-1] for action in actions if action.option_strings}
        text = re.sub(r"(?<![\w.-])(?:[a-z]+\.)?([a-z_]+)(?=[,;]|$)", lambda match: flags.get(match[1], match[1]), text)
    return _shortened(text)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser and of its subcommands."""
    actions = []
    for action in parser._actions:
        subparsers = action.choices.values() if isinstance(action, argparse._SubParsersAction) else ()
        actions += [action, *(each for subparser in subparsers for each in subparser._actions)]
    return actions


def _shortened(text: str) -> str:
    return text if len(text) < _MAX_ERROR else f"{text[:_MAX_ERROR]}…"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
