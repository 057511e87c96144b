"""Uncertainty of means: intervals over seeds and clips, and whether the difference between two runs is significant.

Expressions of one clip share its frames and audio, so the bootstrap resamples clips, never single expressions.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from refavs.errors import StatisticsError
from refavs.metrics.reference import Results

CONFIDENCE = 0.95
NUM_SAMPLES = 2000
ONE_SEED = "one seed: no interval"
NOT_SHOWN = "not shown"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds with its 95 % interval.

    Attributes:
        low: None if there is no interval; `note` says why.
    """

    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second minus first, with its 95 % interval.

    Attributes:
        verdict: `not shown` if the interval contains 0, else `higher` or `lower` (the second than the first).
        note: what the interval does not cover.
    """

    mean: float
    low: float
    high: float
    verdict: str
    note: str = ""

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.verdict != NOT_SHOWN


def seed_interval(values: Sequence[float]) -> Interval:
    """Mean and t interval over seeds; a single seed has no interval.

    Raises:
        StatisticsError: there is no value.
    """
    if not len(values):
        raise StatisticsError("there is no seed to average over; expected at least one finished run")
    mean, num_seeds = float(np.mean(values)), len(values)
    if num_seeds == 1:
        return Interval(mean=mean, low=None, high=None, num_seeds=1, note=ONE_SEED)
    half = float(special.stdtrit(num_seeds - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / np.sqrt(num_seeds))
    return Interval(mean=mean, low=mean - half, high=mean + half, num_seeds=num_seeds)


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """Scores of the same expressions by runs that differ only in their seed; NaN where a score is undefined.

    Attributes:
        clips: the clip of each expression.
        strata: the split of each expression; the overall mean is the mean of the splits' means, as in Mix.
    """

    values: Float[np.ndarray, "s n"]
    clips: Int[np.ndarray, " n"]
    strata: Int[np.ndarray, " n"]


def scores_of(runs: Sequence[Results], measure: str, splits: Sequence[str]) -> SeedScores:
    """The scores `measure` (e.g. `canonical/J`) of runs on splits; several splits have equal weight.

    Raises:
        StatisticsError: no run, no such measure or split, or the runs have different stores or expressions.
    """
    if not runs:
        raise StatisticsError("no run to compare; expected at least one finished run")
    for run in runs:
        if measure not in run.values:
            raise StatisticsError(f"expressions have no score {measure!r}; known: {', '.join(run.values)}")
    chosen = [np.concatenate([run.rows(split=split) for split in splits]) for run in runs]
    tables = [run.expressions.iloc[rows] for run, rows in zip(runs, chosen, strict=True)]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if run.facts["store"] != runs[0].facts["store"]:
            raise StatisticsError(f"runs on the stores {runs[0].facts['store']} and {run.facts['store']} cannot be "
                                  "compared expression by expression; evaluate both on one store")
        if table["row"].tolist() != tables[0]["row"].tolist():
            raise StatisticsError(f"the runs have different expressions of {', '.join(splits)} ({len(tables[0])} and "
                                  f"{len(table)}); evaluate both on the same splits")
    return SeedScores(
        values=np.stack([run.values[measure][rows] for run, rows in zip(runs, chosen, strict=True)]),
        clips=np.unique(tables[0]["clip_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64),
        strata=np.unique(tables[0]["split"].to_numpy(str), return_inverse=True)[1].astype(np.int64),
    )


def bootstrap_interval(scores: SeedScores, seed: int = 0, num_samples: int = NUM_SAMPLES) -> Interval:
    """Mean over seeds with a bootstrap interval over both seeds and clips (2.5 and 97.5 percentiles).

    All seeds of a sample share its clips. With the usual small number of seeds the interval tends to be too narrow;
    `seed_interval` is the cautious alternative. The same `seed` gives the same interval.

    Raises:
        StatisticsError: the score is undefined for all expressions.
    """
    num_seeds = len(scores.values)
    mean = _estimate(scores)
    if num_seeds == 1:
        return Interval(mean=mean, low=None, high=None, num_seeds=1, note=ONE_SEED)
    samples = _over_seeds(_over_clips([scores], seed, num_samples)[0], np.random.default_rng(seed))
    low, high = _percentiles(samples)
    return Interval(mean=mean, low=low, high=high, num_seeds=num_seeds)


def paired_difference(
    first: SeedScores, second: SeedScores, seed: int = 0, num_samples: int = NUM_SAMPLES
) -> Difference:
    """Second minus first, with a bootstrap over clips shared by both and over the seeds of each, if it has several.

    Raises:
        StatisticsError: the two have different expressions, or the score is undefined for all of them.
    """
    if not (np.array_equal(first.clips, second.clips) and np.array_equal(first.strata, second.strata)):
        raise StatisticsError("the two runs have different expressions; evaluate both on the same splits of one store")
    rng = np.random.default_rng(seed)
    parts = _over_clips([first, second], seed, num_samples)
    before, after = (_over_seeds(part, rng) for part in parts)
    low, high = _percentiles(after - before)
    verdict = NOT_SHOWN if low <= 0 <= high else "higher" if low > 0 else "lower"
    single = min(len(first.values), len(second.values)) == 1
    return Difference(
        mean=_estimate(second) - _estimate(first), low=low, high=high, verdict=verdict,
        note="one seed: holds for these trained heads only, other seeds may differ" if single else "",
    )  # fmt: skip


def _estimate(scores: SeedScores) -> float:
    weights = [np.ones((1, _num_clips(scores, stratum))) for stratum in _strata(scores)]
    return float(_weighted(scores, weights).mean())


def _over_clips(runs: Sequence[SeedScores], seed: int, num_samples: int) -> list[Float[np.ndarray, "r s"]]:
    """Means of each run's seeds over samples of clips, drawn within each split and shared by all runs."""
    strata = enumerate(_strata(runs[0]))
    weights = [_draws(_num_clips(runs[0], stratum), place, seed, num_samples) for place, stratum in strata]
    return [_weighted(run, [drawn.astype(float) for drawn in weights]) for run in runs]


