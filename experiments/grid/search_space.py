"""The section `search` of a grid file: ranges of settings, how points are chosen, and early stopping."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.grid.file import Located, mapping, refuse_unknown
from experiments.grid.settings import Schema
from refavs.choices import SCORE, VALIDATION
from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.metrics import metrics

KINDS = ("uniform", "loguniform", "int", "choice")
METHODS = ("tpe", "random")
PARTS = ("ranges", "budget", "method", "metric", "seed", "asha")
DIGITS = 5
NOT_SEARCHED = ("seed", "resources.")  # nor initial weights, which are checked once before anything starts


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values that a search may give a setting.

    Attributes:
        kind: one of `KINDS`; `int` includes both ends.
        ends: lowest and highest value; for a choice, all values.
        place: place of the setting in the grid file.
        places: places of the ends in the grid file.
    """

    kind: str
    ends: tuple[Any, ...]
    place: str = field(default="", compare=False)
    places: tuple[str, ...] = field(default=(), compare=False)

    def draw(self, rng: np.random.Generator) -> Any:
        """Draws a random value."""
        if self.kind == "choice":
            return self.ends[int(rng.integers(len(self.ends)))]
        low, high = self.ends
        if self.kind == "int":
            return int(rng.integers(low, high, endpoint=True))
        return self.rounded(math.exp(rng.uniform(math.log(low), math.log(high))) if self.kind == "loguniform"
                            else rng.uniform(low, high))  # fmt: skip

    def rounded(self, value: float) -> float:
        """Rounds a value to the few digits that are stored and compared, within the range."""
        return min(max(float(f"{value:.{DIGITS}g}"), self.ends[0]), self.ends[1])

    def located(self, value: Any) -> Located:
        """An end with its place."""
        return Located(value, self.places[self.ends.index(value)])

    def __str__(self) -> str:
        return f"{self.kind} [{', '.join(map(str, self.ends))}]"


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Early stopping by asynchronous successive halving: only the best continue after `min_epochs` times 1, r, r^2, ...

    Attributes:
        reduction: r; of the trials that reach a rung, one in r continues.
    """

    min_epochs: int = 1
    reduction: int = 3

    def rung(self, epoch: int) -> bool:
        """Whether trials are compared after this epoch."""
        rung = self.min_epochs
        while rung < epoch:
            rung *= self.reduction
        return rung == epoch


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The plan of a search.

    Attributes:
        ranges: range of each setting, by dotted name.
        budget: number of points to try; each seed of a point is a trial.
        metric: validation metric that ranks points, e.g. `val/J` or `val/acoustic/J`; the mean over several seeds.
        seed: seed of the choice of points, independent of the trials' seeds.
    """

    ranges: Mapping[str, Range]
    budget: int
    method: str = "tpe"
    metric: str = SCORE
    seed: int = 0
    asha: Asha | None = None

    @property
    def maximize(self) -> bool:
        """Whether a higher value of the metric is better."""
        return metrics()[self.metric.rpartition("/")[2]].better == "higher"

    def draw(self, index: int, attempt: int) -> dict[str, Any]:
        """Draws the random point with this index, independently of earlier results."""
        rng = np.random.default_rng([self.seed, index, attempt])
        return {name: self.ranges[name].draw(rng) for name in sorted(self.ranges)}

    def extremes(self) -> list[dict[str, Any]]:
        """Points with each end and each choice once and all others at their first value; the first has all firsts."""
        first = {name: part.ends[0] for name, part in self.ranges.items()}
        return [first, *(first | {name: end} for name, part in self.ranges.items() for end in part.ends[1:])]


def search_plan(part: Located, num_seeds: int, schema: Schema) -> SearchPlan:
    """Parses and checks the section; whether the ends are usable is checked when trials are created from them.

    Raises:
        ConfigError: a part is missing, unknown or malformed, or a setting cannot be searched.
    """
    parts = mapping(part, "a mapping with ranges and budget")
    refuse_unknown(part, PARTS, "part of search")
    for name in ("ranges", "budget"):
        if name not in parts:
            raise ConfigError(f"{part.place}: has no {name}; write for example budget: 20 and ranges: "
                              "{train.learning_rate: {loguniform: [1e-5, 1e-3]}}")  # fmt: skip
    ranges = dict(_ranges(parts["ranges"], "", schema))
    if not ranges:
        raise ConfigError(f"{parts['ranges'].place}: ranges names no setting; write for example model.beta: "
                          "{uniform: [0, 2]}")  # fmt: skip
    asha = _asha(parts["asha"]) if "asha" in parts else None
    if asha and num_seeds > 1:
        raise ConfigError(
            f"{parts['asha'].place}: asha compares single trials, and a point has {num_seeds} seeds; keep one, and "
            "try the best points with more of them afterwards, or leave asha out"
        )
    return SearchPlan(
        ranges=ranges, asha=asha,
        budget=_number(parts["budget"], "budget", 1),
        seed=_number(parts["seed"], "seed", 0) if "seed" in parts else 0,
        method=_one_of(parts["method"], "method", METHODS) if "method" in parts else "tpe",
        metric=_metric(parts["metric"]) if "metric" in parts else SCORE,
    )  # fmt: skip


