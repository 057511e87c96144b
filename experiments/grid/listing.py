"""refavs-sweep settings: every setting of a trial with its default, what it accepts and what it means.

Everything is read from the dataclasses of the settings; their docstrings contain the meanings.
"""

import dataclasses
import inspect
import re
import shutil
import textwrap
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from experiments.grid.config import HEAD, TrialConfig, defaults
from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.model.heads.registry import DEFAULT, names
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import say

NAME = "settings"
WIDEST = 110  # longer lines are hard to read
_WORDS = re.compile(r"\b(None|True|False)\b")  # YAML spells them differently
KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}


@dataclass(frozen=True, kw_only=True)
class ListedSetting:
    """One setting of a trial.

    Attributes:
        name: dotted name, as in grids and `--set`.
        default: the default in YAML.
        accepted: the type, or the list of accepted values.
        meaning: text from the docstring.
    """

    name: str
    default: str
    accepted: str
    meaning: str


def build_parser() -> CommandParser:
    """The command line of refavs-sweep settings."""
    parser = CommandParser(prog=f"refavs-sweep {NAME}", description="Lists the settings of a trial, which a "
                                     "grid file or --set NAME=VALUE changes: default, accepted values, meaning.")
    parser.add_argument("words", metavar="WORD", nargs="*", help=f"the name of a head ({DEFAULT} without one), or the "
                        f"beginning of settings: {', '.join(_sections())}, or longer, e.g. train.e")
    return parser


def main(argv: Sequence[str]) -> int:
    """Prints the settings; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command(f"refavs-sweep {NAME}", lambda: _show(args.words))


def _show(words: Sequence[str]) -> int:
    named = [word for word in words if word in names()]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} are two heads; name one")
    every = settings(*named)
    begins = tuple(word for word in words if word not in named)
    chosen = [setting for setting in every if setting.name.startswith(begins or "")]
    for word in begins:
        if not any(setting.name.startswith(word) for setting in every):
            known = [*_sections(), *names(), *(setting.name for setting in every)]
            raise ConfigError(f"no setting and no head begins with {word!r}; {nearest(word, known)}")
    for line in described(chosen, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)).splitlines():
        say(line)
    return Exit.COMPLETE


def settings(head: str = DEFAULT) -> list[ListedSetting]:
    """All settings of a trial with this head, in the order of the code."""
    return _settings_of(defaults(head), "")


def described(chosen: Sequence[ListedSetting], width: int) -> str:
    """Plain text with one paragraph per setting."""
    paragraphs, before = [], None
    for setting in chosen:
        section = setting.name.rpartition(".")[0]
        gap = [""] if before is not None and section != before else []
        before = section
        head, accepted = f"{setting.name} = {setting.default}", f"({setting.accepted})"
        fits = len(head) + 2 + len(accepted) <= width
        first = [f"{head}  {accepted}"] if fits else [head, *_indented(accepted, width)]
        paragraphs += [*gap, *first, *_indented(setting.meaning, width)]
    return "\n".join(paragraphs)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _sections() -> list[str]:
    return [field.name for field in dataclasses.fields(TrialConfig)]


def _settings_of(config: Any, prefix: str) -> list[ListedSetting]:
    found, kinds, meanings = [], get_type_hints(type(config)), meanings_of(type(config))
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += _settings_of(value, f"{name}.")
        else:
            accepted = ", ".join(names()) if name == HEAD else _accepted(kinds[field.name])
            found.append(ListedSetting(name=name, default=_written(value), accepted=accepted,
                                 meaning=meanings.get(field.name, "")))  # fmt: skip
    return found


def meanings_of(kind: type) -> dict[str, str]:
    """Entries of the `Attributes` sections in the docstrings of a class and its bases, each on one line."""
    found: dict[str, list[str]] = {}
    for part in reversed(kind.__mro__):
        found |= _entries(part)
    return {name: _WORDS.sub(lambda word: word[0].replace("None", "null").lower(), " ".join(lines))
            for name, lines in found.items()}  # fmt: skip


def _entries(kind: type) -> dict[str, list[str]]:
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found: dict[str, list[str]] = {}
    name = ""
    for line in textwrap.dedent(section.partition("\n\n")[0]).splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
            found[name] = []
        found[name].append(line.strip())
    return found


def _written(value: Any) -> str:
    """A value in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _accepted(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_accepted(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    return KINDS[kind]
