"""Three encoders without weights, whose features one can compute by hand."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange, reduce

from extract.encoders.protocol import Encoder, EncoderSetup, Frames, Sound, Text
from refavs.store.format.schema import ArraySpec

NUM_BANDS = 8
NUM_WORDS = 12


class Quarters(Encoder):
    """Sound at 48 kHz: for each quarter of a second, the log energy in eight bands of frequency."""

    name, modality, takes = "quarters-48k", "audio", Sound(rate_hz=48_000)

    def facts(self, level: str) -> Mapping[str, Any]:
        return {"name": self.name, "weights": "none", "precision": "fp32", "preprocessing": "48 kHz, 0.25 s, 8 bands"}

    def arrays(self, seconds: int) -> Mapping[str, Sequence[ArraySpec]]:
        shape = (4 * seconds, NUM_BANDS)
        return {"": [ArraySpec(name="features", shape=shape, dtype="float32", axes=("n", "c"), statistics=True)]}

    def encode(self, batch: Sequence[Any], levels: Sequence[str]) -> Sequence[Mapping[str, np.ndarray]]:
        return [{"features": self._bands(sound)} for sound in batch]

    def _bands(self, sound: np.ndarray) -> np.ndarray:
        quarters = rearrange(sound, "(n s) -> n s", s=self.takes.rate_hz // 4)
        power = np.abs(np.fft.rfft(quarters, axis=1)[:, 1:]) ** 2
        return np.log1p(reduce(power, "n (c f) -> n c", "mean", c=NUM_BANDS)).astype(np.float32)


class Letters(Encoder):
    """Text: how often each letter occurs in each of the first twelve words."""

    name, modality, takes = "letters", "text", Text()

    def facts(self, level: str) -> Mapping[str, Any]:
        return {"name": self.name, "weights": "none", "precision": "fp32", "preprocessing": "lower case, 12 words"}

    def arrays(self, seconds: int) -> Mapping[str, Sequence[ArraySpec]]:
        shape = (NUM_WORDS, len(string.ascii_lowercase))
        return {"": [
            ArraySpec(name="features", shape=shape, dtype="float32", axes=("l", "c"), statistics=True, valid="valid"),
            ArraySpec(name="valid", shape=shape[:1], dtype="bool", axes=("l",)),
        ]}

    def encode(self, batch: Sequence[Any], levels: Sequence[str]) -> Sequence[Mapping[str, np.ndarray]]:
        return [self._counts(text.lower().split()[:NUM_WORDS]) for text in batch]

    def _counts(self, words: Sequence[str]) -> Mapping[str, np.ndarray]:
        counts = np.zeros((NUM_WORDS, len(string.ascii_lowercase)), np.float32)
        counts[: len(words)] = [[word.count(letter) for letter in string.ascii_lowercase] for word in words]
        return {"features": counts, "valid": np.arange(NUM_WORDS) < len(words)}


class Patches(Encoder):
    """Frames: mean and deviation of each colour in patches of 14 pixels, one map at stride 14."""

    name, modality, takes = "patches-14", "visual", Frames(size=112, fit="pad")

    def facts(self, level: str) -> Mapping[str, Any]:
        return {"name": self.name, "weights": "none", "precision": "fp32", "preprocessing": "112 px, padded"}

    def arrays(self, seconds: int) -> Mapping[str, Sequence[ArraySpec]]:
        side = self.takes.size // 14
        return {"": [ArraySpec(name="patches", shape=(seconds, 6, side, side), dtype="float16",
                               axes=("t", "c", "h", "w"), statistics=True)]}  # fmt: skip

    def encode(self, batch: Sequence[Any], levels: Sequence[str]) -> Sequence[Mapping[str, np.ndarray]]:
        return [{"patches": self._moments(frames)} for frames in batch]

    def _moments(self, frames: np.ndarray) -> np.ndarray:
        pixels = rearrange(frames.astype(np.float32) / 255, "t (h y) (w x) c -> t c h w (y x)", y=14, x=14)
        return np.concatenate([pixels.mean(-1), pixels.std(-1)], axis=1).astype(np.float16)


def quarters(setup: EncoderSetup) -> Encoder:
    return Quarters()


def letters(setup: EncoderSetup) -> Encoder:
    return Letters()


def patches(setup: EncoderSetup) -> Encoder:
    return Patches()