def _ranges(part: Located, prefix: str, schema: Schema) -> list[tuple[str, Range]]:
    """Ranges of nested or dotted settings, by dotted name."""
    found: dict[str, tuple[Range, str]] = {}
    for name, inner in mapping(part).items():
        dotted = f"{prefix}{name}"
        is_range = dotted in schema or not inner.is_mapping or any(kind in inner.value for kind in KINDS)
        below = [(dotted, _range(dotted, inner, schema))] if is_range else _ranges(inner, f"{dotted}.", schema)
        for key, value in below:
            if key in found:
                raise ConfigError(f"{inner.place}: {key} is also set at {found[key][1]}; keep one of them")
            found[key] = value, inner.place
    return [(name, value) for name, (value, _) in found.items()]


def _range(name: str, part: Located, schema: Schema) -> Range:
    schema.refuse_unknown(name, part.place)
    if name.startswith(NOT_SEARCHED) or schema.starts(name):
        raise ConfigError(f"{part.place}: {name} cannot be searched; set it in base, or list seeds under seeds")
    content = mapping(part, "one of uniform, loguniform, int and choice, e.g. {uniform: [0, 2]}")
    refuse_unknown(part, KINDS, f"kind of range for {name}")
    if len(content) != 1:
        raise ConfigError(f"{part.place}: {name} has {' and '.join(content) or 'no range'}; accepted: one of "
                          f"{', '.join(KINDS)}, as {{uniform: [0, 2]}}")  # fmt: skip
    ((kind, values),) = content.items()
    if kind == "choice":
        if not isinstance(values.value, list) or len(values.value) < 2:
            raise ConfigError(f"{values.place}: {name} is {values.plain!r}; accepted: a list of two values or more")
        ends = [schema.typed(name, value).value for value in values.value]
        for number, end in enumerate(ends):
            if end in ends[:number]:
                raise ConfigError(f"{values.value[number].place}: {name} lists {end!r} twice; keep one")
        places = tuple(value.place for value in values.value)
        return Range(kind=kind, ends=tuple(ends), place=part.place, places=places)
    places = tuple(end.place for end in values.value) if isinstance(values.value, list) else ()
    ends = [schema.typed(name, Located(end, place)).value
            for end, place in zip(_interval(name, kind, values), places, strict=True)]  # fmt: skip
    return Range(kind=kind, ends=tuple(ends), place=part.place, places=places)


def _interval(name: str, kind: str, values: Located) -> tuple[float, float]:
    plain, types = values.plain, (int,) if kind == "int" else (int, float)
    good = isinstance(plain, list) and len(plain) == 2 and all(type(end) in types for end in plain)
    good = good and plain[0] < plain[1]
    if not good or not math.isfinite(plain[1] - plain[0]) or (kind == "loguniform" and plain[0] <= 0):
        accepted = {"int": "two whole numbers, as [1, 6]", "loguniform": "two numbers above 0, as [1e-5, 1e-3]"}
        raise ConfigError(f"{values.place}: {name} is {kind} {plain!r}; accepted: the lowest and the highest value, "
                          f"{accepted.get(kind, 'two numbers, as [0, 2]')}")  # fmt: skip
    low, high = plain if kind == "int" else map(float, plain)
    return low, high


def _asha(part: Located) -> Asha:
    parts = mapping(part, "a mapping, as {min_epochs: 1, reduction: 3}")
    refuse_unknown(part, ("min_epochs", "reduction"), "part of asha")
    least = {"min_epochs": 1, "reduction": 2}
    return Asha(**{name: _number(value, f"asha.{name}", least[name]) for name, value in parts.items()})


def _number(part: Located, name: str, least: int) -> int:
    if type(part.value) is not int or part.value < least:
        raise ConfigError(f"{part.place}: {name} is {part.plain!r}; accepted: a whole number from {least}")
    return part.value


def _metric(part: Located) -> str:
    """Checks `val/METRIC` or `val/DIMENSION/METRIC`; whether the store has the dimension is checked later."""
    parts = str(part.plain).split("/")
    groups = [VALIDATION, f"{VALIDATION}/{parts[1]}"] if len(parts) == 3 and parts[1] else [VALIDATION]
    return _one_of(part, "metric", tuple(f"{group}/{name}" for group in groups for name in metrics()))


def _one_of(part: Located, name: str, known: tuple[str, ...]) -> str:
    if part.value not in known:
        raise ConfigError(f"{part.place}: {name} is {part.plain!r}; {nearest(str(part.plain), known)}")
    return part.value
