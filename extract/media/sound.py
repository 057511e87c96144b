"""Places the sound of a track on its file's clock while it is decoded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import av
import numpy as np
from av.audio.resampler import AudioResampler
from einops import rearrange
from jaxtyping import Float

from extract.media.wav import MISSING_SOUND_S, at_sample_rate, refuse_rate
from refavs.errors import DatasetError

# Without sound for this long, the track counts as ended, and the rest of a long video is not read.
SEARCH_SOUND_S = 30.0
# Every change of rate takes a filter of its own; a splice makes one change.
_MOST_RATES = 16
# Samples before and after an interval, for the resampler's filter.
_MARGIN_S = 1.0
# Smaller differences come from time stamps rounded to the container's clock, and move no samples.
_ROUNDING_S = 0.02


@dataclass
class _Piece:
    """Blocks of one rate, each with its start in seconds, and the earliest start of any block."""

    rate_hz: int
    first_s: float = math.inf
    blocks: list[tuple[float, Float[np.ndarray, " s"]]] = field(default_factory=list)

    def add(self, start_s: float, mono: Float[np.ndarray, " s"]) -> None:
        self.blocks.append((start_s, mono))
        self.first_s = min(self.first_s, start_s)

    def at(self, wanted_hz: int, from_s: float, until_s: float) -> tuple[int, Float[np.ndarray, " s"]]:
        """The samples of an interval at a rate, silence between blocks, and the place of the first on the clock.

        It starts a whole number of seconds into the piece, where samples of both rates coincide.
        """
        skipped = max(0, math.floor(from_s - self.first_s))
        start_s = self.first_s + skipped
        end_s = min(until_s, max((start_s + len(mono) / self.rate_hz for start_s, mono in self.blocks), default=0.0))
        samples = np.zeros(max(0, math.ceil((end_s - start_s) * self.rate_hz)), np.float32)
        for block_s, mono in self.blocks:
            place = round((block_s - start_s) * self.rate_hz)
            kept = mono[max(0, -place) : max(0, len(samples) - place)]
            samples[max(0, place) : max(0, place) + len(kept)] = kept
        return round(self.first_s * wanted_hz) + skipped * wanted_hz, at_sample_rate(samples, self.rate_hz, wanted_hz)


class PlacedSound:
    """Collects the frames of a sound track; layout, rate and sample format may change between frames.

    Args:
        num_seconds: seconds to keep from the start of the clock; infinite for a stream, which `forget` shortens.
        start_s: the first second that is wanted.
        channel: the channel to keep; None for the mean of all.
    """

    def __init__(self, num_seconds: float, start_s: float = 0.0, channel: int | None = None) -> None:
        self._num_seconds, self._channel = num_seconds, channel
        self._pieces: list[_Piece] = []
        self._end_s = self._reached_s = start_s
        self._held_s = 0.0
        self._form: tuple[str, str, int] | None = None
        self._to_float: AudioResampler | None = None
        self._notes: list[str] = []

    def add(self, frame: av.AudioFrame) -> None:
        """Takes a decoded frame with its time stamp on the clock; without one it follows the previous frame.

        Raises:
            DatasetError: its rate is not plausible for sound, or the rate changed too often.
        """
        refuse_rate(frame.sample_rate)
        mono = self._mono(frame)
        stamp = frame.pts if frame.pts is not None else frame.dts
        start_s = self._end_s if stamp is None or frame.time_base is None else float(stamp * frame.time_base)
        if abs(start_s - self._end_s) <= _ROUNDING_S and self._pieces:
            start_s = self._end_s
        length_s = len(mono) / frame.sample_rate
        self._end_s, self._held_s = start_s + length_s, self._held_s + length_s
        if self._end_s <= 0 or start_s >= self._num_seconds + _MARGIN_S:
            return
        if start_s - self._reached_s > MISSING_SOUND_S and self._reached_s < self._num_seconds:
            self._notes.append("sound_gap" if self._pieces else "sound_late")
        self._reached_s = max(self._reached_s, self._end_s)
        if not self._pieces or self._pieces[-1].rate_hz != frame.sample_rate:
            self._pieces.append(_Piece(frame.sample_rate))
            if len(self._pieces) > _MOST_RATES:
                raise DatasetError(f"its sound changes its rate more than {_MOST_RATES} times")
        self._pieces[-1].add(start_s, mono)

    @property
    def complete(self) -> bool:
        """Whether the wanted seconds have ended, or more samples came than can belong to them."""
        return self._end_s >= self._num_seconds or self._held_s > self._num_seconds + SEARCH_SOUND_S

    def reached(self, time_s: float) -> bool:
        """Whether the samples before `time_s` are there, with those that the resampler's filter reads after it."""
        return self._end_s >= time_s + _MARGIN_S

    def finish(self, rate_hz: int) -> Float[np.ndarray, " s"]:
        """The seconds asked for, mono at a sample rate."""
        return self.between(0, round(self._num_seconds * rate_hz), rate_hz)

    def between(self, start: int, stop: int, rate_hz: int) -> Float[np.ndarray, " s"]:
        """Samples `start` to `stop` of the clock, mono at a sample rate; silence where there are none."""
        placed = np.zeros(stop - start, np.float32)
        for piece in self._pieces:
            at, samples = piece.at(rate_hz, start / rate_hz - _MARGIN_S, stop / rate_hz + _MARGIN_S)
            first, last = max(at, start), min(at + len(samples), stop)
            if first < last:
                placed[first - start : last - start] = samples[first - at : last - at]
        return placed

    def forget(self, before_s: float) -> None:
        """Frees the samples that no interval from `before_s` on reads."""
        for piece in self._pieces:
            piece.blocks = [(start_s, mono) for start_s, mono in piece.blocks
                            if start_s + len(mono) / piece.rate_hz > before_s - 2 * _MARGIN_S]  # fmt: skip

    def notes(self, end_s: float | None = None) -> list[str]:
        """Oddities of the sound up to a time, as keys of `extract.media.notes.NOTES`."""
        is_short = (self._num_seconds if end_s is None else end_s) - self._reached_s > MISSING_SOUND_S
        return list(dict.fromkeys(self._notes + ["sound_short"] * is_short))

    def _mono(self, frame: av.AudioFrame) -> Float[np.ndarray, " s"]:
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form or self._to_float is None:
            if self._form is not None:
                self._notes.append("sound_varies")
            # Packed: for planar frames of eight or more channels PyAV reads beyond the end and crashes the process.
            self._form, self._to_float = form, AudioResampler(format="flt")
        return _one_channel(self._to_float.resample(frame), self._channel)


def _one_channel(frames: Sequence[av.AudioFrame], channel: int | None) -> Float[np.ndarray, " s"]:
    """A channel, the last one where a frame has fewer, or the mean of all."""
    whole = [rearrange(frame.to_ndarray(), "1 (s c) -> s c", c=frame.layout.nb_channels) for frame in frames]
    with np.errstate(invalid="ignore", over="ignore"):  # NaN is refused once the sound is complete
        parts = [each.mean(axis=1) if channel is None else each[:, min(channel, each.shape[1] - 1)] for each in whole]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
