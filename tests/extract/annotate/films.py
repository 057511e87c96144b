"""Films of a yellow box that moves to the right over plain grounds, which change at each cut."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 160, 96
GROUNDS = ((30, 60, 140), (150, 80, 20), (40, 130, 60), (90, 30, 110))
SPEED = 8.0  # px per second


def box_at(time_s: float) -> tuple[float, float, float, float]:
    """Where the box is."""
    left = 10.0 + int(SPEED * time_s)
    return left, 20.0, left + 30.0, 60.0


def picture_at(time_s: float, cuts_s: Sequence[float]) -> np.ndarray:
    """The picture at a time."""
    ground = GROUNDS[sum(time_s >= cut_s for cut_s in cuts_s) % len(GROUNDS)]
    pixels = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
    x0, y0, x1, y1 = (int(value) for value in box_at(time_s))
    pixels[y0:y1, x0:x1] = (220, 200, 40)
    return pixels


def write_film(
    path: Path, cuts_s: Sequence[float] = (), fps: int = 12, seconds: float = 10.0, rate_hz: int = 44_100,
    channels: int = 2,
) -> Path:  # fmt: skip
    """Writes a film with PCM sound, whose channels are constants of 0.25 and -0.5 that change sign each second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt, video.bit_rate = WIDTH, HEIGHT, "yuv420p", 4_000_000
        video.codec_context.thread_count = 1
        sound = None
        if channels:
            layout = "stereo" if channels == 2 else "mono"
            sound = container.add_stream("pcm_s16le", rate=rate_hz, layout=layout)
        for number in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(picture_at(number / fps, cuts_s), format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            samples = sound_of(seconds, rate_hz, channels)
            for start in range(0, len(samples), 4096):
                part = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[start : start + 4096].reshape(1, -1)),
                                                  format="s16", layout=layout)  # fmt: skip
                part.sample_rate, part.pts = rate_hz, start
                container.mux(sound.encode(part))
            container.mux(sound.encode())
    return path


def sound_of(seconds: float, rate_hz: int, channels: int) -> np.ndarray:
    """The samples of a film."""
    second = np.arange(round(seconds * rate_hz)) // rate_hz
    sign = np.where(second % 2 == 0, 1, -1)
    return np.stack([sign * value for value in (8192, -16384)[:channels]], axis=1).astype(np.int16)
