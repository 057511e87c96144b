"""Settings of a grid file: checks types, applies conditions, and combines them into a trial's settings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.grid.config import HEAD, TrialConfig, defaults, trial_config
from experiments.grid.file import Located, settings
from refavs.config import flat, leaves, nearest, typed
from refavs.errors import ConfigError, SettingError
from refavs.model.heads.registry import DEFAULT

Settings = Mapping[str, Located]


class Schema:
    """The settings that a grid may use: those of every head that it names."""

    def __init__(self, heads: Iterable[Located]) -> None:
        found: dict[str, TrialConfig] = {}
        for head in heads:
            try:
                found[str(head.plain)] = defaults(head.plain)
            except ConfigError as error:
                raise ConfigError(f"{head.place}: {error}") from error
        self._with = {name: config for config in found.values() for name in leaves(config)}

    @classmethod
    def of(cls, content: Located, base: Located, overrides: Mapping[str, Any]) -> "Schema":
        """The schema for a grid file; the heads are named in `base`, by `--set` or by some trials."""
        named = [*_heads(content), *(Located(overrides[name], "--set") for name in overrides if name == HEAD)]
        fixed = HEAD in overrides or HEAD in settings(base)
        return cls(named if fixed else [Located(DEFAULT, ""), *named])

    def __contains__(self, name: str) -> bool:
        return name in self._with

    def typed(self, name: str, value: Located) -> Located:
        """Converts the value of a setting to the type of its field.

        Raises:
            ConfigError: the setting is unknown, or the value has another type.
        """
        self.refuse_unknown(name, value.place)
        return _typed(self._with[name], name, value)

    def settings(self, part: Located, prefix: str = "") -> dict[str, Located]:
        """The settings of a section by dotted name, converted to the types of their fields.

        Raises:
            ConfigError: a setting is unknown or repeated, or a value has another type.
        """
        return {name: self.typed(name, value) for name, value in settings(part, prefix).items()}

    def refuse_unknown(self, name: str, place: str) -> None:
        """Checks that some head of this grid has the setting."""
        if name not in self:
            raise ConfigError(f"{place}: unknown setting {name!r}; {nearest(name, self._with)}")

    def starts(self, name: str) -> bool:
        """Whether a setting determines a trial's initial weights."""
        return name == "train.init" or (name in self and name == f"model.{self._with[name].model.weights_setting}")


def _heads(part: Located, within: str = "") -> Iterator[Located]:
    """Every value of `model.head` in a grid, alone or in a list."""
    if isinstance(part.value, dict):
        for name, inner in part.value.items():
            yield from _heads(inner, f"{within}.{name}")
    elif isinstance(part.value, list):
        for inner in part.value:
            yield from _heads(inner, within)
    elif f".{HEAD}" in within:  # or below it, in a range of a search
        yield part


def _typed(config: TrialConfig, name: str, value: Located) -> Located:
    try:
        return Located(typed(config, name, value.plain), value.place)
    except ConfigError as error:
        raise ConfigError(f"{value.place}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Condition:
    """An entry of `when`, which changes the settings of matching trials or skips them.

    Attributes:
        wanted: accepted values by setting; a trial matches if every setting has an accepted value.
        changes: settings for matching trials.
        skip: whether matching trials are left out.
    """

    place: str
    wanted: Mapping[str, tuple[Any, ...]]
    changes: Settings
    skip: bool

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it matches a trial with these dotted settings; the trial's head may lack some."""
        return all(name in values and values[name] in accepted for name, accepted in self.wanted.items())


@dataclass(frozen=True, kw_only=True)
class TrialTemplate:
    """The base settings and conditions that all trials of a grid share."""

    base: Settings
    conditions: Sequence[Condition] = ()

    def holding(self, own: Settings, seed: int) -> list[Condition]:
        """The conditions that match a trial, evaluated on its settings before any condition is applied.

        Args:
            own: the trial's own settings in addition to `base`.
        """
        values = flat(resolve(seed, self.base, own)) if self.conditions else {}
        return [condition for condition in self.conditions if condition.holds(values)]

    def config(self, own: Settings, seed: int) -> TrialConfig | None:
        """The settings of a trial; None if a condition skips it.

        Raises:
            ConfigError: values conflict, or two conditions set one setting differently.
        """
        holding = self.holding(own, seed)
        if any(condition.skip for condition in holding):
            return None
        changes: dict[str, Located] = {}
        for condition in holding:
            for name, value in condition.changes.items():
                before = changes.setdefault(name, value)
                if before.value != value.value:
                    raise ConfigError(
                        f"{value.place}: {name} becomes {value.value!r}, and {before.value!r} at {before.place}, in "
                        "one trial; make the conditions exclude each other"
                    )
        return resolve(seed, self.base, own, changes)


def resolve(seed: int, *layers: Settings) -> TrialConfig:
    """The defaults with the values of `layers` applied together; later layers override earlier ones.

    Raises:
        ConfigError: values are out of range or in conflict. The message names the place to change, in the last layer
            that sets one of them, because the others may be right for other trials.
    """
    values = {name: value for layer in layers for name, value in layer.items()}
    try:
        return trial_config({name: value.value for name, value in values.items()} | {"seed": seed})
    except SettingError as error:
        for layer in reversed(layers):
            for name in error.settings:
                if name in layer:
                    raise ConfigError(f"{layer[name].place}: {error}") from error
        raise
    except ConfigError as error:
        head = values[HEAD].plain if HEAD in values else DEFAULT
        for name, value in values.items():
            if name not in leaves(defaults(head)):
                near = nearest(name, leaves(defaults(head)))
                raise ConfigError(f"{value.place}: the head {head!r} has no setting {name!r}; {near}") from error
            _typed(defaults(head), name, value)
        raise
