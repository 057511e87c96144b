"""Turns the points of a search into trials."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.grid.file import Located, mapping
from experiments.grid.search_space import SearchPlan
from experiments.grid.settings import Schema, TrialTemplate
from experiments.grid.trial import MAX_TRIALS, Trial, short_names
from refavs.config import digest
from refavs.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SearchGrid:
    """A search as declared by a grid file.

    Attributes:
        examples: a trial at each end of each range, for checks; none of them runs.
    """

    plan: SearchPlan
    template: TrialTemplate
    seeds: Sequence[int]
    examples: tuple[Trial, ...]

    def trials(self, index: int, point: Mapping[str, Any]) -> tuple[Trial, ...]:
        """A trial for each seed at a point; none if a condition skips it.

        Raises:
            ConfigError: conflicting values.
        """
        example = self.examples[0]
        own = {name: Located(value, "search") for name, value in point.items()}
        init = {"train.init": Located(example.config.train.init, "search")}
        ordered = {setting: point[setting] for setting in self.plan.ranges}
        shown = zip(short_names(list(ordered)), ordered.values(), strict=True)
        name = ", ".join([f"point {index}", *(f"{axis} {value}" for axis, value in shown)])
        configs = [self.template.config({**own, **init}, seed) for seed in self.seeds]
        return tuple(
            dataclasses.replace(example, name=name, config=config) for config in configs if config is not None
        )

    def identity(self, key: str) -> str:
        """Identifies the search within its sweep, by its ranges, seed and conditions.

        Args:
            key: key of the first example.
        """
        ranges = {name: [part.kind, list(part.ends)] for name, part in self.plan.ranges.items()}
        whens = [
            [when.wanted, {name: value.value for name, value in when.changes.items()}, when.skip]
            for when in self.template.conditions
        ]
        return digest({"example": key, "ranges": ranges, "seed": self.plan.seed, "when": whens})


def search_grid(
    plan: SearchPlan, template: TrialTemplate, seeds: Sequence[int], section: Located, schema: Schema
) -> SearchGrid:
    """The trials of a search, with its ends tried.

    Args:
        section: the section of the grid file from which `plan` was read.

    Raises:
        ConfigError: an unusable end, conditions that skip everything, or a budget that is too large.
    """
    parts = mapping(section)
    for when in template.conditions:
        if name := next(filter(schema.starts, when.changes), None):
            place = when.changes[name].place
            raise ConfigError(f"{place}: {name} cannot depend on a searched setting; set it in base")
    examples = []
    for point in plan.extremes():
        config = template.config({name: plan.ranges[name].located(value) for name, value in point.items()}, 0)
        if config is not None:
            label = ", ".join(f"{name} {value}" for name, value in point.items())
            examples.append(Trial(name=f"a point with {label}", config=config))
    if not examples:
        place = parts["ranges"].place
        raise ConfigError(f"{place}: the conditions skip every end of these ranges; remove one of the conditions")
    if plan.asha and plan.asha.min_epochs >= (longest := max(trial.config.train.epochs for trial in examples)):
        place = mapping(parts["asha"]).get("min_epochs", parts["asha"]).place
        raise ConfigError(
            f"{place}: asha.min_epochs is {plan.asha.min_epochs}, but trials have {longest} epochs; accepted: fewer"
        )
    if plan.budget * len(seeds) > MAX_TRIALS:
        raise ConfigError(f"{parts['budget'].place}: more than {MAX_TRIALS:,} trials; lower the budget")
    return SearchGrid(plan=plan, template=template, seeds=seeds, examples=tuple(examples))
