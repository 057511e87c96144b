"""Builders of real files that are bad or merely odd: videos, frames, sounds. Each takes the path to write."""

import os
import socket
import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

GRAY = 130
RATE_HZ = 8000
TONE_HZ = 440.0


def tone(seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def jpeg(gray: int = GRAY, size: int = 32, **settings: object) -> bytes:
    content = BytesIO()
    Image.new("L", (size, size), gray).save(content, "JPEG", quality=95, **settings)
    return content.getvalue()


def declaring(content: bytes, width: int, height: int, bits: int = 8) -> bytes:
    """A JPEG whose header declares another size or precision than its data has."""
    start = content.index(b"\xff\xc0")
    return content[: start + 4] + struct.pack(">BHH", bits, height, width) + content[start + 9 :]


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size and one byte of data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0")),
              (b"IEND", b"")]  # fmt: skip
    written = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
               for kind, body in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


# ---------------------------------------------------------------------------------------------------- videos


def write_packets(
    path: Path, pictures: Iterable[tuple[float, bytes]], *, sound: np.ndarray | None = None,
    sound_codec: str = "pcm_s16le", rate_hz: int = RATE_HZ, layout: str = "mono", codec: str = "mjpeg",
    size: tuple[int, int] = (32, 32), container_format: str | None = None, options: dict[str, str] | None = None,
) -> Path:
    """Writes ready pictures, each with its time in seconds, and sound of shape (samples,) or (samples, channels)."""
    import av

    clock = Fraction(1, 1000)
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        video = container.add_stream(codec, rate=10)
        video.width, video.height = size
        video.pix_fmt = "monob" if codec == "png" else "yuvj420p"
        video.time_base = clock
        audio = None
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=rate_hz, layout=layout)
            audio.format = "flt" if sound_codec == "pcm_f32le" else "s16"
        container.start_encoding()
        for time_s, content in pictures:
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = video, clock, True
            packet.pts = packet.dts = round(time_s * 1000)
            packet.duration = 100
            container.mux(packet)
        if audio is not None and sound is not None:
            _mux_sound(container, audio, sound, sound_codec, rate_hz, layout)
    return path


def _mux_sound(container, audio, sound: np.ndarray, sound_codec: str, rate_hz: int, layout: str) -> None:
    import av

    values = sound if sound_codec == "pcm_f32le" else (sound * 32767).astype(np.int16)
    for start in range(0, len(values), 800):
        part = np.ascontiguousarray(values[start : start + 800].reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(part, format="flt" if part.dtype == np.float32 else "s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        container.mux(audio.encode(frame))
    container.mux(audio.encode())


def every(step_s: float, duration_s: float, start_s: float = 0.0) -> list[tuple[float, bytes]]:
    """A picture each `step_s`, brighter each second."""
    times = np.arange(round(duration_s / step_s)) * step_s
    return [(start_s + float(time_s), jpeg(GRAY + 10 * int(time_s + 1e-9))) for time_s in times]


def good(path: Path, **settings: object) -> Path:
    settings = {"sound": tone(10)} | settings
    return write_packets(path, every(0.5, 10), **settings)  # type: ignore[arg-type]


def mp4(path: Path, **options: str) -> Path:
    """H.264 in MP4, 2 s at 10 frames/s, no sound."""
    import av

    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("libx264", rate=10)
        video.width = video.height = 64
        video.codec_context.thread_count = 1
        for _ in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), GRAY, np.uint8), "rgb24")))
        container.mux(video.encode())
    return path


def patched(path: Path, old: bytes, new: bytes, after: bytes = b"") -> Path:
    """Replaces the first `old` after `after` by as many bytes."""
    content = path.read_bytes()
    place = content.index(old, content.index(after))
    path.write_bytes(content[:place] + new + content[place + len(old) :])
    return path


# For programs that measure themselves. Not getrusage: a process starts with the peak of the one that started it.
PEAK_MB = """
from pathlib import Path
def peak_mb(since_now=False):
    if since_now:
        Path("/proc/self/clear_refs").write_text("5")
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(facts["VmRSS" if since_now else "VmHWM"].split()[0]) / 1024
"""


def empty(path: Path) -> None:
    path.touch()


def page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>\n" * 50)


