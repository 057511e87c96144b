"""A clip decoded in one form of its frames and one sample rate."""

from dataclasses import dataclass

import numpy as np

from extract.media.clip import read_media as read_media_of
from extract.media.forms import Frames
from refavs.data.layouts import Clip
from refavs.steps import Steps

SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True)
class Media:
    """As of `extract.media.clip.Media`."""

    frames: np.ndarray
    sound: np.ndarray
    silent: bool
    repeated_from_s: int | None
    notes: tuple[str, ...]


def read_media(clip: Clip, seconds: int, size: int) -> Media:
    form = Frames(size=size)
    read = read_media_of(clip, Steps(seconds), [form], [SAMPLE_RATE_HZ])
    return Media(read.frames[form], read.sound[SAMPLE_RATE_HZ], read.silent, read.repeated_from_s, read.notes)
