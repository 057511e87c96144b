"""A search: decides from the ledger alone which point comes next and which trial is given up.

Only the list of points is stored, beside the trials. The next point follows from both, so that a killed search
continues with the same points, and a larger budget adds points to them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from experiments.cluster.grouping import MOST
from experiments.grid.expand import Grid
from experiments.grid.search_space import DIGITS, Range, SearchPlan
from experiments.records.ledger import KEY_LENGTH, Entry, Ledger, read_metrics
from experiments.records.record_types import read_record, write_json
from experiments.records.stores import Features
from experiments.training.evaluate import rows_of
from experiments.training.loop import best_epoch
from refavs.config import digest
from refavs.data.splits import Splits
from refavs.errors import ConfigError
from refavs.store import FeatureStore

if TYPE_CHECKING:
    import optuna

# Attempts to find a point that is new and not skipped by a condition; TPE makes the first half, random draws the rest.
ATTEMPTS = 200


class _Search(TypedDict):
    points: list[dict[str, Any]]


class Search:
    """The points of one search in a sweep's folder.

    Attributes:
        points: values by setting, in the order of their suggestion, within the budget.
    """

    def __init__(self, grid: Grid, ledger: Ledger, features: Features) -> None:
        assert grid.search is not None
        self.grid, self.plan, self.ledger, self.features = grid.search, grid.search.plan, ledger, features
        self.identity = self.grid.identity(ledger.entries(self.grid.examples[:1], features)[0].key)
        self.path = ledger.root / "search" / f"{self.identity[:KEY_LENGTH]}.json"
        self.points: list[dict[str, Any]] = (read_record(self.path, _Search) or {"points": []})["points"]
        self._of_points: list[list[Entry]] = []
        self._rungs: dict[int, dict[str, float]] = {}
        self._values: dict[str, float | None] = {}
        self._waiting: list[Entry] = []
        self._exhausted = False
        for index, point in enumerate(self.points):
            self._of_points.append(self._entries(index, point))
            for entry in self._of_points[-1]:
                self._note(entry, read_metrics(entry.folder))

    @property
    def entries(self) -> list[Entry]:
        """Trials of the points within the budget, point by point."""
        return [entry for entries in self._of_points[: self.plan.budget] for entry in entries]

    @property
    def num_to_come(self) -> int:
        """Trials of points yet to be suggested."""
        left = 0 if self._exhausted else max(0, self.plan.budget - len(self.points))
        return left * len(self.grid.seeds)

    def suggest(self) -> Entry | None:
        """The next trial of a new point, stored before it is returned; None once the budget is used up.

        Trials of stored points are `entries` and are not suggested again.
        """
        if not self._waiting and self.num_to_come:
            found = self._new_point()
            if found is None:
                self._exhausted = True
                return None
            point, self._waiting = found
            self.points.append(point)
            self._of_points.append(list(self._waiting))
            told = {"metric": self.plan.metric, "maximize": self.plan.maximize}  # for reports
            write_json(self.path, {"search": self.identity, "points": self.points, **told})
        return self._waiting.pop(0) if self._waiting else None

    def suggest_some(self, fuse: int | Literal["auto"]) -> list[Entry]:
        """The next trials to run together; TPE suggests several at once only if their number is given."""
        number = fuse if fuse != "auto" else MOST if self.plan.method == "random" else 1
        found = (self.suggest() for _ in range(number))
        return [entry for entry in found if entry is not None]

    def report(self, entry: Entry, records: Sequence[Mapping[str, Any]]) -> str:
        """Takes a trial's epochs; returns why to give the trial up now, or an empty text.

        The decision is stored with the trial, so that resuming it after a kill does not judge it again.

        Args:
            records: finished epochs; only the last one is judged.
        """
        self._note(entry, records)
        asha = self.plan.asha
        epoch = records[-1]["epoch"] if records else 0
        here = self._rungs.get(epoch, {})
        if asha is None or not records:
            return ""
        status = entry.status
        if reason := status.get("given_up"):
            return reason
        if entry.key not in here or epoch <= status.get("passed", 0) or epoch >= entry.trial.config.train.epochs:
            return ""
        value = here[entry.key]
        num_better = sum(other > value if self.plan.maximize else other < value for other in here.values())
        num_continued = max(1, len(here) // asha.reduction)
        if num_better < num_continued:
            entry.set_status(entry.state, passed=epoch)
            return ""
        reason = (
            f"given up after epoch {epoch}: its {self.plan.metric} of {value:.{DIGITS}g} is number {num_better + 1} of "
            f"{len(here)} so far, and one in {asha.reduction} continues"
        )
        entry.set_status(entry.state, given_up=reason)
        return reason

    def described(self) -> list[str]:
        """The search's goal, its progress and its best point."""
        plan, asha, found = self.plan, self.plan.asha, self.best()
        stopping = f", one trial in {asha.reduction} continues after epoch {asha.min_epochs}" if asha else ""
        lines = [
            f"search by {plan.method} for the {'highest' if plan.maximize else 'lowest'} {plan.metric}{stopping}: "
            f"{min(len(self.points), plan.budget)} of {plan.budget} points suggested",
            *(f"  {name}: {part}" for name, part in plan.ranges.items()),
        ]
        return [*lines, f"best so far: {found[0]}: {plan.metric} {found[1]:.{DIGITS}g}"] if found else lines

    def best(self) -> tuple[str, float] | None:
        """Name and value of the best point whose trials are all finished."""
        values = [(self._value(entries), entries[0].trial.name) for entries in self._of_points if entries]
        known = [(value, name) for value, name in values if value is not None]
        if not known:
            return None
        value, name = (max if self.plan.maximize else min)(known, key=lambda found: found[0])
        return name, value

    def _entries(self, index: int, point: Mapping[str, Any]) -> list[Entry]:
        return self.ledger.entries(self.grid.trials(index, point), self.features)

    def _note(self, entry: Entry, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            value = record["metrics"].get(self.plan.metric, math.nan)
            if self.plan.asha and self.plan.asha.rung(record["epoch"]) and math.isfinite(value):
                self._rungs.setdefault(record["epoch"], {})[entry.key] = value

    def _new_point(self) -> tuple[dict[str, Any], list[Entry]] | None:
        known = {entry.key for entries in self._of_points for entry in entries}
        index = len(self.points)
        study = _study(self.plan, self.points, self._of_points, self._value) if self.plan.method == "tpe" else None
        for attempt in range(ATTEMPTS):
            if study is None or attempt >= ATTEMPTS // 2:
                point = self.plan.draw(index, attempt)
            else:
                point = _asked(study, self.plan, index, attempt)
            try:
                entries = [] if point in self.points else self._entries(index, point)
            except ConfigError:  # conflicting values
                continue
            if entries and not known & {entry.key for entry in entries}:
                return point, entries
        return None

    def _value(self, entries: Sequence[Entry]) -> float | None:
        """A point's mean over its seeds; None until all are finished, or if one lacks the metric."""
        values = [self._values[entry.key] if entry.key in self._values else self._read(entry) for entry in entries]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) > 0 else None

    def _read(self, entry: Entry) -> float | None:
        """The metric of the weights that a finished trial kept."""
        if entry.state != "finished":
            return None
        records = read_metrics(entry.folder)
        kept = best_epoch(records) - 1 if entry.trial.config.train.patience else -1
        value = records[kept]["metrics"].get(self.plan.metric) if records else None
        self._values[entry.key] = value
        return value