def truncated(path: Path) -> None:
    mp4(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def playlist(path: Path) -> None:
    """HLS that names a whole video beside it and a file of the system."""
    good(path.with_suffix(".mpg"), codec="mjpeg", container_format="matroska")
    names = f"#EXTINF:10,\n{path.with_suffix('.ts')}\n#EXTINF:10,\nfile:///etc/passwd\n"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n{names}#EXT-X-ENDLIST\n")


def concatenation(path: Path) -> None:
    good(path.with_suffix(".mpg"), container_format="matroska")
    path.write_text(f"ffconcat version 1.0\nfile '{path.with_suffix('.ts').name}'\nfile '/etc/passwd'\n")


def picture_as_video(path: Path) -> None:
    path.write_bytes(jpeg())


def hours_declared(path: Path) -> None:
    """A length of 100 hours in the header, 2 s of picture."""
    write_packets(path, every(0.1, 2), container_format="matroska")
    patched(path, b"\x44\x89\x88" + struct.pack(">d", 2000), b"\x44\x89\x88" + struct.pack(">d", 3.6e8))


def hours_declared_mp4(path: Path) -> None:
    """The same in MP4, whose table of samples tells the truth."""
    mp4(path)
    content = bytearray(path.read_bytes())
    for kind in (b"mvhd", b"mdhd"):
        start = content.index(kind) + 16
        scale = struct.unpack(">I", content[start : start + 4])[0]
        content[start + 4 : start + 8] = struct.pack(">I", min(360_000 * scale, 2**32 - 1))
    path.write_bytes(content)


def samples_declared(path: Path) -> None:
    """A table of a billion samples of one byte each."""
    mp4(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"stsz") + 8
    content[start : start + 8] = struct.pack(">II", 1, 10**9)
    start = content.index(b"stsc") + 12
    content[start : start + 8] = struct.pack(">II", 1, 10**9)
    path.write_bytes(content)


def fragment_declared(path: Path) -> None:
    """A fragment of a billion samples that share their size and length."""
    mp4(path, movflags="frag_keyframe+empty_moov")
    content = bytearray(path.read_bytes())
    start = content.index(b"trun") + 4
    content[start + 1 : start + 8] = struct.pack(">I", 0x000001)[1:] + struct.pack(">I", 10**9)
    path.write_bytes(content)


def huge_frames(path: Path) -> None:
    """Frames of 10,000 x 10,000 black or white pixels, which as PNG are small."""
    content = BytesIO()
    Image.new("1", (10_000, 10_000)).save(content, "PNG")
    frames = [(0.1 * index, content.getvalue()) for index in range(3)]
    write_packets(path, frames, codec="png", size=(10_000, 10_000), container_format="mov")


def huge_frames_inside(path: Path) -> None:
    """The container says 32 x 32, the pictures in it 10,000 x 10,000."""
    write_packets(path, [(0.1 * i, declaring(jpeg(), 10_000, 10_000)) for i in range(20)])


def half_of_matroska(path: Path) -> None:
    good(path, container_format="matroska")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_end(path: Path) -> None:
    """A download whose file was given its whole size beforehand."""
    good(path, container_format="matroska")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def edits_declared(path: Path) -> None:
    """An edit list that shows the whole track two million times, for each of which libav would index every sample."""
    mp4(path)
    content = path.read_bytes()
    start = content.index(b"elst") - 4
    size = struct.unpack(">I", content[start : start + 4])[0]
    moov, trak, edts = (content.index(kind) - 4 for kind in (b"moov", b"trak", b"edts"))
    entries = struct.pack(">II", 0, 2_000_000) + struct.pack(">IiI", 2000, 0, 1 << 16) * 2_000_000
    grown = content[:start] + struct.pack(">I", len(entries) + 8) + b"elst" + entries + content[start + size :]
    for box in (moov, trak, edts):
        length = struct.unpack(">I", grown[box : box + 4])[0] + len(entries) + 8 - size
        grown = grown[:box] + struct.pack(">I", length) + grown[box + 4 :]
    path.write_bytes(grown)


def sound_only(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="matroska") as container:
        audio = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        _mux_sound(container, audio, tone(10), "pcm_s16le", RATE_HZ, "mono")


def song_with_cover(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="matroska") as container:
        audio = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        container.add_attachment("cover.jpg", "image/jpeg", jpeg())
        _mux_sound(container, audio, tone(10), "pcm_s16le", RATE_HZ, "mono")


def unknown_codec(path: Path) -> None:
    patched(good(path, container_format="matroska"), b"V_MJPEG", b"V_NEVER")


def unknown_sound_codec(path: Path) -> None:
    patched(good(path, container_format="matroska"), b"A_PCM/INT/LIT", b"A_PCM/INT/XYZ")


def standing_clock(path: Path) -> None:
    """Frames without end that all carry the time 0."""
    content = jpeg(size=16)
    write_packets(path, [(0.0, content)] * 10_100, size=(16, 16), container_format="matroska")


def not_a_number_in_track(path: Path) -> None:
    sound = tone(10)
    sound[12_345] = np.nan
    good(path, sound=sound, sound_codec="pcm_f32le", container_format="matroska")


def track_rate(path: Path, rate_hz: float) -> None:
    """A sound track whose header has that sample rate, a 64-bit number in Matroska."""
    good(path, container_format="matroska")
    patched(path, b"\xb5\x88" + struct.pack(">d", RATE_HZ), b"\xb5\x88" + struct.pack(">d", rate_hz), b"A_PCM/INT/LIT")


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def local_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path has at most 107 bytes
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("was-moved"))


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def outside(path: Path) -> Path:
    """A folder beside that of the source, for links that lead out of it."""
    place = path.parent.parent / "elsewhere"
    place.mkdir(exist_ok=True)
    return place


