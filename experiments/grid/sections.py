"""Parses and checks the sections of a grid file (axes, cases, conditions, seeds), and that no two conflict."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.grid.config import MOST_SEED
from experiments.grid.file import Located, mapping, refuse_unknown, settings
from experiments.grid.settings import Condition, Schema, Settings
from refavs.errors import ConfigError


def axes(part: Located, schema: Schema) -> dict[str, list[Located]]:
    """The values of each axis of `grid` or `zip`.

    Raises:
        ConfigError: a setting is unknown, its value is not a list, or an entry has another type.
    """
    found: dict[str, list[Located]] = {}
    for name, values in settings(part).items():
        if not isinstance(values.value, list) or not values.value:
            schema.refuse_unknown(name, values.place)
            raise ConfigError(f"{values.place}: {name} is {values.plain!r}; accepted: a list of values, as [0.5, 1.0]")
        for value in values.value:
            schema.typed(name, value)
        found[name] = values.value
    return found


def paired_axes(part: Located, schema: Schema) -> dict[str, list[Located]]:
    """The axes of `zip`: the first values of all axes form one trial, the second values the next, and so on.

    Raises:
        ConfigError: as `axes`; or there is only one axis, or lengths differ.
    """
    found = axes(part, schema)
    lengths = {name: len(values) for name, values in found.items()}
    if len(found) == 1:
        raise ConfigError(f"{part.place}: {next(iter(found))} has no partner; name two or more, or write it under grid")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        places = {name: values.place for name, values in settings(part).items()}
        odd = next(name for name, length in lengths.items() if length != next(iter(lengths.values())))
        raise ConfigError(f"{places[odd]}: {told} values; accepted: lists of equal length")
    return found


def conditions(part: Located, schema: Schema) -> tuple[Condition, ...]:
    """The entries of `when`.

    Raises:
        ConfigError: an entry is not a condition, or no trial can have its setting or value.
    """
    if part.value is None:
        return ()
    if not isinstance(part.value, list):
        raise ConfigError(
            f"{part.place}: is {part.plain!r}; accepted: a list of conditions, as "
            "- {if: {model.num_layers: 4}, set: {train.batch_size: 4}}"
        )
    return tuple(_condition(entry, schema) for entry in part.value)


def _condition(entry: Located, schema: Schema) -> Condition:
    parts = mapping(entry, "a condition, as {if: {model.beta: 0}, skip: true}")
    refuse_unknown(entry, ("if", "set", "skip"), "part of a condition")
    if "if" not in parts or ("set" in parts) == ("skip" in parts):
        raise ConfigError(
            f"{entry.place}: has {', '.join(parts) or 'nothing'}; accepted: if with set, or if with skip: true"
        )
    wanted = {name: _accepted(name, value, schema) for name, value in settings(parts["if"]).items()}
    changes = schema.settings(parts["set"]) if "set" in parts else {}
    if not wanted or ("set" in parts and not changes):
        raise ConfigError(f"{entry.place}: if and set name no setting; write for example if: {{model.num_layers: 4}}")
    if "skip" in parts and parts["skip"].value is not True:
        raise ConfigError(f"{parts['skip'].place}: skip is {parts['skip'].plain!r}; accepted: true, or leave it out")
    if "seed" in wanted and changes:
        raise ConfigError(
            f"{entry.place}: a condition on seed sets other settings, but seeds of a trial may differ in nothing else; "
            "accepted: if: {seed: ...} with skip: true"
        )
    return Condition(place=entry.place, wanted=wanted, changes=changes, skip="skip" in parts)


def _accepted(name: str, value: Located, schema: Schema) -> tuple[Any, ...]:
    """The accepted values; a list means any of its entries."""
    several = value.value if isinstance(value.value, list) else [value]
    return tuple(schema.typed(name, one).value for one in several)


def cases(part: Located, schema: Schema) -> dict[str, dict[str, Located]]:
    """The settings of each named case; a single unnamed case if the section is absent.

    Raises:
        ConfigError: a setting is unknown, or a value has another type.
    """
    named = mapping(part)
    return {name: schema.settings(case.labelled(f"case {name!r}")) for name, case in named.items()} or {"": {}}


def seeds(part: Located) -> list[int]:
    """The seeds of every trial.

    Raises:
        ConfigError: it is not a list of distinct whole numbers.
    """
    value = part.plain
    good = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not good or len(set(value)) < len(value):
        raise ConfigError(f"{part.place}: seeds is {value!r}; accepted: a list of distinct whole numbers, as [0, 1, 2]")
    if max(value) > MOST_SEED:
        raise ConfigError(f"{part.place}: a seed is {max(value)}; accepted: up to {MOST_SEED}, torch's limit")
    return value


def refuse_clashes(
    sources: Sequence[tuple[str, Settings]], base: Settings, overrides: Mapping[str, Any], where: str
) -> None:
    """Checks that only one place besides base sets each setting, so that no value is silently overridden.

    Args:
        sources: settings by the description of their source, e.g. `an axis of grid`.

    Raises:
        ConfigError: two sources set one setting, --set names a varied setting, or `seed` is set directly.
    """
    claims: dict[str, str] = {}
    given = dict.fromkeys(overrides, Located(None, "--set"))
    for claimed in (base, given, *(claimed for _, claimed in sources)):
        if "seed" in claimed:
            place = claimed["seed"].place
            raise ConfigError(f"{place}: 'seed' is not set directly; list the seeds under seeds, as seeds: [0, 1]")
    for source, claimed in sources:
        for name, value in claimed.items():
            if name in claims:
                raise ConfigError(f"{value.place}: {name} is {claims[name]} and {source}; keep one of them")
        claims |= dict.fromkeys(claimed, source)
    for name in overrides:
        if name in claims:
            raise ConfigError(f"--set {name}: {where} varies it; change the grid file, or set another name")
