"""The sound of a track on the clock of its file, while it is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from einops import reduce
from jaxtyping import Float

from extract.sound import MISSING_SOUND_S, SAMPLE_RATE_HZ, at_sample_rate, refuse_rate

if TYPE_CHECKING:
    import av
    from av.audio.resampler import AudioResampler

# A sound track this far behind the picture has ended; the rest of a long video need not be read to learn that.
SEARCH_SOUND_S = 30.0
# Time stamps are rounded to the container's clock; only a real gap moves the samples.
_ROUNDING_S = 0.02


@dataclass
class _Run:
    """Blocks of one rate that follow each other."""

    start_s: float
    rate_hz: int
    blocks: list[Float[np.ndarray, " s"]] = field(default_factory=list)
    num_samples: int = 0

    @property
    def end_s(self) -> float:
        return self.start_s + self.num_samples / self.rate_hz

    def add(self, mono: Float[np.ndarray, " s"]) -> None:
        self.blocks.append(mono)
        self.num_samples += len(mono)


class PlacedSound:
    """Collects the frames of a sound track; layout, rate and sample format may change from one to the next.

    Args:
        num_seconds: to be kept from the start of the clock on.
    """

    def __init__(self, num_seconds: int) -> None:
        self._num_seconds = num_seconds
        self._runs: list[_Run] = []
        self._end_s = 0.0
        self._held_s = 0.0
        self._form: tuple[str, str, int] | None = None
        self._to_float: AudioResampler | None = None
        self.varies = False

    def add(self, frame: "av.AudioFrame") -> None:
        """Takes a decoded frame, whose time stamp is on the clock; without one it follows the frame before it."""
        refuse_rate(frame.sample_rate)
        mono = self._mono(frame)
        stamp = frame.pts if frame.pts is not None else frame.dts
        start_s = self._end_s if stamp is None or frame.time_base is None else float(stamp * frame.time_base)
        if abs(start_s - self._end_s) <= _ROUNDING_S and self._runs:
            start_s = self._end_s
        length_s = len(mono) / frame.sample_rate
        self._end_s, self._held_s = start_s + length_s, self._held_s + length_s
        if self._end_s <= 0 or start_s >= self._num_seconds + 1:  # a second more, for the resampler's filter
            return
        last = self._runs[-1] if self._runs else None
        if last is None or last.rate_hz != frame.sample_rate or last.end_s != start_s:
            last = _Run(start_s, frame.sample_rate)
            self._runs.append(last)
        last.add(mono)
        self._end_s = last.end_s

    @property
    def complete(self) -> bool:
        """Whether every second that is asked for has its samples, or more are held than can belong to them."""
        return self._end_s >= self._num_seconds or self._held_s > self._num_seconds + SEARCH_SOUND_S

    def finish(self) -> Float[np.ndarray, " s"]:
        """The seconds asked for, mono at 16 kHz."""
        placed = np.zeros(self._num_seconds * SAMPLE_RATE_HZ, np.float32)
        for run in self._runs:
            samples = at_sample_rate(np.concatenate(run.blocks), run.rate_hz)
            start = round(run.start_s * SAMPLE_RATE_HZ)
            first, stop = max(start, 0), min(start + len(samples), len(placed))
            if first < stop:
                placed[first:stop] = samples[first - start : stop - start]
        return placed

    def notes(self) -> list[str]:
        """Where silence stands in for sound, and whether the sound changed its form."""
        notes = ["sound_varies"] if self.varies else []
        reached_s = 0.0
        for number, run in enumerate(self._runs):
            if run.start_s - reached_s > MISSING_SOUND_S and reached_s < self._num_seconds:
                notes.append("sound_gap" if number else "sound_late")
            reached_s = max(reached_s, run.end_s)
        if self._num_seconds - reached_s > MISSING_SOUND_S:
            notes.append("sound_short")
        return list(dict.fromkeys(notes))

    def _mono(self, frame: "av.AudioFrame") -> Float[np.ndarray, " s"]:
        from av.audio.resampler import AudioResampler

        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form or self._to_float is None:
            self.varies |= self._form is not None
            # Packed, for PyAV reads beyond the end of a planar frame of eight channels or more and brings the process
            # down.
            self._form, self._to_float = form, AudioResampler(format="flt")
        return _mean(self._to_float.resample(frame))


def _mean(frames: "Sequence[av.AudioFrame]") -> Float[np.ndarray, " s"]:
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number is found when the sound is complete
        parts = [reduce(frame.to_ndarray(), "1 (s c) -> s", "mean", c=frame.layout.nb_channels) for frame in frames]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
