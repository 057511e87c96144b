"""How far a mean can be trusted: intervals over seeds and clips, and whether a difference of two runs is shown.

Expressions of one clip share its frames and sound, so clips are drawn anew, never single expressions.
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
        low: None where there is no interval, and `note` says why.
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
        verdict: `not shown` where the interval holds 0, else `higher` or `lower` (the second than the first).
        note: what the interval does not cover.
    """

    mean: float
    low: float
    high: float
    verdict: str
    note: str = ""

    @property
    def shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.verdict != NOT_SHOWN


def seed_interval(values: Sequence[float]) -> Interval:
    """Mean and t interval over seeds; one seed has none.

    Raises:
        StatisticsError: there is no value.
    """
    if not len(values):
        raise StatisticsError("the mean over no seed; expected at least one finished run")
    mean, num_seeds = float(np.mean(values)), len(values)
    if num_seeds == 1:
        return Interval(mean=mean, low=None, high=None, num_seeds=1, note=ONE_SEED)
    half = float(special.stdtrit(num_seeds - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / np.sqrt(num_seeds))
    return Interval(mean=mean, low=mean - half, high=mean + half, num_seeds=num_seeds)


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """SeedScores of the same expressions by runs that differ in their seed alone; NaN where an expression says nothing.

    Attributes:
        clips: the clip of each expression.
        strata: the split of each expression; the mean is the mean of the splits' means, as Mix has it.
    """

    values: Float[np.ndarray, "s n"]
    clips: Int[np.ndarray, " n"]
    strata: Int[np.ndarray, " n"]


def scores_of(runs: Sequence[Results], measure: str, splits: Sequence[str]) -> SeedScores:
    """The scores `measure` (as `canonical/J`) of runs on splits; several splits are weighted alike.

    Raises:
        StatisticsError: no run, no such measure or split, or the runs are of different stores or expressions.
    """
    if not runs:
        raise StatisticsError("no run to compare; expected at least one finished run")
    for run in runs:
        if measure not in run.values:
            raise StatisticsError(f"there is no score {measure!r} of an expression; known: {', '.join(run.values)}")
    chosen = [np.concatenate([run.rows(split=split) for split in splits]) for run in runs]
    tables = [run.expressions.iloc[rows] for run, rows in zip(runs, chosen, strict=True)]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if run.facts["store"] != runs[0].facts["store"]:
            raise StatisticsError(f"runs of the stores {runs[0].facts['store']} and {run.facts['store']} are not to be "
                                  "compared expression by expression; evaluate both on one store")
        if table["row"].tolist() != tables[0]["row"].tolist():
            raise StatisticsError(f"the runs have {len(tables[0])} and {len(table)} expressions of "
                                  f"{', '.join(splits)}, or others; evaluate both on the same splits")
    return SeedScores(
        values=np.stack([run.values[measure][rows] for run, rows in zip(runs, chosen, strict=True)]),
        clips=np.unique(tables[0]["clip_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64),
        strata=np.unique(tables[0]["split"].to_numpy(str), return_inverse=True)[1].astype(np.int64),
    )


def bootstrap_interval(scores: SeedScores, seed: int = 0, num_samples: int = NUM_SAMPLES) -> Interval:
    """Mean over seeds, and its interval when both seeds and clips are drawn anew (2.5 and 97.5 percentiles).

    The clips of a draw are the same for all its seeds. With the few seeds that are usual the interval is rather too
    narrow; `seed_interval` is the cautious one. The same `seed` gives the same interval.

    Raises:
        StatisticsError: no expression says anything.
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
    """Second minus first when the same clips are drawn for both, and the seeds of each where it has several.

    Raises:
        StatisticsError: the two are of different expressions, or none says anything.
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
        note="one seed: of these trained heads alone, other seeds may differ" if single else "",
    )  # fmt: skip


def _estimate(scores: SeedScores) -> float:
    weights = [np.ones((1, _num_clips(scores, stratum))) for stratum in _strata(scores)]
    return float(_weighted(scores, weights).mean())


def _over_clips(runs: Sequence[SeedScores], seed: int, num_samples: int) -> list[Float[np.ndarray, "r s"]]:
    """Means of each run's seeds in samples of clips, drawn within each split; the same clips for all runs."""
    strata = enumerate(_strata(runs[0]))
    weights = [_draws(_num_clips(runs[0], stratum), place, seed, num_samples) for place, stratum in strata]
    return [_weighted(run, [drawn.astype(float) for drawn in weights]) for run in runs]


@functools.lru_cache(maxsize=4)
def _draws(num_clips: int, place: int, seed: int, num_samples: int) -> Int[np.ndarray, "r n"]:
    """How often each clip is drawn in each sample; kept, for the many rows and measures that are of the same splits.

    Args:
        place: of the split among those that are drawn from, so that two of one size have draws of their own.
    """
    rng = np.random.default_rng([seed, place])
    found = rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=num_samples).astype(np.int32)
    found.flags.writeable = False
    return found


def _weighted(scores: SeedScores, weights: Sequence[Float[np.ndarray, "r _"]]) -> Float[np.ndarray, "r s"]:
    """For each line of clips' weights the mean of each seed: that over the splits of means over their expressions."""
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
        # A draw may miss every clip that says something; it says nothing then, and percentiles leave it out.
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
