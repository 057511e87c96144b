"""Grids: many trials by one description, expanded and checked before anything starts."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.config import TrialConfig
from experiments.grid_file import Located, grid_text, located, mapping, parse_yaml, refuse_unknown
from experiments.grid_sections import axes, cases, conditions, paired_axes, refuse_clashes, seeds
from experiments.grid_settings import Condition, Settings, Template, typed_settings, typed_value
from refavs.config import digest, flat
from refavs.errors import ConfigError

_UNKNOWN = object()
# What a trial runs on, and the place of a file whose digest counts instead.
NOT_IN_KEY = ("resources.", "train.init")
SECTIONS = ("description", "base", "resources", "grid", "zip", "cases", "when", "seeds")
MAX_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a grid: a name without the seed, and every setting resolved.

    Attributes:
        digests: of the files that the trial starts from, by what they are to it.
        weights_dir: where these files lie, which makes no other trial.
    """

    name: str
    config: TrialConfig
    digests: Mapping[str, str] = field(default_factory=dict)
    weights_dir: Path | None = None

    @property
    def title(self) -> str:
        """The name with the seed."""
        return f"{self.name}, seed {self.config.seed}"

    def key(self, fingerprint: str, defaults: Mapping[str, Any] | None = None) -> str:
        """What makes this trial the same as another: its settings, the features it reads and the files it starts from.

        Only settings that differ from `defaults` count, so that a setting which is new in the code, and which a trial
        leaves at its default, makes no new trial.

        Args:
            defaults: every setting's default when the sweep began; those of the code where one is missing.
        """
        known = flat(TrialConfig()) | dict(defaults or {})
        settings = {
            name: value for name, value in flat(self.config).items()
            if value != known.get(name, _UNKNOWN) and not name.startswith(NOT_IN_KEY)
        }
        return digest({"settings": settings, "store": fingerprint, **({"files": self.digests} if self.digests else {})})


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A named set of distinct trials, in the order of the file."""

    name: str
    description: str
    trials: tuple[Trial, ...]


def read_grid(grid: str, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Reads a grid file, or a shipped grid by its name, and expands it into trials.

    Args:
        grid: a path that ends in .yaml or .yml, or the name of a shipped grid.
        overrides: dotted settings that replace those of `base`, as `--set` gives them.

    Raises:
        ConfigError: an unknown grid, section or setting; a value of another type; a setting that two sections claim.
    """
    name, text, where = grid_text(grid)
    return expand(name, parse_yaml(text, where), where, overrides or {})


def expand(name: str, content: Any, where: str, overrides: Mapping[str, Any]) -> Grid:
    """The trials of a parsed grid file: cases x paired axes x Cartesian product of the axes x seeds.

    Args:
        content: as `parse_yaml` gives it, or plain values.

    Raises:
        ConfigError: as `read_grid`.
    """
    content = content if isinstance(content, Located) else located(content, where)
    refuse_unknown(content, SECTIONS, "section")
    parts = {
        section: part if section == "cases" else part.labelled(section) for section, part in mapping(content).items()
    }

    def section(name: str) -> Located:
        return parts.get(name, Located(None, f"{where}, {name}"))

    base = _merged(typed_settings(section("base")), typed_settings(section("resources"), "resources."))
    in_cases, whens = cases(section("cases")), conditions(section("when"))
    paired, crossed = paired_axes(section("zip")), axes(section("grid"))
    sources = [
        ("an axis of grid", _first(crossed)), ("an axis of zip", _first(paired)),
        ("set by a case", _either(in_cases.values())), ("set by when", _either(when.changes for when in whens)),
    ]  # fmt: skip
    refuse_clashes(sources, base, overrides, where)
    template = Template(base=base | typed_settings(located(dict(overrides), "--set")), conditions=whens)
    numbers = seeds(section("seeds")) if "seeds" in parts else [0]
    num_pairs = len(next(iter(paired.values()), [0]))
    if math.prod((len(in_cases), num_pairs, len(numbers), *map(len, crossed.values()))) > MAX_TRIALS:
        raise ConfigError(f"{where}: more than {MAX_TRIALS:,} trials; list fewer values")
    trials: list[Trial] = []
    held: list[Condition] = []
    for label, own in _points(in_cases, paired, crossed):
        for seed in numbers:
            held += template.holding(own, seed)
            config = template.config(own, seed)
            if config is not None:
                trials.append(Trial(name=label or name, config=config))
    _refuse_idle([when for when in whens if not any(when is one for one in held)], overrides)
    if not trials:
        raise ConfigError(f"{where}: its conditions skip every trial; take one of them out")
    refuse_twins(where, trials)
    return Grid(name=name, description=str(section("description").plain or ""), trials=tuple(trials))


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Settings written as `name=value`, with the value read as YAML.

    Raises:
        ConfigError: no `=`, or a name given twice.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {pair!r} has no name=value; write for example --set train.epochs=3")
        if name in overrides:
            raise ConfigError(f"--set gives {name!r} twice; give it once")
        overrides[name] = parse_yaml(value, f"--set {pair!r}", lines=False).plain
    return overrides


