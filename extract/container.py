"""The first frame of each second and the sound of a video, decoded in bounded time and memory whatever it declares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import reduce
from jaxtyping import Float, UInt8
from PIL import Image

from extract.boxes import refuse_declared_samples
from extract.sound import at_sample_rate, refuse_rate
from refavs.data.files import MOST_PIXELS, check_file, reason_of
from refavs.errors import DatasetError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Self-contained containers alone: a playlist would have libav open what it names, other files or the network.
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts")
ACCEPTED = "an MP4, MOV, Matroska, WebM, AVI or MPEG-TS file"
# A container may declare a little more than its last packet shows; more than this much missing is a cut-off file.
MISSING_TAIL_S = 0.5
# A sound track this far behind the picture has ended; the rest of a long video need not be read to learn that.
SEARCH_SOUND_S = 30.0
# Where time stamps stand still, the work ends here: 1,000 frames for each second wanted, or 8K at 120 frames/s.
MOST_FRAMES_PER_S = 1000
MOST_PIXELS_PER_S = 4_000_000_000
MOST_PACKETS_PER_S = 4000


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """What a container holds of the seconds wanted.

    Attributes:
        frames: RGB, one for each second.
        sound: mono at 16 kHz from the first frame on; None where there is none.
        silent: there is no sound track.
        repeated_from_s: first second that repeats the last frame because the picture had ended; None where none does.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    sound: Float[np.ndarray, " s"] | None
    silent: bool
    repeated_from_s: int | None


def resized(picture: Image.Image, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as a square RGB array, smoothed by the reduction factor as Mask2Former's own preprocessing does."""
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR))


def read_container(path: Path, num_frames: int, size: int, within: Path | None = None) -> Tracks:
    """Decodes the first seconds of a video file.

    Args:
        path: the file.
        num_frames: seconds to take.
        size: height and width of the frames returned, px.
        within: folder that the file may not lie outside of.

    Raises:
        DatasetError: the file is missing, empty, cut off, damaged, no video, or beyond the limits of this module.
    """
    from av.error import FFmpegError

    picture, sound = _Picture(num_frames, size), _Sound(num_frames)
    try:
        check_file(path, within)
        refuse_declared_samples(path)
    except OSError as error:
        raise DatasetError(f"video {path} cannot be read ({reason_of(error)}); copy or encode it again") from error
    try:
        with open_container(path) as container:
            video = picture_track(container)
            silent = not container.streams.audio
            end_s = _decode(container, video, picture, sound, num_frames)
            repeated_from_s = picture.finish(end_s)
        if picture.last is None:
            raise DatasetError("it holds no picture")
        heard = sound.finish(picture.start_s) if sound.pending else None
    except DatasetError as error:
        raise DatasetError(f"video {path}: {error}; copy or encode it again") from error
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"video {path} is cut off, damaged or not a video ({reason_of(error)}); accepted: {ACCEPTED}. Copy or "
            "encode it again"
        ) from error
    frames = np.stack([picture.chosen[second] for second in range(num_frames)])
    return Tracks(frames=frames, sound=heard, silent=silent, repeated_from_s=repeated_from_s)


def open_container(path: Path) -> "InputContainer":
    """Opens a video by libav, which is kept from anything but self-contained files."""
    import av

    options = {
        "format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file", "max_pixels": str(MOST_PIXELS),
    }
    # The prefix keeps libav from taking a name with a colon for an address.
    return av.open(f"file:{path}", options=options)


def upright(frame: "av.VideoFrame") -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a frame as a player shows it."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))


