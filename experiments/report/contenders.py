"""The rows that a report compares: runs that differ only in their seed, their uncertainty, and their differences."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.grid.trial import NOT_IN_KEY
from experiments.report.runs import head_of, natural
from experiments.report.scores import RunScores
from refavs.config import digest, nearest
from refavs.data.splits import Splits
from refavs.errors import ConfigError, StatisticsError
from refavs.metrics import Difference, Interval, bootstrap_interval, paired_difference, scores_of, seed_interval
from refavs.metrics.intervals import ONE_SEED, SeedScores

REFERENCE = "full"


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """The runs of one trial, which differ only in their seed.

    Attributes:
        label: the trial's name, with settings added if another line has the same name.
        config: their settings, without the seed and settings that are not part of a trial's key.
        runs: the runs, ordered by seed.
        mark: how the line's store or sizes differ from the reference; empty if they do not.
    """

    label: str
    config: Mapping[str, Any]
    runs: tuple[RunScores, ...]
    mark: str = ""

    @property
    def store(self) -> str:
        """Fingerprint of the features that the runs read."""
        return self.runs[0].run.store

    @property
    def splits(self) -> Splits:
        """The splits of the expressions."""
        return self.runs[0].run.splits

    @property
    def kind(self) -> tuple[object, ...]:
        """Key of comparable lines: expressions and masks, and the size and number of frames of the masks."""
        sizes = (self.runs[0].facts[name] for name in ("height", "width", "num_frames"))
        return (self.runs[0].run.contents, *sizes)

    @property
    def removed(self) -> tuple[str, ...]:
        """The removed parts of the head, by the names in the paper's Table 4; empty for an unknown head."""
        head = head_of(self.config)
        return () if head is None else head.removed(self._options)

    @property
    def choices(self) -> Mapping[str, Any]:
        """See `HeadOptions.choices`; empty for an unknown head, or one that no longer accepts these settings."""
        head = head_of(self.config)
        if head is None:
            return {}
        known = {field.name for field in dataclasses.fields(head)}
        try:
            return head(**{name: value for name, value in self._options.items() if name in known}).choices
        except ConfigError:
            return {}

    @property
    def _options(self) -> dict[str, Any]:
        """The settings of the head, by the names of its options."""
        return {name.removeprefix("model."): value for name, value in self.config.items() if name.startswith("model.")}

    @property
    def curve(self) -> tuple[str, str]:
        """The setting of the head against which J is plotted, and the axis label; empty if there is none."""
        head = head_of(self.config)
        return (f"model.{head.curve_setting}", head.curve_words) if head and head.curve_setting else ("", "")

    def interval(self, protocol: str, group: str, measure: str) -> Interval | None:
        """Mean over seeds with its t interval; None if a seed lacks the number."""
        values = [run.values[protocol].get(group, {}).get(measure, math.nan) for run in self.runs]
        return None if any(map(math.isnan, values)) else seed_interval(values)

    def count(self, group: str) -> int:
        """Number of expressions in a group."""
        return self.runs[0].counts.get(group, 0)

    def scores(self, protocol: str, split: str, measure: str) -> SeedScores | None:
        """The scores of each expression of a group of `Splits.groups`; None if there are none."""
        results = [run.results for run in self.runs]
        name, splits = f"{protocol}/{measure}", self.splits.groups.get(split, ())
        if name not in results[0].values or not splits or not all(self.count(part) for part in splits):
            return None
        found = scores_of(results, name, splits)
        known = ~np.isnan(found.values)
        said = all(known[:, found.strata == stratum].any(1).all() for stratum in np.unique(found.strata))
        return found if said else None

    def sampled(self, protocol: str, split: str, measure: str) -> Interval | None:
        """Mean and interval over seeds and clips; None if the measure is not defined for single expressions."""
        scores = self.scores(protocol, split, measure)
        return None if scores is None else bootstrap_interval(scores)

    def minus(self, reference: "Contender", protocol: str, split: str, measure: str) -> Difference | None:
        """Difference of this line minus `reference` by paired bootstrap; None if clips cannot be paired."""
        mine, theirs = (line.scores(protocol, split, measure) for line in (self, reference))
        if mine is None or theirs is None or self.kind != reference.kind:
            return None
        return paired_difference(theirs, mine)