def refuse_unmeasured(plan: SearchPlan, store: FeatureStore) -> None:
    """Refuses a search by a metric that no trial on this store will have.

    Raises:
        ConfigError: the store has no split val with masks, or not the metric's dimension in it.
    """
    table = store.expressions
    known = {str(kind) for kind in table["dimension"].iloc[rows_of(store, Splits.of(store.attributes).validation)]}
    _, *dimension, _ = plan.metric.split("/")
    if not known or not set(dimension) <= known:
        found = f"has there {', '.join(sorted(known))}" if known else "has no validation split with masks"
        raise ConfigError(
            f"the search compares points by {plan.metric}, and {store.location} {found}; name another metric, or a "
            "store that has it"
        )


def _study(plan: SearchPlan, points: Sequence[Mapping[str, Any]], of_points: Sequence[Sequence[Entry]], value_of: Any
           ) -> "optuna.Study":  # fmt: skip
    """The points so far as an Optuna study: running points get a pessimistic value; failed ones are ignored."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = {name: _distribution(plan.ranges[name]) for name in sorted(plan.ranges)}
    study = optuna.create_study(direction="maximize" if plan.maximize else "minimize")
    for point, entries in zip(points, of_points, strict=True):
        states, value, steps = {entry.state for entry in entries}, value_of(entries), {}
        if value is not None:
            state = TrialState.COMPLETE
        elif "pruned" in states:
            state = TrialState.PRUNED
            records = [record for entry in entries for record in read_metrics(entry.folder)]
            steps = {r["epoch"]: r["metrics"][plan.metric] for r in records if plan.metric in r["metrics"]}
        else:
            state = TrialState.FAIL if states <= {"failed", "finished"} else TrialState.RUNNING
        params = {name: _index(plan.ranges[name], point[name]) for name in ranges}
        study.add_trial(
            create_trial(state=state, value=value, params=params, distributions=ranges, intermediate_values=steps)
        )
    return study


def _asked(study: "optuna.Study", plan: SearchPlan, index: int, attempt: int) -> dict[str, Any]:
    """A suggestion that depends only on the study and the number of the point."""
    import optuna
    from optuna.trial import TrialState

    seed = int(digest([plan.seed, index, attempt])[:8], 16)
    study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    asked = study.ask({name: _distribution(plan.ranges[name]) for name in sorted(plan.ranges)})
    study.tell(asked, state=TrialState.FAIL)  # if accepted, the point enters the next study
    return {name: _of_index(plan.ranges[name], value) for name, value in asked.params.items()}


def _distribution(part: Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if part.kind == "choice":
        return CategoricalDistribution(range(len(part.ends)))
    return IntDistribution(*part.ends) if part.kind == "int" else FloatDistribution(
        *part.ends, log=part.kind == "loguniform")  # fmt: skip


def _index(part: Range, value: Any) -> Any:
    """The value for Optuna, which takes a choice by its index, as it may be a list."""
    return part.ends.index(value) if part.kind == "choice" else value


def _of_index(part: Range, value: Any) -> Any:
    if part.kind == "choice":
        return part.ends[value]
    return value if part.kind == "int" else part.rounded(value)
