"""Settings of a grid file and how a trial's come together: of the right type, under conditions, each with its place."""

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
    """The settings that a grid may name: those of every head that it names."""

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
        """The settings for a grid file, whose section `base` names a head, or `--set` does, or some trials do."""
        named = [*_heads(content), *(Located(overrides[name], "--set") for name in overrides if name == HEAD)]
        fixed = HEAD in overrides or HEAD in settings(base)
        return cls(named if fixed else [Located(DEFAULT, ""), *named])

    def __contains__(self, name: str) -> bool:
        return name in self._with

    def typed(self, name: str, value: Located) -> Located:
        """One setting's value as its field takes it.

        Raises:
            ConfigError: an unknown setting, or a value of another type.
        """
        self.refuse_unknown(name, value.place)
        return _typed(self._with[name], name, value)

    def settings(self, part: Located, prefix: str = "") -> dict[str, Located]:
        """The settings of a section by their dotted names, each of the type that its field takes.

        Raises:
            ConfigError: an unknown setting, a value of another type, or a setting that is written twice.
        """
        return {name: self.typed(name, value) for name, value in settings(part, prefix).items()}

    def refuse_unknown(self, name: str, place: str) -> None:
        """Refuses a setting that no head of this grid has."""
        if name not in self:
            raise ConfigError(f"{place}: unknown setting {name!r}; {nearest(name, self._with)}")

    def starts(self, name: str) -> bool:
        """Whether a setting decides which weights a trial starts from."""
        return name == "train.init" or (name in self and name == f"model.{self._with[name].model.weights_setting}")


def _heads(part: Located, within: str = "") -> Iterator[Located]:
    """Every value that a grid gives `model.head`, alone or in a list."""
    if isinstance(part.value, dict):
        for name, inner in part.value.items():
            yield from _heads(inner, f"{within}.{name}")
    elif isinstance(part.value, list):
        for inner in part.value:
            yield from _heads(inner, within)
    elif f".{HEAD}" in within:  # or below it, as a range of a search
        yield part


def _typed(config: TrialConfig, name: str, value: Located) -> Located:
    try:
        return Located(typed(config, name, value.plain), value.place)
    except ConfigError as error:
        raise ConfigError(f"{value.place}: {error}") from error


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
        """Whether it holds for a trial with these settings, by their dotted names; its head may lack some of them."""
        return all(name in values and values[name] in accepted for name, accepted in self.wanted.items())


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
