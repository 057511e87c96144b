"""How much each setting of a search matters: PED-ANOVA, and what the best points have in common.

PED-ANOVA (Watanabe et al., IJCAI 2023, in Optuna) compares where a setting's values lie in the best points with where
they lie in all of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from experiments.records.record_types import read_record
from experiments.report.runs import SavedRun, SavedSweep
from experiments.report.tables import Cell, Column, Table, TableRow
from experiments.training.history import best_epoch
from refavs.choices import SCORE

FEWEST_POINTS = 10
WIDE = 30.0  # values that span more than this factor are compared by their logarithms
COLUMNS = (
    Column(group="", name="importance", unit="%"),
    Column(group="", name="rank correlation", lower_is_better=None),
    Column(group="", name="best point", lower_is_better=None),
)


class _Search(TypedDict):
    points: list[dict[str, Any]]
    metric: NotRequired[str]
    maximize: NotRequired[bool]


def importance_tables(sweeps: Sequence[SavedSweep], protocol: str) -> list[Table]:
    """A table for each search with enough finished points."""
    tables = []
    for sweep in sweeps:
        for path in sorted((sweep.folder / "search").glob("*.json")):
            table = _table(sweep, path, protocol, f"importance-{len(tables) + 1}")
            tables += [] if table is None else [table]
    return tables


def _table(sweep: SavedSweep, path: Path, protocol: str, name: str) -> Table | None:
    search = read_record(path, _Search)
    if search is None or not search["points"]:
        return None
    metric, maximize = search.get("metric", SCORE), search.get("maximize", True)
    pairs = [(point, value) for point in search["points"]
             if (value := _value(point, sweep.runs, metric)) is not None]  # fmt: skip
    settings = [setting for setting in search["points"][0] if len({str(point.get(setting)) for point, _ in pairs}) > 1]
    if len(pairs) < FEWEST_POINTS or not settings:
        return None
    points, values = [point for point, _ in pairs], np.array([value for _, value in pairs])
    shares = importances(points, values if maximize else -values, settings)
    best = points[int(values.argmax() if maximize else values.argmin())]
    rows = []
    for setting in sorted(settings, key=lambda setting: -shares[setting]):
        own = [point[setting] for point in points]
        correlation = _rank_correlation(own, values) if _is_number(own) else None
        rows.append(TableRow(label=setting, protocol=protocol, cells=(
            Cell(value=100 * shares[setting], text=f"{100 * shares[setting]:.0f}"),
            Cell(value=correlation, text="-" if correlation is None else f"{correlation:+.2f}",
                 note="" if correlation is not None else "its values have no order"),
            Cell(value=None, text=_shown(best[setting])),
        )))  # fmt: skip
    return Table(
        name=name, title=f"Importance of the settings of the search {sweep.grid}", protocol=protocol,
        row_heading="setting", columns=COLUMNS, rows=tuple(rows),
        notes=(f"Of {len(points)} finished points, by {metric}. Importance: PED-ANOVA, which compares the values of "
               "the best tenth of the points with those of all; with few points it is a hint. Rank correlation: "
               f"Spearman's, with {metric}.",),
    )  # fmt: skip


def importances(points: Sequence[Mapping[str, Any]], scores: np.ndarray, settings: Sequence[str]) -> dict[str, float]:
    """The share of each setting; they add up to 1.

    Args:
        scores: of each point, higher is better.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {setting: _distribution([point[setting] for point in points]) for setting in settings}
    study = optuna.create_study(direction="maximize")
    for point, score in zip(points, scores.tolist(), strict=True):
        params = {setting: point[setting] if _is_number([point[setting]]) and not _is_choice(kinds[setting])
                  else str(point[setting]) for setting in settings}  # fmt: skip
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=score))
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=list(settings))
    total = sum(found.values())
    return {setting: found[setting] / total if total else 1 / len(settings) for setting in settings}


def _distribution(values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not _is_number(values):
        return CategoricalDistribution(list(dict.fromkeys(map(str, values))))
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high)
    return FloatDistribution(float(low), float(high), log=low > 0 and high > WIDE * low)


def _is_choice(kind: Any) -> bool:
    from optuna.distributions import CategoricalDistribution

    return isinstance(kind, CategoricalDistribution)


def _is_number(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _value(point: Mapping[str, Any], runs: Sequence[SavedRun], metric: str) -> float | None:
    """A point's mean over its finished seeds, of the weights that each kept."""
    own = [run for run in runs if all(run.config.get(name) == value for name, value in point.items())]
    found = []
    for run in own:
        history = list(run.history)
        kept = best_epoch(history) - 1 if run.config.get("train.patience") else -1
        value = history[kept]["metrics"].get(metric) if history else None
        found += [] if value is None else [float(value)]
    return float(np.mean(found)) if found else None


def _rank_correlation(settings: Sequence[float], values: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(settings, values).statistic)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
