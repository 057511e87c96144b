from collections import Counter

import numpy as np
import pytest

from refavs.synthetic.scene import CATEGORIES
from refavs.synthetic.voices import (
    SAMPLE_RATE_HZ,
    SCENARIOS,
    VOICES,
    SoundSchedule,
    draw_scenario,
    draw_schedules,
    synthesise,
)


def levels(samples: np.ndarray) -> np.ndarray:
    return np.sqrt((samples.reshape(10, SAMPLE_RATE_HZ).astype(float) ** 2).mean(1))


def spectrum(category: str, seed: int) -> np.ndarray:
    """Power in bands of a twelfth of a decade, 50 Hz to 8 kHz."""
    samples = synthesise([(category, SoundSchedule())], np.random.default_rng(seed)).astype(float)
    power = np.abs(np.fft.rfft(samples)) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)
    bands = np.digitize(frequency, np.geomspace(50, 8000, 27))
    return np.bincount(bands, power, 28) / power.sum()


def test_every_category_has_a_distinct_voice() -> None:
    assert set(VOICES) == set(CATEGORIES)
    voices = {category: (spectrum(category, 0), spectrum(category, 1)) for category in CATEGORIES}
    for one, (first, again) in voices.items():
        own = np.minimum(first, again).sum()
        for other, (strange, _) in voices.items():
            if one != other:
                assert np.minimum(first, strange).sum() < min(0.3, own), (one, other)


@pytest.mark.parametrize("category", CATEGORIES)
def test_voices_are_equally_loud_and_never_clipped(category: str) -> None:
    samples = synthesise([(category, SoundSchedule())], np.random.default_rng(0))
    assert samples.dtype == np.int16 and samples.shape == (10 * SAMPLE_RATE_HZ,)
    assert levels(samples).mean() / 32767 == pytest.approx(0.13, rel=0.05)
    assert np.abs(samples.astype(int)).max() < 32767


def test_schedule_sets_start_end_and_level() -> None:
    heard = levels(synthesise([("disc", SoundSchedule(on_s=2.0, off_s=6.0))], np.random.default_rng(0)))
    assert (heard[[0, 1, 6, 7, 8, 9]] < 1).all() and (heard[2:6] > 1000).all()
    rising = levels(synthesise([("star", SoundSchedule(gain_from=0.05, gain_to=1.0))], np.random.default_rng(0)))
    np.testing.assert_allclose(rising[1:] / rising[:-1], 20 ** (1 / 10), rtol=0.1)
    assert not synthesise([], np.random.default_rng(0)).any()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("num_objects", [2, 3, 4])
def test_schedules_are_assigned_independently_of_the_scene(scenario: str, num_objects: int) -> None:
    rng = np.random.default_rng(1)
    sounding = Counter()
    loudest = Counter()
    for _ in range(600):
        schedules = draw_schedules(rng, scenario, num_objects)
        assert len(schedules) == num_objects
        heard = {index: found for index, found in enumerate(schedules) if found is not None}
        assert 1 <= len(heard) <= 3 and (scenario == "single") == (len(heard) == 1)
        sounding.update(list(heard))
        loudest[max(heard, key=lambda index: (heard[index].duration_s, heard[index].gain_to))] += 1
    for counted in (sounding, loudest):
        expected = sum(counted.values()) / num_objects
        assert all(abs(counted[index] - expected) < 4 * expected**0.5 for index in range(num_objects))


def test_scenarios_decide_early() -> None:
    """What comes first, stops or changes is settled by second 4: a causal model cannot know it before it happens."""
    rng = np.random.default_rng(2)
    for scenario in SCENARIOS:
        for _ in range(50):
            for schedule in draw_schedules(rng, scenario, 3):
                if schedule is not None:
                    assert schedule.on_s <= 4 and (schedule.off_s <= 4 or schedule.off_s == 10)


def test_scenarios_are_all_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = Counter(draw_scenario(rng) for _ in range(500))
    for name, (_, share) in SCENARIOS.items():
        assert abs(drawn[name] / 500 - share) < 0.08
