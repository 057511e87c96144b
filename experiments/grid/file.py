"""Reads grid files: YAML in which every value has its line, and the grids that come with the package."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from experiments.grid.yaml_words import refuse_ambiguous
from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.files.plain_file import UnusableFileError, read_plain

MAX_VALUES = 100_000
MAX_CHARACTERS = 200_000  # in a file; parsing takes seconds
MAX_NUMBER_CHARACTERS = 100
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Located:
    """A value of a grid file, with the place of its key.

    Attributes:
        value: a plain scalar, or a list or mapping of located values.
        place: file and line, e.g. `my.yaml:7`; an entry of a mapping has the line of its key.
    """

    value: Any
    place: str

    @property
    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {name: inner.plain for name, inner in self.value.items()}
        return [inner.plain for inner in self.value] if isinstance(self.value, list) else self.value

    @property
    def is_mapping(self) -> bool:
        """Whether this is a mapping of located values."""
        return isinstance(self.value, dict)

    def labelled(self, label: str) -> "Located":
        """A copy with `label` added to the place of everything in it."""
        value = self.value
        if isinstance(value, dict):
            value = {name: inner.labelled(label) for name, inner in value.items()}
        elif isinstance(value, list):
            value = [inner.labelled(label) for inner in value]
        return Located(value, f"{self.place}, {label}")


def located(value: Any, place: str) -> Located:
    """A plain value with `place` for all of its parts."""
    if isinstance(value, dict):
        return Located({str(name): located(inner, place) for name, inner in value.items()}, place)
    return Located([located(inner, place) for inner in value] if isinstance(value, list) else value, place)


class _Loader(yaml.SafeLoader):
    """Loads YAML with plain values only; `1e-3` is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Reader:
    """Converts the nodes of one text to located values."""

    def __init__(self, loader: _Loader, where: str, lines: bool) -> None:
        self.loader, self.where, self.lines = loader, where, lines
        self.open: list[yaml.Node] = []
        self.merging: list[yaml.Node] = []
        self.flat: dict[int, list[tuple[yaml.Node, yaml.Node]]] = {}
        self.merged: set[int] = set()
        self.num_values = 0

    def place(self, node: yaml.Node) -> str:
        return f"{self.where}:{node.start_mark.line + 1}" if self.lines else self.where

    def read(self, node: yaml.Node, place: str | None = None) -> Located:
        place = place or self.place(node)
        self.num_values += 1
        if any(node is outer for outer in self.open):
            raise ConfigError(f"{place}: an alias stands for a value that contains it; write it out")
        self.refuse_many(place)
        if isinstance(node, yaml.ScalarNode):
            refuse_ambiguous(node, self.loader, place)
            if node.tag != "tag:yaml.org,2002:str" and len(node.value) > MAX_NUMBER_CHARACTERS:
                raise ConfigError(f"{place}: a value of {len(node.value):,} characters that is not text; write a "
                                  "number with fewer digits, or put text in quotes")
            return Located(self.loader.construct_object(node), place)
        self.open.append(node)
        if isinstance(node, yaml.MappingNode):
            value: Any = self.mapping(node)
        elif node.tag == "tag:yaml.org,2002:seq":
            value = [self.read(item) for item in node.value]
        else:
            raise ConfigError(f"{place}: the tag {node.tag} is not accepted; write plain values")
        self.open.pop()
        return Located(value, place)

    def mapping(self, node: yaml.MappingNode) -> dict[str, Located]:
        """Reads a mapping. Keys are taken as text, so that a case may be named `no`."""
        if node.tag != "tag:yaml.org,2002:map":
            raise ConfigError(f"{self.place(node)}: the tag {node.tag} is not accepted; write plain values")
        if id(node) not in self.merged:
            seen: dict[str, yaml.Node] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise ConfigError(f"{self.place(key)}: a key is a list or a mapping; accepted: a name")
                if key.value in seen:
                    first = f" (first at {self.place(seen[key.value])})" if self.lines else ""
                    raise ConfigError(f"{self.place(key)}: key {key.value!r} is written twice{first}; keep one")
                seen[key.value] = key
            node.value = self.flattened(node)
            self.merged.add(id(node))
        return {str(key.value): self.read(value, self.place(key)) for key, value in node.value}


    def flattened(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """The entries of a mapping and of those it merges; its own entries come first, then earlier merges."""
        if id(node) in self.flat:
            return self.flat[id(node)]
        if any(node is outer for outer in self.merging):
            raise ConfigError(f"{self.place(node)}: a mapping is merged into itself; write it out")
        self.merging.append(node)
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for merged in [value for key, value in node.value if key.tag == _MERGE]:
            for source in merged.value if isinstance(merged, yaml.SequenceNode) else [merged]:
                if not isinstance(source, yaml.MappingNode):
                    raise ConfigError(f"{self.place(source)}: << merges no mapping; accepted: << with an alias of one")
                for key, value in self.flattened(source):
                    self.num_values += 1
                    self.refuse_many(self.place(node))
                    found.setdefault(str(key.value), (key, value))
        self.merging.pop()
        found |= {str(key.value): (key, value) for key, value in node.value if key.tag != _MERGE}
        self.flat[id(node)] = [*found.values()]
        return self.flat[id(node)]

    def refuse_many(self, place: str) -> None:
        if self.num_values > MAX_VALUES:
            raise ConfigError(f"{place}: more than {MAX_VALUES:,} values; write fewer aliases")


def parse_yaml(text: str, where: str, lines: bool = True) -> Located:
    """Parses `text` into a value in which every part has its line.

    Args:
        where: name of the file for errors.
        lines: whether errors include line numbers, which mean nothing for a single-line text.

    Raises:
        ConfigError: the text is not YAML, a mapping repeats a key, or there is a tag, which could create an object.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where}: {len(text):,} characters; accepted: up to {MAX_CHARACTERS:,}. Split the grid")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Located(None, where) if node is None else _Reader(loader, where, lines).read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark is not None and lines else where
        told = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{place}: not valid YAML: {told}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML raises various errors for a value that does not match its tag.
        told = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {told}") from error


def shipped_grids() -> dict[str, str]:
    """The text of every grid that comes with the package, by name."""
    folder = resources.files("experiments") / "grids"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {file.name.removesuffix(".yaml"): file.read_text("utf-8") for file in files}


def grid_text(grid: str) -> tuple[str, str, str]:
    """Name, text and place of a grid file, or of a shipped grid by name.

    Raises:
        ConfigError: the grid does not exist, or the file is not text.
    """
    path = Path(grid)
    if path.suffix not in (".yaml", ".yml"):
        shipped = shipped_grids()
        if grid not in shipped:
            near = nearest(grid, shipped)
            raise ConfigError(f"no grid named {grid!r}; {near} (shipped: {', '.join(shipped)}), or give a .yaml file")
        return grid, shipped[grid], f"shipped grid {grid}"
    try:
        return path.stem, read_plain(path, 4 * MAX_CHARACTERS).decode(), grid
    except FileNotFoundError:
        raise ConfigError(
            f"no grid file {grid}; give an existing .yaml file or one of {', '.join(shipped_grids())}"
        ) from None
    except UnusableFileError as error:
        raise ConfigError(f"the grid {grid} cannot be read ({error}); give a .yaml file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{grid} is not UTF-8 text ({error}); save it as UTF-8") from error


def mapping(part: Located, accepted: str = "a mapping, `name: value` lines") -> dict[str, Located]:
    """The entries of a mapping; empty for an empty section.

    Raises:
        ConfigError: it is not a mapping.
    """
    if part.value is None:
        return {}
    if not part.is_mapping:
        kind = type(part.value).__name__
        raise ConfigError(f"{part.place}: is {part.plain!r} ({kind}); accepted: {accepted}")
    return part.value


def settings(part: Located, prefix: str = "") -> dict[str, Located]:
    """Flattens nested or dotted settings to dotted ones.

    Raises:
        ConfigError: a setting is given twice, once nested and once dotted.
    """
    found: dict[str, Located] = {}
    for name, inner in mapping(part).items():
        below = settings(inner, f"{prefix}{name}.") if inner.is_mapping else {f"{prefix}{name}": inner}
        if twice := next((key for key in below if key in found), None):
            raise ConfigError(f"{below[twice].place}: {twice} is also set at {found[twice].place}; keep one of them")
        found |= below
    return found


def refuse_unknown(part: Located, known: Iterable[str], what: str) -> None:
    """Checks that all keys of a mapping are known.

    Raises:
        ConfigError: a key is unknown; the message suggests the closest known one.
    """
    known = tuple(known)
    for name, inner in mapping(part).items():
        if name not in known:
            raise ConfigError(f"{inner.place}: unknown {what} {name!r}; {nearest(name, known)}")
