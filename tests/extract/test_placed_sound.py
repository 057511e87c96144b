"""Audio frames placed on the clock of their file: missing time stamps, gaps, steps back, changing formats."""

from fractions import Fraction

import av
import numpy as np
import pytest

from extract.media.sound import PlacedSound
from refavs.errors import DatasetError

SAMPLE_RATE_HZ = 16_000


def frame(start_s: float | None, seconds: float, level: float, rate_hz: int = 16_000) -> av.AudioFrame:
    samples = np.full((1, round(seconds * rate_hz)), level, np.float32)
    made = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
    made.sample_rate, made.time_base = rate_hz, Fraction(1, 1000)
    made.pts = None if start_s is None else round(1000 * start_s)
    return made


def levels(sound: PlacedSound, num_seconds: int) -> list[float]:
    """The level in the middle of each second."""
    middles = sound.finish(SAMPLE_RATE_HZ).reshape(num_seconds, -1)[:, SAMPLE_RATE_HZ // 2]
    return [round(float(level), 2) for level in middles]


def test_frame_without_a_time_stamp_follows_the_one_before_it() -> None:
    sound = PlacedSound(4)
    for start_s, level in ((1.0, 0.1), (None, 0.2), (None, 0.3)):
        sound.add(frame(start_s, 1, level))
    assert levels(sound, 4) == [0, 0.1, 0.2, 0.3] and sound.complete
    assert sound.notes() == ["sound_late"]


def test_rates_that_change_keep_their_places() -> None:
    sound = PlacedSound(4)
    for second, rate_hz in enumerate((16_000, 44_100, 8_000, 48_000)):
        sound.add(frame(second, 1, (second + 1) / 10, rate_hz))
    assert levels(sound, 4) == [0.1, 0.2, 0.3, 0.4] and sound.notes() == ["sound_varies"]


def test_gap_is_silent_and_noted_and_a_step_back_is_heard_once() -> None:
    sound = PlacedSound(5)
    for start_s, level in ((0, 0.1), (2, 0.2), (3, 0.3), (2.9, 0.4)):
        sound.add(frame(start_s, 1, level))
    assert levels(sound, 5) == [0.1, 0, 0.2, 0.4, 0] and sound.notes() == ["sound_gap", "sound_short"]


def test_sound_before_the_clock_is_dropped() -> None:
    sound = PlacedSound(2)
    for start_s, level in ((-2, 0.1), (-1, 0.2), (0, 0.3), (1, 0.4), (2, 0.5)):
        sound.add(frame(start_s, 1, level))
    assert levels(sound, 2) == [0.3, 0.4] and sound.notes() == []


def test_rate_that_changes_with_every_frame_is_refused() -> None:
    sound = PlacedSound(10)
    with pytest.raises(DatasetError, match="its sound changes its rate more than 16 times"):
        for number in range(100):
            sound.add(frame(0.1 * number, 0.1, 0.1, 16_000 + number))
