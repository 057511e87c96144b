"""Videos with known content: grey 40 + 10 k and a tone of 300 + 100 k Hz in second k, in any container.

Two corners of the picture are marked, white at the top left and black at the top right, so that turns and mirrors show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

SIZE = (96, 96)
CORNER = 24


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A picture track: the seconds of its content, and where in the file it begins."""

    codec: str = "libx264"
    rate: Fraction | int = 10
    content: tuple[float, float] = (0, 12)
    late_s: float = 0
    num_frames: int | None = None
    size: tuple[int, int] = SIZE
    b_frames: int = 2
    gop: int = 20
    times_s: Sequence[float] | None = None
    disposition: str | None = None
    strange: bool = False


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound track; one that is `strange` has a tone that is no second's."""

    codec: str = "aac"
    rate_hz: int = 16_000
    layout: str = "mono"
    content: tuple[float, float] = (0, 12)
    late_s: float = 0
    disposition: str | None = None
    strange: bool = False


@dataclass(frozen=True, kw_only=True)
class Subtitles:
    """A track of one line that lasts so long."""

    codec: str
    duration_s: float


@dataclass
class _Packets:
    """Encoded packets by time, so that tracks are interleaved as a recorder does."""

    found: list = field(default_factory=list)

    def add(self, packets: list) -> None:
        self.found += packets

    def in_order(self) -> list:
        def time(packet) -> float:
            return float((packet.pts if packet.dts is None else packet.dts) * packet.time_base)

        return sorted(self.found, key=time)


def picture(second: float, size: tuple[int, int], strange: bool = False) -> np.ndarray:
    """The picture of a second of the content."""
    pixels = np.full((*size, 3), 230 if strange else 40 + 10 * int(second + 1e-6), np.uint8)
    if not strange:
        height, width = size[0] // 4, size[1] // 4
        pixels[:height, :width], pixels[:height, -width:] = 255, 0
    return pixels


def write_film(
    path: Path, tracks: Sequence[Pictures | Sound | Subtitles], *, container_format: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes the tracks in that order."""
    import av
    from av.stream import Disposition

    marked = any(getattr(track, "disposition", None) is not None for track in tracks)
    options = {"default_mode": "passthrough"} | (options or {}) if marked and path.suffix == ".mkv" else options or {}
    packets = _Packets()
    with av.open(str(path), "w", format=container_format, options=options) as container:
        streams = [_stream(container, track) for track in tracks]
        for track, stream in zip(tracks, streams, strict=True):
            if marked and getattr(track, "disposition", None) is not None:
                stream.disposition = Disposition[track.disposition] if track.disposition else Disposition(0)
        for track, stream in zip(tracks, streams, strict=True):
            if isinstance(track, Subtitles):
                packet = av.Packet(b"\0\4once" if track.codec == "mov_text" else b"once")
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 1000)
                packet.duration = round(1000 * track.duration_s)
                packets.add([packet])
                continue
            frames = _pictures(track) if isinstance(track, Pictures) else _sounds(track, stream)
            for frame in frames:
                packets.add(stream.encode(frame))
            packets.add(stream.encode())
        for packet in packets.in_order():
            container.mux(packet)
    return path


def _stream(container, track):
    if isinstance(track, Subtitles):
        return container.add_mux_stream(track.codec)
    if isinstance(track, Sound):
        return container.add_stream(track.codec, rate=track.rate_hz, layout=track.layout)
    stream = container.add_stream(track.codec, rate=track.rate)
    stream.height, stream.width = track.size
    stream.pix_fmt = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le", "png": "rgb24"}.get(track.codec, "yuv420p")
    context = stream.codec_context
    context.thread_count, context.gop_size = 1, track.gop
    if track.codec in ("libx264", "libx265", "mpeg4", "mpeg2video"):
        context.max_b_frames = track.b_frames
    if track.times_s is not None:
        stream.time_base = context.time_base = Fraction(1, 90_000)
    context.options = {"libx265": {"x265-params": "log-level=none"}, "libx264": {"crf": "12"}}.get(track.codec, {})
    if track.codec in ("mjpeg", "mpeg4", "mpeg2video", "libvpx"):
        stream.bit_rate = 2_000_000
    return stream


def _pictures(track: Pictures) -> Iterator:
    import av

    first, last = track.content
    step = 1 / Fraction(track.rate)
    number = round((last - first) / step) if track.num_frames is None else track.num_frames
    times = [float(index * step) for index in range(number)] if track.times_s is None else track.times_s
    clock = step if track.times_s is None else Fraction(1, 90_000)
    for index, time_s in enumerate(times):
        frame = av.VideoFrame.from_ndarray(picture(first + time_s, track.size, track.strange), format="rgb24")
        frame.pts = (index if track.times_s is None else round(time_s / clock)) + round(track.late_s / clock)
        frame.time_base = clock
        yield frame


def tone(first_s: float, last_s: float, rate_hz: int, strange: bool = False) -> np.ndarray:
    """Samples of the tones of these seconds."""
    time_s = first_s + np.arange(round((last_s - first_s) * rate_hz)) / rate_hz
    hertz = 3700.0 if strange else 300 + 100 * np.floor(time_s + 1e-9)
    return (0.5 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def _sounds(track: Sound, stream) -> Iterator:
    import av

    samples = tone(*track.content, track.rate_hz, track.strange)
    channels = av.AudioLayout(track.layout).nb_channels
    step = stream.codec_context.frame_size or 1024
    for start in range(0, len(samples), step):
        part = np.tile((samples[start : start + step] * 32767).astype(np.int16)[:, None], (1, channels))
        frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format="s16", layout=track.layout)
        frame.sample_rate, frame.time_base = track.rate_hz, Fraction(1, track.rate_hz)
        frame.pts = start + round(track.late_s * track.rate_hz)
        yield frame
