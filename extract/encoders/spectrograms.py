"""Log-mel spectrograms, the front ends of the audio encoders; computed in float64, so that they are exact everywhere.

Each takes a sound at full scale 1 and gives frames by mel bands, as the front end of that name in transformers does.
"""

import warnings
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float

from refavs.machine.torchvision_shim import ensure_torchvision

RATE_HZ = 16_000
FRAME, HOP, FFT = 400, 160, 512  # 25 ms every 10 ms
FRAMES_PER_S = RATE_HZ // HOP
KALDI_FLOOR = 1.192092955078125e-07
PREEMPHASIS = 0.97
MelScale = Literal["htk", "kaldi", "slaney"]


def kaldi_fbank(
    sound: Float[np.ndarray, " s"], num_bands: int, window: Literal["hann", "povey"] = "hann"
) -> Float[np.ndarray, "frame band"]:
    """Kaldi's filter banks of a 16 kHz sound, without dither, energy or padding: 998 frames of 10 s.

    The scale of the sound shifts every value, so the caller must give the one that its network was trained on.
    """
    frames = _frames(sound, FRAME, HOP)
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    filters = mel_filters(FFT, num_bands, 20.0, RATE_HZ / 2, RATE_HZ, "kaldi")
    power = _power((frames - PREEMPHASIS * before) * _window(FRAME, window, periodic=False), FFT)
    return np.log(np.maximum(power @ filters, KALDI_FLOOR)).astype(np.float32)


def centred_log10_mel(
    sound: Float[np.ndarray, " s"], fft: int, hop: int, filters: Float[np.ndarray, "bin band"]
) -> Float[np.ndarray, "frame band"]:
    """The base-10 logarithm of the mel power of frames centred at every `hop` samples; the ends are mirrored."""
    frames = _frames(np.pad(sound, fft // 2, mode="reflect"), fft, hop)
    power = _power(frames * _window(fft, "hann", periodic=True), fft)
    return np.log10(np.maximum(power @ filters, 1e-10)).astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(
    fft: int, num_bands: int, lowest_hz: float, highest_hz: float, rate_hz: int, scale: MelScale
) -> Float[np.ndarray, "bin band"]:
    """Triangular filters, those of Slaney of equal area."""
    ensure_torchvision()
    from transformers.audio_utils import mel_filter_bank

    with warnings.catch_warnings():  # of 128 bands some are narrower than a bin, as they were in the training
        warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
        return mel_filter_bank(
            num_frequency_bins=fft // 2 + 1, num_mel_filters=num_bands, min_frequency=lowest_hz,
            max_frequency=highest_hz, sampling_rate=rate_hz, norm="slaney" if scale == "slaney" else None,
            mel_scale=scale, triangularize_in_mel_space=scale == "kaldi",
        )  # fmt: skip


def tiled(sound: Float[np.ndarray, "s *c"], length: int) -> Float[np.ndarray, "n *c"]:
    """A sound, or a spectrogram, repeated up to `length`, and cut there."""
    return np.concatenate([sound] * -(-length // len(sound)))[:length]


def thirds(mel: Float[np.ndarray, "frame band"], length: int) -> list[Float[np.ndarray, "n band"]]:
    """Three crops of a longer spectrogram: the middle one of those that start in its first, second and last third.

    Differs: the networks were trained on random crops, from which no feature could be reproduced.
    """
    starts = np.array_split(np.arange(len(mel) - length + 1), 3)
    middles = [int(part[len(part) // 2]) if len(part) else 0 for part in starts]
    return [mel[start : start + length] for start in middles]


def pieces(sound: Float[np.ndarray, " s"], length: int) -> list[Float[np.ndarray, " n"]]:
    """A sound in pieces of equal length; the last one may be shorter."""
    return [sound[start : start + length] for start in range(0, len(sound), length)]


def _frames(sound: Float[np.ndarray, " s"], length: int, hop: int) -> Float[np.ndarray, "frame n"]:
    return np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), length)[::hop]


def _power(frames: Float[np.ndarray, "frame n"], fft: int) -> Float[np.ndarray, "frame bin"]:
    spectrum = np.fft.rfft(frames, fft)
    return spectrum.real**2 + spectrum.imag**2


@lru_cache(maxsize=8)
def _window(length: int, name: Literal["hann", "povey"], periodic: bool) -> Float[np.ndarray, " n"]:
    hann = np.hanning(length + periodic)[:length]
    return hann**0.85 if name == "povey" else hann
