"""`refavs.load(run)`: the objects that expressions refer to, in frames and sound of any length."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from experiments.predict.stages import Stages
from experiments.predict.stored_features import StoredFeatures
from experiments.predict.trained_run import TrainedRun, checkpoint_of
from extract.media.clip import Media
from extract.media.film_stream import Block, FilmStream, Span
from extract.media.pictures import fitted
from extract.media.wav import at_sample_rate
from refavs.choices import Device
from refavs.data.prefetch import Ahead
from refavs.errors import ConfigError
from refavs.finite import require_finite_probs
from refavs.machine.accelerator import local_gpus_seen
from refavs.steps import exact_rate, refuse_rate
from refavs.terminal.printing import warn

AT_ONCE = 8  # expressions per batch of the head
TEXTS_AT_ONCE = 64  # of the text encoder
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """What was found for one expression in some pictures of a video.

    Attributes:
        expression: its place among those given.
        steps: numbers of the pictures, from 0 at the start of the video or of the part of it.
        masks: at the size of the video.
        object_probability: see `Segmentation`.
    """

    expression: int
    steps: Int[np.ndarray, " k"]
    masks: Bool[np.ndarray, "k h w"]
    object_probability: Float[np.ndarray, " k"]


class VideoPass:
    """One pass of a head over a video of the frame rate of training; keeps what the head remembers for each expression.

    Args:
        words: the features of each expression.
        memory: how many earlier seconds a head with a memory looks back on.
    """

    def __init__(
        self, run: TrainedRun, expressions: Sequence[str], words: Sequence[Mapping[str, np.ndarray]],
        memory: Memory = "all",
    ) -> None:  # fmt: skip
        self._run = run
        self._window = None if memory == "all" else max(1, round(int(memory) * run.streams.steps.rate))
        starts = range(0, len(expressions), AT_ONCE)
        self._groups = [(expressions[start : start + AT_ONCE], words[start : start + AT_ONCE]) for start in starts]
        self._past: list[Any] = [None] * len(self._groups)

    @torch.no_grad()
    def next(
        self, clip: Mapping[str, np.ndarray], num_steps: int, stages: Stages
    ) -> Iterator[Float[Tensor, "t h w"]]:
        """Yields the probabilities of each expression in the next steps, at the size of the masks of training.

        Consume all of it before the next call.

        Args:
            clip: the features of the steps; of as many as the clips of training, or only of the video's if the head
                remembers.
            num_steps: how many of them are the video's; fewer than in training only in the last call.

        Raises:
            StatisticsError: the head computes probabilities that are not finite.
        """
        size = self._run.mask_shape
        for number, (texts, words) in enumerate(self._groups):
            with stages("head"):
                batch = self._run.batch(clip, texts, words)
                output, self._past[number] = self._run.model.next_piece(batch, self._past[number], self._window)
                probs = self._run.model.probs(output, size)[:, :num_steps].cpu()
            require_finite_probs(repr(texts[0]), probs.isfinite().all())
            for one in probs:
                yield one.clone()  # releases the rest of the batch


class Segmenter:
    """A trained run that segments the objects which expressions refer to.

    Attributes:
        run: the head and its encoders.
    """

    def __init__(self, run: TrainedRun) -> None:
        self.run = run

    @property
    def fps(self) -> float:
        """The frame rate of training."""
        return self.run.streams.steps.fps

    def segment(
        self, frames: UInt8[np.ndarray, "n h w 3"], waveform: Float[np.ndarray, " s"], expressions: Sequence[str], *,
        sample_rate: int = 16_000, frames_per_second: float | None = None, memory: Memory = "all",
    ) -> list[Segmentation]:  # fmt: skip
        """Segments one object per expression in frames that lie in memory.

        Args:
            frames: RGB in 0..255, evenly spaced, the first at 0 s.
            waveform: mono, full scale 1, from 0 s on; a shorter one than the frames is followed by silence.
            expressions: sentences, such as "the object making a sound before the man".
            sample_rate: of the waveform, Hz.
            frames_per_second: of `frames`; None for that of training.
            memory: how many earlier seconds a head with a memory looks back on.

        Raises:
            ConfigError: no frames, an empty expression, or a number out of range.
            DatasetError: the waveform has values that are not numbers or far beyond full scale.
        """
        rate = self.fps if frames_per_second is None else frames_per_second
        refuse_unusable(expressions, rate, memory)
        if not len(frames):
            raise ConfigError("frames is empty; pass at least one frame")
        _, height, width, _ = frames.shape
        masks = np.zeros((len(expressions), len(frames), height, width), np.bool_)
        highest = np.zeros((len(expressions), len(frames)), np.float32)
        blocks = self._blocks(frames, waveform, sample_rate, rate)
        for one in self._stretches(blocks, expressions, rate, memory, (height, width), Stages()):
            masks[one.expression, one.steps] = one.masks
            highest[one.expression, one.steps] = one.object_probability
        return [Segmentation(expression=text, masks=masks[number], object_probability=highest[number],
                             truncated=self.run.is_cut(text)) for number, text in enumerate(expressions)]  # fmt: skip

    def segment_video(
        self, video: FilmStream | Path, expressions: Sequence[str], *, memory: Memory = "all",
        stages: Stages | None = None, stored: StoredFeatures | None = None,
    ) -> Iterator[Stretch]:  # fmt: skip
        """Segments one object per expression in a video of any length, in constant memory.

        Yields block by block what was found for each expression. At a multiple of the rate of training, a block of
        pictures comes in several parts.

        Args:
            video: a file, sampled at the frame rate of training, or a `FilmStream` with its own span and rate.
            expressions: see `segment`.
            memory: see `segment`.
            stages: counts the time that each stage takes.
            stored: a store whose features of the first seconds are used if it has the video.

        Raises:
            ConfigError: an empty expression, or a number out of range.
            DatasetError: the video is damaged or cut off.
        """
        film = video if isinstance(video, FilmStream) else FilmStream(video, Span(rate=self.fps))
        refuse_unusable(expressions, film.span.rate, memory)
        stages = stages or Stages()
        blocks = Ahead(film.blocks(self._block_length(film.span.rate), *self.run.streams.inputs()))
        whole = film.span.start_s == 0 and film.span.rate == self.fps
        known = stored.of(film.path) if stored is not None and whole else None
        yield from self._stretches(
            stages.each("wait for pictures", blocks), expressions, film.span.rate, memory, film.size, stages, known
        )

    def _stretches(
        self, blocks: Iterable[Block], expressions: Sequence[str], rate: float, memory: Memory,
        size: tuple[int, int], stages: Stages, known: Mapping[str, np.ndarray] | None = None,
    ) -> Iterator[Stretch]:  # fmt: skip
        """Segments block by block.

        Heads and encoders expect the frame rate of training. At n times that rate, every n-th picture belongs to one of
        n videos, each with its own memory.

        Args:
            known: the features of the first block.
        """
        with stages("text"):
            starts = range(0, len(expressions), TEXTS_AT_ONCE)
            words = [one for start in starts for one in self.run.words(expressions[start : start + TEXTS_AT_ONCE])]
        passes = [VideoPass(self.run, expressions, words, memory) for _ in range(self._num_passes(rate))]
        for block in blocks:
            for first, one in enumerate(passes[: len(block)]):
                places = np.arange(first, len(block), len(passes))
                with stages("encoders"):
                    clip = self._features(block, places, rate) if block.first or known is None else known
                    clip = self._cut(clip, len(places))
                for number, probs in enumerate(one.next(clip, len(places), stages)):
                    with stages("masks"):
                        found = Stretch(
                            expression=number, steps=block.first + places, masks=masks_of(probs, *size),
                            object_probability=probs.amax(dim=(1, 2)).numpy(),
                        )  # fmt: skip
                    yield found

    def _features(self, block: Block, places: Int[np.ndarray, " k"], rate: float) -> dict[str, np.ndarray]:
        """The features of some pictures of a block, and of the sound that begins with each of them."""
        steps, remembers = self.run.streams.steps, self.run.model.remembers
        repeated = places if remembers else np.pad(places, (0, len(steps) - len(places)), mode="edge")
        sound, heard_s = {}, max(1, steps.time_s(1))
        for rate_hz, whole in block.sound.items():
            sound[rate_hz] = np.zeros(steps.seconds * rate_hz, np.float32)
            for step, place in enumerate(places):
                start, own = round(place / rate * rate_hz), sound[rate_hz][round(steps.time_s(step) * rate_hz) :]
                part = whole[start : start + min(round(heard_s * rate_hz), len(own))]
                own[: len(part)] = part
        frames = {form: pictures[repeated] for form, pictures in block.frames.items()}
        return self.run.features(Media(frames=frames, sound=sound, silent=False))

    def _cut(self, clip: Mapping[str, np.ndarray], num_steps: int) -> Mapping[str, np.ndarray]:
        """The features of the steps that a head reads: if it remembers, only those of the video."""
        return {path: array[:num_steps] for path, array in clip.items()} if self.run.model.remembers else clip

    def _blocks(
        self, frames: UInt8[np.ndarray, "n h w 3"], waveform: Float[np.ndarray, " s"], sample_rate: int, rate: float
    ) -> Iterator[Block]:
        length, (forms, rates_hz) = self._block_length(rate), self.run.streams.inputs()
        sound = {rate_hz: at_sample_rate(waveform, sample_rate, rate_hz) for rate_hz in rates_hz}
        for first in range(0, len(frames), length):
            pictures = [Image.fromarray(frame) for frame in frames[first : first + length]]
            yield Block(
                first=first, is_last=first + length >= len(frames),
                frames={form: np.stack([fitted(picture, form) for picture in pictures]) for form in forms},
                sound={rate_hz: whole[round(first / rate * rate_hz) :] for rate_hz, whole in sound.items()},
            )

    def _block_length(self, rate: float) -> int:
        """Number of pictures computed together: one clip of training for each of the videos that a video is split into.

        Results do not depend on where a video is cut because its blocks are always the same.
        """
        return len(self.run.streams.steps) * self._num_passes(rate)

    def _num_passes(self, rate: float) -> int:
        return math.ceil(exact_rate(rate) / self.run.streams.steps.rate)


def load(
    run: str | Path, *, tracking_uri: str | None = None, weights_dir: str | Path | None = None, device: Device = "auto"
) -> Segmenter:
    """Loads a trained run.

    Args:
        run: a trial's folder, SWEEP/trials/KEY, the id of an MLflow run, or a registered model, models:/NAME@alias.
        tracking_uri: the MLflow server or database; needed unless `run` is a folder or MLFLOW_TRACKING_URI is set.
        weights_dir: the encoders' weights, as for refavs-extract; None for the hub's cache or a download.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Raises:
        ConfigError: there is no such run, or the device cannot be used.
        WeightsError: the checkpoint cannot be used, or these are not the encoders that it was trained with.
    """
    chosen = "cuda" if device != "cpu" and local_gpus_seen(device, warn) else "cpu"
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
    refuse_rate(frames_per_second)
    if memory != "all" and (isinstance(memory, str) or memory < 1):
        raise ConfigError(f"memory is {memory!r}; accepted: all, or a number of seconds from 1 on")
