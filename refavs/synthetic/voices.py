"""Sounds of the synthetic benchmark: a voice per category, and when and how loudly each object of a clip sounds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int16

from refavs.synthetic.scene import DURATION_S

SAMPLE_RATE_HZ = 16_000

_LEVEL = 0.13  # root mean square of a voice at gain 1, full scale = 1
_FADE_S = 0.01
_HIGHEST_HZ = 7_500
_DETUNE = 0.03  # largest relative change of a pitch from clip to clip

Wave = Float[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class SoundSchedule:
    """When and how loudly one object sounds: from `on_s` to `off_s`, with a gain that is linear in decibels.

    Attributes:
        gain_from: gain at second 0, in (0, 1].
        gain_to: gain at the end of the clip.
    """

    on_s: float = 0.0
    off_s: float = DURATION_S
    gain_from: float = 1.0
    gain_to: float = 1.0

    @property
    def duration_s(self) -> float:
        return self.off_s - self.on_s


def synthesise(sounding: Sequence[tuple[str, SoundSchedule]], rng: np.random.Generator) -> Int16[np.ndarray, " n"]:
    """Mixes the voices of the given categories into one 10 s mono track.

    Args:
        sounding: category and schedule of each sounding object; none gives silence.
        rng: decides small deviations of pitch, and the noise.
    """
    time_s = np.arange(round(DURATION_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    mix = np.zeros_like(time_s)
    for category, schedule in sounding:
        tuning = 1 + float(rng.uniform(-_DETUNE, _DETUNE))
        wave = VOICES[category](time_s, tuning, rng)
        mix += wave / np.sqrt(np.mean(wave**2)) * _LEVEL * _envelope(schedule, time_s)
    return np.round(np.clip(mix, -1, 1) * 32767).astype(np.int16)


def _envelope(schedule: SoundSchedule, time_s: Wave) -> Wave:
    rise = math.log(schedule.gain_to / schedule.gain_from) / DURATION_S
    fade = np.clip(np.minimum(time_s - schedule.on_s, schedule.off_s - time_s) / _FADE_S, 0, 1)
    return schedule.gain_from * np.exp(rise * time_s) * fade


def _harmonics(time_s: Wave, pitch_hz: float, amplitudes: Mapping[int, float]) -> Wave:
    wave = np.zeros_like(time_s)
    for order, amplitude in amplitudes.items():
        if order * pitch_hz < _HIGHEST_HZ:
            wave += amplitude * np.sin(2 * math.pi * order * pitch_hz * time_s)
    return wave


def _noise(time_s: Wave, low_hz: float, high_hz: float, rng: np.random.Generator) -> Wave:
    spectrum = np.fft.rfft(rng.standard_normal(len(time_s)))
    frequency = np.fft.rfftfreq(len(time_s), 1 / SAMPLE_RATE_HZ)
    return np.fft.irfft(spectrum * ((frequency > low_hz) & (frequency < high_hz)), len(time_s))


# All objects of a category sound alike, so a voice identifies its object.
VOICES: dict[str, Callable[[Wave, float, np.random.Generator], Wave]] = {
    "disc": lambda time_s, tuning, rng: _harmonics(time_s, 220 * tuning, {1: 1.0, 2: 0.1}),  # hum
    "square": lambda time_s, tuning, rng: _harmonics(time_s, 440 * tuning, {n: 1 / n for n in range(1, 16, 2)}),  # reed
    "triangle": lambda time_s, tuning, rng: _harmonics(time_s, 880 * tuning, {n: 1 / n for n in range(1, 8)}),  # string
    "star": lambda time_s, tuning, rng: _noise(time_s, 2_600 * tuning, 4_000 * tuning, rng),  # hiss
    "ring": lambda time_s, tuning, rng: (  # beat
        _harmonics(time_s, 620 * tuning, {1: 1.0}) + _harmonics(time_s, 626 * tuning, {1: 1.0})
    ),
    "diamond": lambda time_s, tuning, rng: (  # warble
        np.sin(2 * math.pi * 1_500 * tuning * time_s + 12 * np.sin(2 * math.pi * 5 * time_s))
    ),
    "cross": lambda time_s, tuning, rng: _noise(time_s, 90 * tuning, 170 * tuning, rng),  # rumble
}


def single(rng: np.random.Generator, num_objects: int) -> list[SoundSchedule | None]:
    """One object sounds."""
    return _pad([_steady(float(rng.uniform(0.5, 1)))], num_objects)


def loudness(rng: np.random.Generator, num_objects: int) -> list[SoundSchedule | None]:
    """Two or three objects sound throughout, each clearly louder than the next."""
    gains = [1.0, 0.3, 0.09] if num_objects > 2 and rng.random() < 0.4 else [1.0, float(rng.uniform(0.1, 0.25))]
    scale = float(rng.uniform(0.7, 1))
    return _pad([_steady(gain * scale) for gain in gains], num_objects)


def starts(rng: np.random.Generator, num_objects: int) -> list[SoundSchedule | None]:
    """One object sounds from the start, a second joins, and often a third."""
    times = _moments(rng, num_objects)
    return _pad([_steady(_gain(rng)), *(_steady(_gain(rng), on_s=time_s) for time_s in times)], num_objects)


def stops(rng: np.random.Generator, num_objects: int) -> list[SoundSchedule | None]:
    """Two or three objects sound from the start, and all but one fall silent one after the other."""
    times = _moments(rng, num_objects)
    return _pad([_steady(_gain(rng)), *(_steady(_gain(rng), off_s=time_s) for time_s in times)], num_objects)


def ramps(rng: np.random.Generator, num_objects: int) -> list[SoundSchedule | None]:
    """One object gets louder, one quieter, and often a third does neither."""
    low = rng.uniform(0.08, 0.15, 2)
    moving = [SoundSchedule(gain_from=float(low[0]), gain_to=1.0), SoundSchedule(gain_from=1.0, gain_to=float(low[1]))]
    steady = [_steady(float(rng.uniform(0.25, 0.5)))] if num_objects > 2 and rng.random() < 0.5 else []
    return _pad(moving + steady, num_objects)


# What may be heard in a clip, and its probability. A scenario depends on nothing but the number of objects.
SCENARIOS: dict[str, tuple[Callable[[np.random.Generator, int], list[SoundSchedule | None]], float]] = {
    "single": (single, 0.2),
    "loudness": (loudness, 0.24),
    "starts": (starts, 0.24),
    "stops": (stops, 0.14),
    "ramps": (ramps, 0.18),
}


def draw_scenario(rng: np.random.Generator) -> str:
    """Picks one of `SCENARIOS`."""
    weights = [weight for _, weight in SCENARIOS.values()]
    return list(SCENARIOS)[int(rng.choice(len(weights), p=weights))]


def draw_schedules(rng: np.random.Generator, scenario: str, num_objects: int) -> tuple[SoundSchedule | None, ...]:
    """Draws one schedule per object (None = silent) and assigns them uniformly at random.

    Nothing visible therefore tells which object sounds, or how.
    """
    schedules = SCENARIOS[scenario][0](rng, num_objects)
    return tuple(schedules[index] for index in rng.permutation(num_objects).tolist())


def _steady(gain: float, on_s: float = 0.0, off_s: float = DURATION_S) -> SoundSchedule:
    return SoundSchedule(on_s=on_s, off_s=off_s, gain_from=gain, gain_to=gain)


def _gain(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.5, 1))


def _moments(rng: np.random.Generator, num_objects: int) -> list[float]:
    """When the other voices start or stop: early, so that most seconds follow the deciding moment.

    With a third voice, no temporal sentence about a named object simply means "the other sounding one".
    """
    return [2.0, 4.0] if num_objects > 2 and rng.random() < 0.7 else [float(rng.integers(2, 4))]


def _pad(schedules: Sequence[SoundSchedule], num_objects: int) -> list[SoundSchedule | None]:
    return [*schedules, *[None] * (num_objects - len(schedules))]