def contenders_of(runs: Sequence[RunScores], stores: Mapping[str, str]) -> list[Contender]:
    """Contenders ordered by label; a run that occurs in two sweeps counts once.

    Args:
        stores: name of each store by fingerprint, for messages and marks.
    """
    groups: dict[str, dict[str, RunScores]] = {}
    for scores in sorted(runs, key=lambda scores: (scores.run.seed, scores.run.key)):
        run = scores.run
        same = digest({"name": run.name, "store": run.store, "config": _compared(run.config)})
        groups.setdefault(same, {}).setdefault(run.key, scores)
    found = [
        Contender(label=members[0].run.name, config=_compared(members[0].run.config), runs=tuple(members))
        for members in (tuple(group.values()) for group in groups.values())
    ]
    for line in found:
        for first, second in itertools.pairwise(line.runs):
            if first.run.seed == second.run.seed:
                raise ConfigError(f"{first.run.title} occurs twice with the same settings, in {first.run.folder} and "
                                  f"in {second.run.folder}; remove one of the two folders")
    labels = _labels(found, stores)
    named = [dataclasses.replace(line, label=label) for label, line in zip(labels, found, strict=True)]
    return sorted(named, key=lambda line: (natural(line.label), line.store))


def reference_of(lines: Sequence[Contender], wanted: str | None) -> Contender:
    """The line that others are compared with: the wanted one, else `full`, else the first that removes no part.

    Raises:
        ConfigError: there is no line with the wanted name.
    """
    if wanted is None:
        full = [line for line in lines if line.label == REFERENCE or line.runs[0].run.name == REFERENCE]
        return next(iter(full or [line for line in lines if not line.removed] or lines))
    for line in lines:
        if wanted == line.label:
            return line
    names = {line.runs[0].run.name: line for line in reversed(lines)}
    if wanted not in names:
        raise ConfigError(f"--reference {wanted!r} is not a row; {nearest(wanted, [line.label for line in lines])}")
    return names[wanted]


def marked(lines: Sequence[Contender], reference: Contender, mixed: bool, stores: Mapping[str, str]) -> list[Contender]:
    """Marks the lines whose store or sizes differ from those of the reference.

    Raises:
        StatisticsError: there are such lines, but `mixed` is False.
    """
    others = [line for line in lines if line.kind != reference.kind]
    if others and not mixed:
        raise StatisticsError(
            f"{others[0].label} ({_described(others[0], stores)}) and {reference.label} "
            f"({_described(reference, stores)}) cannot be compared in one table; report the sweeps one by one, or "
            "pass --mixed, which marks such rows"
        )
    return [dataclasses.replace(line, mark=_described(line, stores)) if line in others else line for line in lines]


def few_seeds(lines: Sequence[Contender]) -> str:
    """A warning about lines with a single seed; empty if there are none."""
    single = [line.label for line in lines if len(line.runs) == 1]
    if not single:
        return ""
    of = "every row" if len(single) == len(lines) else ", ".join(single)
    return f"{ONE_SEED[0].upper()}{ONE_SEED[1:]} over seeds ({of})."


def differing(lines: Sequence[Contender]) -> list[str]:
    """The settings in which lines differ."""
    names = sorted({name for line in lines for name in line.config})
    return [name for name in names if len({repr(line.config.get(name)) for line in lines}) > 1]


def _labels(lines: Sequence[Contender], stores: Mapping[str, str]) -> list[str]:
    """Each line's name, with the differing settings added if several lines have the same name."""
    labels = []
    for line in lines:
        twins = [other for other in lines if other.label == line.label]
        apart = [f"{name.split('.')[-1]} {_value(line, name)}" for name in differing(twins)]
        if len({other.store for other in twins}) > 1:
            apart.append(stores.get(line.store, line.store[:8]))
        labels.append(f"{line.label} ({', '.join(apart)})" if apart else line.label)
    return labels


def _value(line: Contender, name: str) -> str:
    """A setting for a label; digests are shortened."""
    value = str(line.config.get(name))
    return value.removeprefix("sha256:")[:8] if name.startswith("digests.") else value


def _described(line: Contender, stores: Mapping[str, str]) -> str:
    _, height, width, num_frames = line.kind
    return f"store {stores.get(line.store, line.store[:8])}, masks of {num_frames} x {height} x {width}"


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "seed" and not name.startswith(NOT_IN_KEY)}