@functools.lru_cache(maxsize=4)
def _draws(num_clips: int, place: int, seed: int, num_samples: int) -> Int[np.ndarray, "r n"]:
    """How often each clip is drawn in each sample; cached for the many rows and measures with the same splits.

    Args:
        place: index of the split, so that two splits of one size have different draws.
    """
    rng = np.random.default_rng([seed, place])
    found = rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=num_samples).astype(np.int32)
    found.flags.writeable = False
    return found


def _weighted(scores: SeedScores, weights: Sequence[Float[np.ndarray, "r _"]]) -> Float[np.ndarray, "r s"]:
    """Mean of each seed for each row of clip weights: the mean over splits of the means over their expressions."""
    means = []
    for stratum, clip_weights in zip(_strata(scores), weights, strict=True):
        inside = scores.strata == stratum
        values = scores.values[:, inside]
        _, clip = np.unique(scores.clips[inside], return_inverse=True)
        known = ~np.isnan(values)
        totals, counts = (
            np.stack([np.bincount(clip, line, minlength=clip_weights.shape[1]) for line in part])
            for part in (np.where(known, values, 0.0), known.astype(float))
        )
        if not known.any(1).all():
            raise StatisticsError("the score is not defined on any expression of a split; choose another measure")
        # A sample may contain no clip with a defined score. Its mean is then NaN, and percentiles ignore it.
        weight = clip_weights @ counts.T
        means.append(np.divide(clip_weights @ totals.T, weight, out=np.full(weight.shape, np.nan), where=weight > 0))
    return np.mean(means, axis=0)


def _over_seeds(means: Float[np.ndarray, "r s"], rng: np.random.Generator) -> Float[np.ndarray, " r"]:
    num_samples, num_seeds = means.shape
    drawn = rng.integers(num_seeds, size=(num_samples, num_seeds))
    return np.take_along_axis(means, drawn, axis=1).mean(1)


def _percentiles(samples: Float[np.ndarray, " r"]) -> tuple[float, float]:
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(samples, [outside, 100 - outside])
    return float(low), float(high)


def _strata(scores: SeedScores) -> list[int]:
    return sorted(set(scores.strata.tolist()))


def _num_clips(scores: SeedScores, stratum: int) -> int:
    return len(np.unique(scores.clips[scores.strata == stratum]))