@dataclass
class _Picture:
    """The picture track while it is decoded: the first frame of each second, and where the track ends."""

    num_frames: int
    size: int
    chosen: dict[int, UInt8[np.ndarray, "h w 3"]] = field(default_factory=dict)
    last: "av.VideoFrame | None" = None
    start_s: Fraction = Fraction(0)
    time_s: Fraction = Fraction(0)
    num_decoded: int = 0

    @property
    def done(self) -> bool:
        """Frames come in the order of their time, so the first one beyond the last second ends the work."""
        return self.time_s >= self.num_frames

    def add(self, frame: "av.VideoFrame") -> None:
        if frame.pts is None or frame.time_base is None:
            raise DatasetError("a frame has no time stamp")
        self._refuse_flood(frame)
        stamp = frame.pts * frame.time_base
        if self.last is None:
            self.start_s = stamp
        self.time_s = stamp - self.start_s
        second = math.floor(self.time_s)
        # A second in which no frame begins shows the one before it, as a player would.
        self._hold_last_until(min(second, self.num_frames))
        if 0 <= second < self.num_frames and second not in self.chosen:
            self.chosen[second] = self._pixels(frame)
        self.last = frame

    def finish(self, end_s: float) -> int | None:
        """Fills the seconds after the last frame; returns the first of them that lies beyond the track's end."""
        self._hold_last_until(self.num_frames)
        first_beyond = max(math.floor(self.time_s) + 1, math.ceil(end_s - 1e-3))
        return first_beyond if first_beyond < self.num_frames else None

    def _refuse_flood(self, frame: "av.VideoFrame") -> None:
        self.num_decoded += 1
        per_second = min(MOST_FRAMES_PER_S, MOST_PIXELS_PER_S // (frame.width * frame.height))
        if self.num_decoded > per_second * self.num_frames:
            raise DatasetError(
                f"{self.num_decoded:,} frames and still at {float(self.time_s):.2f} s; accepted: up to {per_second:,} "
                "frames of this size per second"
            )

    def _hold_last_until(self, second: int) -> None:
        missing = [earlier for earlier in range(second) if earlier not in self.chosen]
        if missing and self.last is not None:
            self.chosen.update(dict.fromkeys(missing, self._pixels(self.last)))

    def _pixels(self, frame: "av.VideoFrame") -> UInt8[np.ndarray, "h w 3"]:
        if frame.is_corrupt:
            raise DatasetError(f"the frame at {float(self.time_s):.2f} s is damaged")
        return resized(Image.fromarray(upright(frame)), self.size)


@dataclass
class _Sound:
    """The sound track while it is decoded, at its own rate, on the picture's clock."""

    num_seconds: int
    rate_hz: int = 0
    num_samples: int = 0
    pending: list[tuple[float | None, Float[np.ndarray, " s"]]] = field(default_factory=list)

    def add(self, frame: "av.AudioFrame", mono: Float[np.ndarray, " s"]) -> None:
        if self.rate_hz not in (0, frame.sample_rate):
            raise DatasetError(f"the sound changes its rate from {self.rate_hz} to {frame.sample_rate} Hz")
        self.rate_hz = frame.sample_rate
        stamp = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        self.pending.append((stamp, mono))
        self.num_samples += len(mono)

    def reaches(self, picture_start_s: Fraction) -> bool:
        """Whether every second that is asked for has its samples, or more are held than can belong to them."""
        if not self.rate_hz:
            return False
        first = self.pending[0][0] or 0.0 if self.pending else 0.0
        held_s = self.num_samples / self.rate_hz
        return first + held_s >= picture_start_s + self.num_seconds or held_s > self.num_seconds + SEARCH_SOUND_S

    def finish(self, picture_start_s: Fraction) -> Float[np.ndarray, " s"]:
        placed = np.zeros(self.num_seconds * self.rate_hz, np.float32)
        position = 0
        for time_s, mono in self.pending:
            if time_s is not None:
                expected = round((time_s - float(picture_start_s)) * self.rate_hz)
                # Time stamps are rounded to the container's clock; only a real gap moves the samples.
                position = expected if abs(expected - position) > 0.02 * self.rate_hz else position
            start, stop = max(position, 0), min(position + len(mono), len(placed))
            if start < stop:
                placed[start:stop] = mono[start - position : stop - position]
            position += len(mono)
        return at_sample_rate(placed, self.rate_hz)


def picture_track(container: "InputContainer") -> "VideoStream":
    """The first track of moving pictures; a song's cover is none.

    Raises:
        DatasetError: there is none, its codec is unknown, or its frames are too large.
    """
    from av.stream import Disposition

    tracks = [track for track in container.streams.video if not track.disposition & Disposition.attached_pic]
    if not tracks:
        raise DatasetError("it has no picture track, which is the one that a clip cannot do without")
    for track in (tracks[0], *container.streams.audio[:1]):
        if track.codec_context is None:
            raise DatasetError(f"the codec of its {track.type} track is one that libav does not know")
    width, height = tracks[0].codec_context.width, tracks[0].codec_context.height
    if not width * height:  # libav keeps back a size beyond `max_pixels`
        raise DatasetError(f"its frames have more than {MOST_PIXELS:,} pixels (8K has 33 million) or no size at all")
    for track in container.streams.audio[:1]:
        refuse_rate(track.codec_context.sample_rate)
    return tracks[0]


def _decode(
    container: "InputContainer", video: "VideoStream", picture: _Picture, sound: _Sound, num_seconds: int
) -> float:
    """Decodes picture and sound until both reach `num_seconds`; returns where the picture track ends, in seconds.

    Raises:
        DatasetError: the file stops before the length that it declares, or never comes to `num_seconds`.
    """
    from av import AudioFrame, VideoFrame
    from av.audio.resampler import AudioResampler

    audio = container.streams.audio[:1]
    video.codec_context.thread_count = 1
    video.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    # Packed, for PyAV reads beyond the end of a planar frame of eight channels or more and brings the process down.
    to_float = AudioResampler(format="flt")
    ends_s = dict.fromkeys((video.index, *(stream.index for stream in audio)), 0.0)
    most_packets = round(MOST_PACKETS_PER_S * (num_seconds + SEARCH_SOUND_S))
    for number, packet in enumerate(container.demux(video, *audio)):
        if number > most_packets:
            raise DatasetError(f"its first {most_packets:,} packets do not come to {num_seconds} s")
        if packet.pts is not None and packet.time_base is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            ends_s[packet.stream.index] = max(ends_s[packet.stream.index], end)
        wanted = not picture.done if packet.stream is video else not sound.reaches(picture.start_s)
        for frame in packet.decode() if wanted else ():
            if isinstance(frame, VideoFrame):
                picture.add(frame)
            elif isinstance(frame, AudioFrame):
                refuse_rate(frame.sample_rate)
                sound.add(frame, _mono(to_float.resample(frame)))
        searched = ends_s[video.index] > num_seconds + SEARCH_SOUND_S
        if picture.done and (not audio or searched or sound.reaches(picture.start_s)):
            break
    else:
        _refuse_cut_off(container, video, max(ends_s.values()), num_seconds)
    return ends_s[video.index] - float(picture.start_s)


def _mono(frames: "Sequence[av.AudioFrame]") -> Float[np.ndarray, " s"]:
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number is found when the sound is complete
        parts = [reduce(frame.to_ndarray(), "1 (s c) -> s", "mean", c=frame.layout.nb_channels) for frame in frames]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _refuse_cut_off(container: "InputContainer", video: "VideoStream", reached_s: float, num_seconds: int) -> None:
    # AVI has no duration once its index is cut off, and libavformat estimates one from the file's size.
    by_count_s = float(video.frames / video.average_rate) if video.average_rate else 0.0
    declared_s = max((container.duration or 0) / 1e6, by_count_s)
    # Some containers count their length from their first time stamp, some from zero; either may be met.
    start_s = (container.start_time or 0) / 1e6
    reached_s = max(reached_s, reached_s - start_s)
    if reached_s < min(declared_s, num_seconds) - MISSING_TAIL_S:
        raise DatasetError(f"the file declares {declared_s:.1f} s and stops after {reached_s:.1f} s")
