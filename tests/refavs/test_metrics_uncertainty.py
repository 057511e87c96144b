"""Intervals: their values on known cases, their coverage, and when a difference is not shown."""

import numpy as np
import pandas as pd
import pytest

from refavs.errors import StatisticsError
from refavs.metrics.intervals import (
    NOT_SHOWN,
    ONE_SEED,
    SeedScores,
    bootstrap_interval,
    paired_difference,
    scores_of,
    seed_interval,
)
from refavs.metrics.reference import Results


def make_scores(rng: np.random.Generator, num_seeds: int = 3, num_clips: int = 60, shift: float = 0.0,
                clip_part: np.ndarray | None = None) -> SeedScores:  # fmt: skip
    """Five expressions a clip, which share what is hard about it; seeds differ as a whole."""
    hard = rng.normal(0.5, 0.2, num_clips) if clip_part is None else clip_part
    values = np.repeat(hard, 5) + rng.normal(shift, 0.03, (num_seeds, 1))
    values = values + rng.normal(0, 0.05, (num_seeds, num_clips * 5))
    return SeedScores(values=values, clips=np.repeat(np.arange(num_clips), 5), strata=np.zeros(num_clips * 5, np.int64))


def test_seed_interval_is_the_t_interval() -> None:
    values = [0.31, 0.35, 0.33, 0.40]
    found = seed_interval(values)
    half = 3.182446305284263 * np.std(values, ddof=1) / 2  # Student's t of 3 degrees of freedom at 97.5 %
    expected = np.mean(values) - half, np.mean(values) + half
    assert (found.low, found.high) == pytest.approx(expected) and found.num_seeds == 4 and not found.note


def test_one_seed_has_no_interval_and_says_so() -> None:
    scores = make_scores(np.random.default_rng(0), num_seeds=1)
    for found in (seed_interval([0.4]), bootstrap_interval(scores)):
        assert (found.low, found.high, found.note) == (None, None, ONE_SEED)
    assert bootstrap_interval(scores).mean == pytest.approx(scores.values.mean())
    with pytest.raises(StatisticsError, match="no seed to average over"):
        seed_interval([])


def test_bootstrap_is_the_same_for_the_same_seed() -> None:
    scores = make_scores(np.random.default_rng(1))
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)
    assert paired_difference(scores, scores, seed=3) == paired_difference(scores, scores, seed=3)


def test_bootstrap_over_clips_is_as_wide_as_the_clips_make_it() -> None:
    rng = np.random.default_rng(2)
    scores = make_scores(rng, num_seeds=2, num_clips=200)
    same = SeedScores(values=np.stack([scores.values[0]] * 2), clips=scores.clips, strata=scores.strata)
    found = bootstrap_interval(same)
    assert found.low is not None and found.high is not None
    of_clips = scores.values[0].reshape(200, 5).mean(1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(of_clips, ddof=1) / np.sqrt(200), rel=0.1)
    alone = SeedScores(values=same.values, clips=np.arange(1000), strata=scores.strata)
    narrow = bootstrap_interval(alone)
    assert narrow.low is not None and narrow.high is not None
    assert narrow.high - narrow.low < 0.6 * (found.high - found.low), "expressions of a clip are not independent"


def test_bootstrap_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(100):
        found = bootstrap_interval(make_scores(rng, num_seeds=10, num_clips=40), seed=trial, num_samples=300)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert 85 <= hits <= 100


def test_bootstrap_equals_single_draws_written_out() -> None:
    scores = make_scores(np.random.default_rng(4), num_seeds=2, num_clips=3)
    values = scores.values.copy()
    values[:, 2] = np.nan
    scores = SeedScores(values=values, clips=scores.clips, strata=scores.strata)
    drawn = np.random.default_rng([0, 0]).multinomial(3, np.full(3, 1 / 3), size=50)
    seeds = np.random.default_rng(0).integers(2, size=(50, 2))
    samples = []
    for counts, chosen in zip(drawn, seeds, strict=True):
        rows = np.concatenate([np.flatnonzero(scores.clips == clip) for clip in np.repeat(np.arange(3), counts)])
        samples.append(np.mean([np.nanmean(values[seed, rows]) for seed in chosen]))
    found = bootstrap_interval(scores, seed=0, num_samples=50)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])))
    assert found.mean == pytest.approx(np.mean([np.nanmean(line) for line in values]))


def test_difference_that_clips_share_is_shown_and_noise_is_not() -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(0.5, 0.3, 60)
    first, second, third = (make_scores(rng, 4, 60, shift, hard) for shift in (0.0, 0.1, 0.0))
    found = paired_difference(first, second)
    assert found.verdict == "higher" and found.shown and found.low > 0 and not found.note
    assert paired_difference(second, first).verdict == "lower"
    noise = paired_difference(first, third)
    assert noise.verdict == NOT_SHOWN and not noise.shown and noise.low <= 0 <= noise.high
    unpaired = make_scores(rng, 4, 60, 0.1)
    wide = paired_difference(first, unpaired)
    assert wide.high - wide.low > 1.5 * (found.high - found.low), "pairing by clips narrows the interval"


def test_equal_runs_differ_by_nothing() -> None:
    scores = make_scores(np.random.default_rng(6), num_seeds=1)
    found = paired_difference(scores, scores)
    assert (found.mean, found.low, found.high, found.verdict) == (0, 0, 0, NOT_SHOWN)
    assert found.note.startswith("one seed")


def test_splits_have_equal_weight_regardless_of_size() -> None:
    values = np.array([[1.0] * 10 + [0.0] * 2] * 2)
    scores = SeedScores(values=values, clips=np.arange(12), strata=np.array([0] * 10 + [1] * 2))
    found = bootstrap_interval(scores)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def make_run(values: np.ndarray, store: str = "x") -> Results:
    count = len(values)
    table = pd.DataFrame({"row": range(count), "clip_id": [f"v{i // 2}" for i in range(count)],
                          "split": ["test_s"] * (count // 2) + ["test_u"] * (count - count // 2)})  # fmt: skip
    return Results(expressions=table, values={"canonical/J": values}, curves={}, facts={"store": store})


def test_scores_of_runs_are_aligned_or_refused() -> None:
    runs = [make_run(np.arange(8.0)), make_run(np.arange(8.0) + 1)]
    found = scores_of(runs, "canonical/J", ("test_u", "test_s"))
    assert found.values.shape == (2, 8) and found.values[1, 0] == 5 and len(set(found.clips)) == 4
    assert bootstrap_interval(found).mean == pytest.approx(4.0)
    with pytest.raises(StatisticsError, match="no expression with split 'val'"):
        scores_of(runs, "canonical/J", ("val",))
    with pytest.raises(StatisticsError, match="have no score 'canonical/K'"):
        scores_of(runs, "canonical/K", ("test_s",))
    with pytest.raises(StatisticsError, match="runs on the stores x and y cannot be compared"):
        scores_of([runs[0], make_run(np.arange(8.0), "y")], "canonical/J", ("test_s",))
    with pytest.raises(StatisticsError, match="the runs have different expressions of test_s"):
        scores_of([runs[0], make_run(np.arange(10.0))], "canonical/J", ("test_s",))
    with pytest.raises(StatisticsError, match="no run to compare"):
        scores_of([], "canonical/J", ("test_s",))
    with pytest.raises(StatisticsError, match="the two runs have different expressions"):
        paired_difference(found, scores_of(runs, "canonical/J", ("test_s",)))
    with pytest.raises(StatisticsError, match="not defined on any expression"):
        bootstrap_interval(scores_of([make_run(np.full(8, np.nan))] * 2, "canonical/J", ("test_s",)))
