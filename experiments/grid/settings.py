"""Settings of a grid file and how a trial's come together: of the right type, under conditions, each with its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.grid.config import TrialConfig
from experiments.grid.file import Located, settings
from refavs.config import flat, replace, typed
from refavs.errors import ConfigError, SettingError

Settings = Mapping[str, Located]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """An entry of `when`: what a trial must have so that it gets other settings, or is left out.

    Attributes:
        wanted: accepted values by setting; all settings must have one of theirs.
        changes: settings of the trials that it holds for.
        skip: leaves these trials out.
    """

    place: str
    wanted: Mapping[str, tuple[Any, ...]]
    changes: Settings
    skip: bool

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it holds for a trial with these settings, by their dotted names."""
        return all(values[name] in accepted for name, accepted in self.wanted.items())


@dataclass(frozen=True, kw_only=True)
class Template:
    """What all trials of a grid share: settings that they start from, and conditions."""

    base: Settings
    conditions: Sequence[Condition] = ()

    def holding(self, own: Settings, seed: int) -> list[Condition]:
        """The conditions that hold for a trial; they see what it has without any of them.

        Args:
            own: what this trial sets beside `base`.
        """
        values = flat(resolve(seed, self.base, own)) if self.conditions else {}
        return [condition for condition in self.conditions if condition.holds(values)]

    def config(self, own: Settings, seed: int) -> TrialConfig | None:
        """The settings of a trial; None where a condition leaves it out.

        Raises:
            ConfigError: values that do not agree, or two conditions that set one setting differently.
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
    """The defaults with the values of `layers` in their place, all at once; of one setting the last layer's counts.

    Raises:
        ConfigError: values that are out of range or do not agree, with the place of the one to change: it is in the
            last layer that has any of them, for the same value may be right in other trials.
    """
    values = {name: value for layer in layers for name, value in layer.items()}
    try:
        return replace(TrialConfig(), {name: value.value for name, value in values.items()} | {"seed": seed})
    except SettingError as error:
        for layer in reversed(layers):
            for name in error.settings:
                if name in layer:
                    raise ConfigError(f"{layer[name].place}: {error}") from error
        raise


def typed_settings(part: Located, prefix: str = "") -> dict[str, Located]:
    """The settings of a section by their dotted names, each of the type that its field takes.

    Raises:
        ConfigError: an unknown setting, a value of another type, or a setting that is written twice.
    """
    return {name: typed_value(name, value) for name, value in settings(part, prefix).items()}


def typed_value(name: str, value: Located) -> Located:
    """One setting's value as its field takes it.

    Raises:
        ConfigError: an unknown setting, or a value of another type.
    """
    try:
        return Located(typed(TrialConfig(), name, value.plain), value.place)
    except ConfigError as error:
        raise ConfigError(f"{value.place}: {error}") from error