def refuse_twins(where: str, trials: Sequence[Trial]) -> None:
    """Refuses trials that are one and the same.

    Raises:
        ConfigError: two trials of one name, or of the same settings.
    """
    titles: set[str] = set()
    by_key: dict[tuple[str, str | None], str] = {}
    for trial in trials:
        init = None if trial.digests else trial.config.train.init  # a place, until the file has a digest
        twin = by_key.setdefault((trial.key(""), init), trial.title)
        if trial.title in titles:
            raise ConfigError(f"{where}: two trials are named {trial.title!r}; rename a case or drop a repeated value")
        if twin != trial.title:
            raise ConfigError(f"{where}: {twin!r} and {trial.title!r} have the same settings; keep one of them")
        titles.add(trial.title)


def _merged(base: Settings, of_resources: Settings) -> dict[str, Located]:
    for name, value in of_resources.items():
        if name in base:
            raise ConfigError(f"{value.place}: {name} is also set at {base[name].place}; keep one of them")
    return {**base, **of_resources}


def _points(
    in_cases: Mapping[str, Settings], paired: Mapping[str, list[Located]], crossed: Mapping[str, list[Located]]
) -> Iterator[tuple[str, dict[str, Located]]]:
    """Name and own settings of each trial, without its seed."""
    pairs = list(zip(*paired.values(), strict=True)) or [()]
    names = [*paired, *crossed]
    last = [name.rpartition(".")[2] for name in names]
    shown = [short if last.count(short) == 1 else name for short, name in zip(last, names, strict=True)]
    for case, settings in in_cases.items():
        for pair, *values in itertools.product(pairs, *crossed.values()):
            point = [*pair, *values]
            parts = [case, *(f"{axis} {value.plain}" for axis, value in zip(shown, point, strict=True))]
            own = {name: typed_value(name, value) for name, value in zip(names, point, strict=True)}
            yield ", ".join(part for part in parts if part), {**settings, **own}


def _first(lists: Mapping[str, list[Located]]) -> dict[str, Located]:
    return {name: values[0] for name, values in lists.items()}


def _either(several: Iterable[Settings]) -> dict[str, Located]:
    return {name: value for settings in several for name, value in settings.items()}


def _refuse_idle(idle: Iterable[Condition], overrides: Mapping[str, Any]) -> None:
    """A condition that never holds is a mistake, unless --set made it so."""
    for when in idle:
        if not overrides.keys() & when.wanted.keys():
            wanted = " and ".join(f"{name} {' or '.join(map(str, vals))}" for name, vals in when.wanted.items())
            raise ConfigError(f"{when.place}: no trial has {wanted}; name values that the grid gives, or take it out")
