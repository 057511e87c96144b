"""`refavs.load(run)`: the objects that expressions refer to, in frames and sound of any length."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from experiments.predict.trained_run import TrainedRun, checkpoint_of
from extract.media.clip import Media
from extract.media.pictures import fitted
from extract.media.wav import at_sample_rate
from refavs.errors import ConfigError
from refavs.finite import require_finite_probs
from refavs.machine.accelerator import local_gpus_seen

AT_ONCE = 8  # expressions per batch
Memory = int | Literal["all"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """What was found for one expression.

    Attributes:
        masks: the object in each frame, at the size of the frames; all False where it is absent.
        object_probability: of each frame, the highest probability of a pixel to belong to the object.
        truncated: the expression has more tokens than the text encoder takes, and its end was not read.
    """

    expression: str
    masks: Bool[np.ndarray, "n h w"]
    object_probability: Float[np.ndarray, " n"]
    truncated: bool


class VideoPass:
    """One pass of a head over a video of one frame per second; keeps what the head remembers for each expression.

    Args:
        memory: the earlier seconds that a head with a memory compares with: all, or this many.
    """

    def __init__(self, run: TrainedRun, expressions: Sequence[str], memory: Memory = "all") -> None:
        self._run, self._window = run, None if memory == "all" else memory
        self._groups = [expressions[start : start + AT_ONCE] for start in range(0, len(expressions), AT_ONCE)]
        with torch.no_grad():
            self._words = [[run.words(text) for text in texts] for texts in self._groups]
        self._past: list[Any] = [None] * len(self._groups)

    @torch.no_grad()
    def next(self, media: Media, num_seconds: int) -> Iterator[tuple[str, Float[Tensor, "t h w"]]]:
        """Yields each expression with its probabilities in the next seconds, at the size of the masks of training.

        All of it must be consumed before the next call.

        Args:
            media: of as many seconds as the clips of training.
            num_seconds: how many of them are the video's; fewer than all only in the last call.

        Raises:
            WeightsError: the encoders compute features that are not finite.
            StatisticsError: the head computes probabilities that are not finite.
        """
        clip, size = self._run.features(media), (self._run.mask_size,) * 2
        audio = self._run.model.sizes.audio
        if self._run.model.remembers and audio is not None:
            clip[audio.path] = clip[audio.path][:num_seconds]
        for number, (texts, words) in enumerate(zip(self._groups, self._words, strict=True)):
            batch = self._run.batch(clip, texts, words)
            output, self._past[number] = self._run.model.next_piece(batch, self._past[number], self._window)
            probs = self._run.model.probs(output, size)[:, :num_seconds].cpu()
            require_finite_probs(repr(texts[0]), probs.isfinite().all())
            for text, one in zip(texts, probs, strict=True):
                yield text, one.clone()  # releases the rest of the batch


class Segmenter:
    """A trained run that segments the objects which expressions refer to."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run

    def segment(
        self, frames: UInt8[np.ndarray, "n h w 3"], waveform: Float[np.ndarray, " s"], expressions: Sequence[str], *,
        sample_rate: int = 16_000, frames_per_second: float = 1.0, memory: Memory = "all",
    ) -> list[Segmentation]:  # fmt: skip
        """Segments one object per expression in frames that lie in memory.

        Args:
            frames: RGB in 0..255, evenly spaced, the first at 0 s.
            waveform: mono, full scale 1, from 0 s on; a shorter one than the frames is followed by silence.
            expressions: sentences, such as "the object making a sound before the man".
            sample_rate: of the waveform, Hz.
            frames_per_second: of `frames`.
            memory: the earlier seconds that a head with a memory compares a second with: all, or this many.

        Raises:
            ConfigError: no frames, an empty expression, or a number out of range.
            DatasetError: the waveform has values that are not numbers or far beyond full scale.
        """
        refuse_unusable(expressions, frames_per_second, memory)
        if not len(frames):
            raise ConfigError("frames is empty; pass at least one frame")
        _, height, width, _ = frames.shape
        num_passes = math.ceil(frames_per_second)
        passes = [VideoPass(self.run, expressions, memory) for _ in range(min(num_passes, len(frames)))]
        masks = np.zeros((len(expressions), len(frames), height, width), np.bool_)
        highest = np.zeros((len(expressions), len(frames)), np.float32)
        sound = {rate: at_sample_rate(waveform, sample_rate, rate) for rate in self.run.streams.inputs()[1]}
        for first, one in enumerate(passes):
            places = np.arange(first, len(frames), num_passes)
            for start in range(0, len(places), self.run.streams.seconds):
                piece = places[start : start + self.run.streams.seconds]
                media = self._media(frames[piece], sound, piece / frames_per_second)
                for number, (_, probs) in enumerate(one.next(media, len(piece))):
                    masks[number, piece] = masks_of(probs, height, width)
                    highest[number, piece] = probs.amax(dim=(1, 2)).numpy()
        return [Segmentation(expression=text, masks=masks[number], object_probability=highest[number],
                             truncated=self.run.is_cut(text)) for number, text in enumerate(expressions)]  # fmt: skip

    def _media(
        self, frames: UInt8[np.ndarray, "n h w 3"], sound: dict[int, Float[np.ndarray, " s"]],
        times_s: Float[np.ndarray, " n"],
    ) -> Media:  # fmt: skip
        """A piece of a video: frames, and the second of sound that begins with each of them."""
        seconds, forms = self.run.streams.seconds, self.run.streams.inputs()[0]
        pictures = [Image.fromarray(frame) for frame in frames]
        if not self.run.model.remembers:
            pictures += pictures[-1:] * (seconds - len(pictures))
        heard = {}
        for rate_hz, whole in sound.items():
            heard[rate_hz] = np.zeros(seconds * rate_hz, np.float32)
            for second, time_s in enumerate(times_s):
                start = round(time_s * rate_hz)
                part = whole[start : start + rate_hz]
                heard[rate_hz][second * rate_hz : second * rate_hz + len(part)] = part
        return Media(frames={form: np.stack([fitted(picture, form) for picture in pictures]) for form in forms},
                     sound=heard, silent=False)  # fmt: skip


