"""The steps of a clip as the gallery draws them: an outlined frame, and its part of the waveform."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import contourpy
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from extract.media.clip import frame_size, read_media
from extract.media.forms import Frames
from refavs.data.layouts import find_clip
from refavs.errors import DatasetError
from refavs.store import FeatureStore

HEIGHT = 160  # of a picture in pixels; the width follows from the clip's shape
JPEG_QUALITY = 80
WAVE_WIDTH, WAVE_HEIGHT, WAVE_BINS, WAVE_HZ = 100, 24, 50, 16_000
WIDEST = 2.5  # width of a picture as a multiple of its height
_NEAREST = 1.0  # points of an outline that are closer than this, in pixels, are merged


@dataclass(frozen=True, kw_only=True)
class DrawnStep:
    """One step of a clip.

    Attributes:
        time_s: when it begins.
        picture: the frame as a data URI; empty if missing.
        truth, pred: outlines as SVG path data, in pixels of the picture; empty for an empty mask.
        objects: outlines of the objects of a clip, which differ in colour.
        wave: the audio as SVG path data, `WAVE_WIDTH` by `WAVE_HEIGHT`; empty if it could not be read.
        verdict: e.g. `J 71`, or a word for frames without an object.
    """

    time_s: int | float
    picture: str
    truth: str
    pred: str
    wave: str
    verdict: str
    objects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Footage:
    """A clip's available frames and audio.

    Attributes:
        times_s: when each step begins.
        width: width of a picture in pixels.
        sound: mono at `WAVE_HZ`; None if it could not be read.
        note: text about missing parts.
    """

    times_s: tuple[int | float, ...]
    width: int
    frames: UInt8[np.ndarray, "t h w 3"] | None
    waves: tuple[str, ...]
    sound: Float[np.ndarray, " s"] | None = None
    note: str = ""


def footage_of(store: FeatureStore, clip_id: str) -> Footage:
    """Frames and audio of a clip, if its source is still where it was extracted from; frames are square."""
    clip = find_clip(store.attributes, clip_id)
    times_s = tuple(store.steps.time_s(step) for step in range(len(store.steps)))
    bare = Footage(times_s=times_s, width=HEIGHT, frames=None, waves=("",) * len(times_s))
    if clip is None:
        return _without(bare, f"its media is no longer at {store.attributes.get('source', 'the place of its source')}")
    try:
        size = frame_size(clip)
        shape = 1.0 if size is None else min(max(size[1] / size[0], 1 / WIDEST), WIDEST)
        width = round(HEIGHT * shape)
        form = Frames(size=max(width, HEIGHT))
        media = read_media(clip, store.steps, [form], [WAVE_HZ])
    except DatasetError as error:
        return _without(bare, str(error))
    note = "The clip has no sound track." if media.silent else ""
    sound = media.sound[WAVE_HZ]
    return replace(
        bare, width=width, frames=media.frames[form], waves=_waves(sound, len(times_s)), sound=sound, note=note
    )


def steps_of(
    footage: Footage, pred: Bool[np.ndarray, "t h w"], truth: Bool[np.ndarray, "t h w"], scores: Sequence[float]
) -> tuple[DrawnStep, ...]:
    """A clip's steps with prediction and ground truth.

    Args:
        scores: J of each frame; NaN where it has no label.
    """
    pictures, size = _pictures(footage), (footage.width, HEIGHT)
    return tuple(
        DrawnStep(
            time_s=footage.times_s[number], picture=pictures[number], wave=footage.waves[number],
            truth=outline(truth[number], size), pred=outline(pred[number], size),
            verdict=_verdict(bool(truth[number].any()), bool(pred[number].any()), scores[number]),
        )
        for number in range(len(pred))
    )  # fmt: skip


def steps_with(
    footage: Footage, objects: Sequence[Bool[np.ndarray, "t _ _"]], labelled: Sequence[Bool[np.ndarray, "t"]]
) -> tuple[DrawnStep, ...]:
    """A clip's steps with all of its objects.

    Args:
        labelled: the steps in which the mask of each object is known.
    """
    pictures, size = _pictures(footage), (footage.width, HEIGHT)
    return tuple(
        DrawnStep(
            time_s=footage.times_s[number], picture=pictures[number], wave=footage.waves[number], truth="", pred="",
            verdict="" if all(known[number] for known in labelled) else "no label",
            objects=tuple(outline(masks[number], size) for masks in objects),
        )
        for number in range(len(footage.waves))
    )  # fmt: skip


def _pictures(footage: Footage) -> Sequence[str]:
    if footage.frames is None:
        return [""] * len(footage.waves)
    return [data_uri(frame, footage.width) for frame in footage.frames]


def outline(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> str:
    """The border of a mask as SVG path data in a picture of this width and height; empty for an empty mask."""
    if not mask.any():
        return ""
    lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5)
    scale = np.array([size[0] / mask.shape[1], size[1] / mask.shape[0]])
    # Sample i of the padded mask is the middle of pixel i - 1.
    return "".join(_path((np.asarray(line) - 0.5) * scale) for line in lines)


def wave_path(samples: Float[np.ndarray, " s"], loudest: float) -> str:
    """The envelope of a step's audio as SVG path data: lowest and highest sample of each bin."""
    bins = rearrange(samples[: len(samples) // WAVE_BINS * WAVE_BINS], "(k n) -> k n", k=WAVE_BINS)
    middle = WAVE_HEIGHT / 2
    scale = 0.0 if loudest <= 0 else (middle - 1) / loudest
    high = middle - scale * reduce(bins, "k n -> k", "max")
    low = middle - scale * reduce(bins, "k n -> k", "min")
    # At least half a unit thick, so that silence is a visible line.
    high, low = np.minimum(high, middle - 0.25), np.maximum(low, middle + 0.25)
    xs = np.linspace(0, WAVE_WIDTH, WAVE_BINS)
    there = [f"{x:.0f} {y:.1f}" for x, y in zip(xs, high, strict=True)]
    back = [f"{x:.0f} {y:.1f}" for x, y in zip(xs[::-1], low[::-1], strict=True)]
    return f"M{'L'.join(there + back)}Z"


def data_uri(frame: UInt8[np.ndarray, "h w 3"], width: int) -> str:
    """A frame as a JPEG in a data URI."""
    content = io.BytesIO()
    Image.fromarray(frame).resize((width, HEIGHT)).save(content, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _path(points: Float[np.ndarray, "n 2"]) -> str:
    kept = [points[0]]
    for point in points[1:]:
        if np.abs(point - kept[-1]).max() >= _NEAREST:
            kept.append(point)
    return f"M{'L'.join(f'{x:.1f} {y:.1f}' for x, y in kept)}Z"


def _waves(sound: Float[np.ndarray, " s"], num_steps: int) -> tuple[str, ...]:
    loudest = float(np.abs(sound).max(initial=0.0))
    return tuple(wave_path(part, loudest) for part in np.array_split(sound, num_steps))


def _verdict(there: bool, found: bool, score: float) -> str:
    if math.isnan(score):
        return "no label"
    if there:
        return f"J {100 * score:.0f}" if found else "missed"
    return "false object" if found else "rightly empty"


def _without(bare: Footage, reason: str) -> Footage:
    return replace(bare, note=f"Masks on a plain backdrop, without sound: {reason}")
