"""Real containers for tests, written by PyAV: a picture whose brightness tells the second, and a pure tone."""

from fractions import Fraction
from pathlib import Path

import numpy as np

GRAY_STEP = 20
TONE_HZ = 440.0


def gray_of(second: int) -> int:
    """Brightness of every pixel during that second."""
    return 30 + GRAY_STEP * min(second, 11)


def write_video(
    path: Path, *, codec: str = "libx264", sound_codec: str | None = "aac", rate: Fraction | int = 10,
    duration_s: float = 10.0, times_s: list[float] | None = None, size: tuple[int, int] = (64, 96),
    sample_rate_hz: int = 16_000, channels: int = 1, sound_duration_s: float | None = None, rotation: int = 0,
    options: dict[str, str] | None = None, grays_per_s: int = 1,
) -> Path:
    """Writes a container; `times_s` gives each frame's own time, otherwise `rate` does. `size` is (height, width).

    The left half of the picture is the second's gray, the right half is darker, so that a turned picture shows.
    """
    import av

    times = times_s if times_s is not None else [float(i / Fraction(rate)) for i in range(round(duration_s * rate))]
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(codec, rate=rate)
        video.height, video.width = size
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.max_b_frames = 2 if codec == "libx264" else 0
        if rotation:
            video.set_display_rotation(rotation)
        clock = Fraction(1, 90_000) if times_s is not None else 1 / Fraction(rate)
        video.time_base = video.codec_context.time_base = clock
        audio = None
        if sound_codec is not None:
            audio = container.add_stream(sound_codec, rate=sample_rate_hz, layout="stereo" if channels == 2 else "mono")
        for index, time_s in enumerate(times):
            picture = np.full((*size, 3), gray_of(int(time_s * grays_per_s + 1e-6)), np.uint8)
            picture[:, size[1] // 2 :] //= 2
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = round(time_s / clock) if times_s is not None else index
            frame.time_base = clock
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            seconds = duration_s if sound_duration_s is None else sound_duration_s
            for frame in tone(seconds, sample_rate_hz, channels):
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def tone(seconds: float, rate_hz: int, channels: int):
    import av

    samples = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * rate_hz)) / rate_hz)
    for start in range(0, len(samples), 4000):
        part = np.tile((samples[start : start + 4000] * 32767).astype(np.int16), (channels, 1))
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(part.T.reshape(1, -1)), format="s16", layout="stereo" if channels == 2 else "mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        yield frame