def load(
    run: str | Path, *, tracking_uri: str | None = None, weights_dir: str | Path | None = None, device: str = "auto"
) -> Segmenter:
    """Loads a trained run.

    Args:
        run: a trial's folder, SWEEP/trials/KEY, the id of an MLflow run, or a registered model, models:/NAME@alias.
        tracking_uri: the MLflow server or database; needed unless `run` is a folder.
        weights_dir: the encoders' weights, as for refavs-extract; None for the hub's cache or a download.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Raises:
        ConfigError: there is no such run, or the device cannot be used.
        WeightsError: the checkpoint cannot be used, or these are not the encoders that it was trained with.
    """
    chosen = "cuda" if device != "cpu" and local_gpus_seen(device, lambda line: None) else "cpu"
    folder = checkpoint_of(str(run), tracking_uri)
    return Segmenter(TrainedRun(folder, None if weights_dir is None else Path(weights_dir), chosen))


def masks_of(probs: Float[Tensor, "t h w"], height: int, width: int) -> Bool[np.ndarray, "t height width"]:
    """The pixels that more likely than not belong to the object, at the size of the video."""
    return (torch.nn.functional.interpolate(probs[None], (height, width), mode="bilinear")[0] > 0.5).numpy()


def refuse_unusable(expressions: Sequence[str], frames_per_second: float, memory: Memory) -> None:
    """Checks what users pass.

    Raises:
        ConfigError: no or an empty expression, or a number out of range.
    """
    if not expressions or not all(text.strip() for text in expressions):
        raise ConfigError("an expression is empty; write each sentence in quotes, for example \"the sounding object\"")
    if not 0 < frames_per_second <= 60:
        raise ConfigError(f"{frames_per_second:g} frames per second; accepted: above 0, at most 60")
    if memory != "all" and (isinstance(memory, str) or memory < 1):
        raise ConfigError(f"memory is {memory!r}; accepted: all, or a number of seconds from 1 on")