def link_out(path: Path) -> None:
    path.symlink_to(good(outside(path) / path.name, container_format="matroska"))


def endless_stream(path: Path) -> None:
    """A stream without length or index, as a live broadcast writes it: 2,000 s in this file, and it could go on."""
    import av

    with path.open("wb") as file, av.open(_WriteOnly(file), "w", format="matroska", options={"live": "1"}) as container:
        video = container.add_stream("mjpeg", rate=10)
        video.width = video.height = 32
        video.pix_fmt, video.time_base = "yuvj420p", Fraction(1, 1000)
        container.start_encoding()
        for index in range(20_000):
            packet = av.Packet(jpeg())
            packet.stream, packet.time_base, packet.is_keyframe = video, Fraction(1, 1000), True
            packet.pts = packet.dts = 100 * index
            container.mux(packet)


class _WriteOnly:
    """A file that libav cannot seek in, so that it writes no length afterwards."""

    def __init__(self, file) -> None:
        self.write = file.write


def loud_channels(path: Path, num_channels: int, layout: str, **settings: object) -> None:
    """A tone in one of many channels."""
    sound = np.zeros((len(tone(10)), num_channels), np.float32)
    sound[:, -1] = tone(10)
    good(path, sound=sound, layout=layout, container_format="matroska", **settings)


# ---------------------------------------------------------------------------------------------------- sounds


def wave(path: Path, sound: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "FLOAT") -> None:
    soundfile.write(path, sound, rate_hz, subtype=subtype)


def wave_header(path: Path, *, channels: int = 1, rate_hz: int = RATE_HZ) -> None:
    """A WAV of 16 bits whose header says what soundfile would not write."""
    data = (tone(1) * 32767).astype("<i2").tobytes()
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate_hz, rate_hz * 2 % 2**32, 2, 16)
    body = b"WAVE" + head + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def wave_length(path: Path, declared: int | None, tail: bytes = b"", seconds: float = 10) -> None:
    """A WAV of 16 bits whose header declares that many bytes of samples; a recorder that streams cannot know them."""
    wave(path, tone(seconds), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    if declared is not None:
        content[4:8] = struct.pack("<I", min(declared + place - 4, 2**32 - 1))
        content[place : place + 4] = struct.pack("<I", declared)
    path.write_bytes(bytes(content) + tail)


def clip_files(root: Path) -> Path:
    """A benchmark clip of ten grey frames and ten seconds of sound; returns its folder."""
    frames = root / "frames"
    frames.mkdir(parents=True)
    for second in range(10):
        (frames / f"{second}.jpg").write_bytes(jpeg(GRAY))
    wave(root / "audio.wav", tone(10), subtype="PCM_16")
    return root
