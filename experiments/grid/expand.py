"""Grids: one description of many trials, expanded and checked before anything starts."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.grid.file import Located, grid_text, located, mapping, parse_yaml, refuse_unknown
from experiments.grid.search_points import SearchGrid, search_grid
from experiments.grid.search_space import search_plan
from experiments.grid.sections import axes, cases, conditions, paired_axes, refuse_clashes, seeds
from experiments.grid.settings import Condition, Schema, Settings, TrialTemplate
from experiments.grid.trial import MAX_TRIALS, Trial, refuse_twins, short_names
from refavs.errors import ConfigError

SECTIONS = ("description", "base", "resources", "grid", "zip", "cases", "when", "seeds", "search")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A named set of distinct trials, in the order of the file.

    Attributes:
        trials: all trials; empty for a search, which creates them while it runs.
        search: the search, if the grid is one.
    """

    name: str
    description: str
    trials: tuple[Trial, ...]
    search: SearchGrid | None = None

    @property
    def kinds(self) -> tuple[Trial, ...]:
        """Representatives of all trials that may run, for checks before anything starts."""
        return self.search.examples if self.search else self.trials

    def with_kinds(self, change: Callable[[Trial], Trial]) -> "Grid":
        """The grid with `change` applied to its trials, or to those that a search will create."""
        if self.search is None:
            return dataclasses.replace(self, trials=tuple(map(change, self.trials)))
        search = dataclasses.replace(self.search, examples=tuple(map(change, self.search.examples)))
        return dataclasses.replace(self, search=search)


def read_grid(grid: str, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Reads a grid file, or a shipped grid by name, and expands it into trials.

    Args:
        grid: a path that ends in .yaml or .yml, or the name of a shipped grid.
        overrides: dotted settings from `--set`, which replace those of `base`.

    Raises:
        ConfigError: a grid, section or setting is unknown, a value has another type, or two sections set one setting.
    """
    name, text, where = grid_text(grid)
    return expand(name, parse_yaml(text, where), where, overrides or {})


def expand(name: str, content: Any, where: str, overrides: Mapping[str, Any]) -> Grid:
    """Expands a parsed grid file: cases x paired axes x Cartesian product of the axes x seeds.

    Args:
        content: the result of `parse_yaml`, or plain values.

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

    schema = Schema.of(Located(parts, where), section("base"), overrides)
    base = _merged(schema.settings(section("base")), schema.settings(section("resources"), "resources."))
    in_cases, whens = cases(section("cases"), schema), conditions(section("when"), schema)
    paired, crossed = paired_axes(section("zip"), schema), axes(section("grid"), schema)
    numbers = seeds(section("seeds")) if "seeds" in parts else [0]
    plan = search_plan(parts["search"], len(numbers), schema) if "search" in parts else None
    if plan and (other := next((kind for kind in ("grid", "zip", "cases") if kind in parts), None)):
        raise ConfigError(f"{parts[other].place}: a search has no {other}; write its values as a choice in its ranges")
    sources = [
        ("an axis of grid", _first(crossed)), ("an axis of zip", _first(paired)),
        ("set by a case", _either(in_cases.values())), ("set by when", _either(when.changes for when in whens)),
        ("searched", {name: Located(None, part.place) for name, part in plan.ranges.items()} if plan else {}),
    ]  # fmt: skip
    refuse_clashes(sources, base, overrides, where)
    template = TrialTemplate(base=base | schema.settings(located(dict(overrides), "--set")), conditions=whens)
    description = str(section("description").plain or "")
    if plan:
        search = search_grid(plan, template, numbers, parts["search"], schema)
        return Grid(name=name, description=description, trials=(), search=search)
    num_pairs = len(next(iter(paired.values()), [0]))
    if math.prod((len(in_cases), num_pairs, len(numbers), *map(len, crossed.values()))) > MAX_TRIALS:
        raise ConfigError(f"{where}: more than {MAX_TRIALS:,} trials; list fewer values")
    trials: list[Trial] = []
    held: list[Condition] = []
    for label, own in _points(in_cases, paired, crossed, schema):
        for seed in numbers:
            held += template.holding(own, seed)
            config = template.config(own, seed)
            if config is not None:
                trials.append(Trial(name=label or name, config=config))
    _refuse_idle([when for when in whens if not any(when is one for one in held)], overrides)
    if not trials:
        raise ConfigError(f"{where}: its conditions skip every trial; remove one of them")
    refuse_twins(where, trials)
    return Grid(name=name, description=description, trials=tuple(trials))


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Parses settings written as `name=value`; the value is YAML.

    Raises:
        ConfigError: there is no `=`, or a name is repeated.
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


def _merged(base: Settings, of_resources: Settings) -> dict[str, Located]:
    for name, value in of_resources.items():
        if name in base:
            raise ConfigError(f"{value.place}: {name} is also set at {base[name].place}; keep one of them")
    return {**base, **of_resources}


def _points(
    in_cases: Mapping[str, Settings], paired: Mapping[str, list[Located]], crossed: Mapping[str, list[Located]],
    schema: Schema,
) -> Iterator[tuple[str, dict[str, Located]]]:
    """Yields name and own settings of each trial, without the seed."""
    pairs = list(zip(*paired.values(), strict=True)) or [()]
    names = [*paired, *crossed]
    shown = short_names(names)
    for case, settings in in_cases.items():
        for pair, values in itertools.product(pairs, itertools.product(*crossed.values())):
            point = [*pair, *values]
            parts = [case, *(f"{axis} {value.plain}" for axis, value in zip(shown, point, strict=True))]
            own = {name: schema.typed(name, value) for name, value in zip(names, point, strict=True)}
            yield ", ".join(part for part in parts if part), {**settings, **own}


def _first(lists: Mapping[str, list[Located]]) -> dict[str, Located]:
    return {name: values[0] for name, values in lists.items()}


def _either(several: Iterable[Settings]) -> dict[str, Located]:
    return {name: value for settings in several for name, value in settings.items()}


def _refuse_idle(idle: Iterable[Condition], overrides: Mapping[str, Any]) -> None:
    """Checks that every condition holds for some trial, unless --set prevents it."""
    for when in idle:
        if not overrides.keys() & when.wanted.keys():
            wanted = " and ".join(f"{name} {' or '.join(map(str, vals))}" for name, vals in when.wanted.items())
            raise ConfigError(f"{when.place}: no trial has {wanted}; name values that occur in the grid, or remove it")
