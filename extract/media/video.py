"""The first frame of each step and the sound of a video, decoded in bounded time and memory whatever it declares."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av import AudioFrame, VideoFrame
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from jaxtyping import Float, UInt8

from extract.media.clock import Clock, PictureTimes
from extract.media.forms import Frames
from extract.media.mp4_guard import is_cut_off, refuse_declared_samples
from extract.media.pictures import PlacedPictures
from extract.media.sound import SEARCH_SOUND_S, PlacedSound
from extract.media.tracks import FilmTracks, film_tracks
from refavs.errors import DatasetError
from refavs.files.source_files import MOST_PIXELS, check_file, reason_of
from refavs.steps import Steps

# Self-contained containers alone: a playlist would have libav open what it names, other files or the network.
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts")
ACCEPTED = "an MP4, MOV, Matroska, WebM, AVI or MPEG-TS file"
# A container may declare a little more than its last packet shows.
MISSING_TAIL_S = 0.5
HDR = (16, 18)  # transfer functions of H.273: PQ, HLG
MOST_PACKETS_PER_S = 4000


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The part of a container that is wanted, counted on its clock (`extract.media.clock`).

    Attributes:
        frames: by their form, one for each step.
        sound: mono, by sample rate; None without a sound track.
        repeated_from_s: the first step that repeats the last frame because the picture had ended; None if none does.
        frame_notes: what else is odd about the picture, names of `extract.media.notes.NOTES`.
        sound_notes: the same of the sound.
    """

    frames: Mapping[Frames, UInt8[np.ndarray, "t h w c"]]
    sound: Mapping[int, Float[np.ndarray, " s"]] | None
    repeated_from_s: int | float | None
    frame_notes: tuple[str, ...]
    sound_notes: tuple[str, ...]


class Film:
    """The film in an open container: its tracks and its clock."""

    def __init__(self, container: InputContainer, tracks: FilmTracks) -> None:
        self.tracks, self.clock = tracks, Clock(container, tracks.all)
        self.ends_s = dict.fromkeys((track.index for track in tracks.all), 0.0)
        self.damage_skipped = False
        self._container = container
        tracks.picture.codec_context.thread_count = 1
        tracks.picture.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        self._times = PictureTimes(tracks.picture)
        self._begun: set[int] = set()

    def packets(self, num_seconds: int | None = None) -> Iterator[av.Packet]:
        """The packets of the film's tracks with their time stamps on its clock.

        Args:
            num_seconds: how many are read at most; None for all.

        Raises:
            DatasetError: there are more of them than belong to so many seconds.
        """
        for number, packet in enumerate(self._container.demux(*self.tracks.all)):
            length_s = max(self.ends_s.values()) if num_seconds is None else num_seconds
            if number > MOST_PACKETS_PER_S * (length_s + SEARCH_SOUND_S):
                raise DatasetError(f"its first {number:,} packets do not come to {length_s:g} s")
            end_s = self.clock.set(packet)
            if end_s is not None:
                index = packet.stream.index
                self.ends_s[index] = max(self.ends_s[index], float(end_s))
            yield packet

    def decoded(self, packet: av.Packet) -> list[av.VideoFrame | av.AudioFrame]:
        """The frames that a packet completes.

        A transport stream is cut anywhere, so there the pieces before the first whole one are left out.
        """
        try:
            frames = packet.decode()
        except InvalidDataError:
            if self._container.format.name != "mpegts" or packet.stream.index in self._begun:
                raise
            self.damage_skipped = True
            return []
        if frames:
            self._begun.add(packet.stream.index)
        return frames  # type: ignore[return-value]

    def time_of(self, frame: av.VideoFrame) -> Fraction:
        """When a picture is shown, in seconds of the clock; asked for each picture once, in the order of decoding."""
        return self._times.of(frame)

    def seek(self, time_s: float) -> None:
        """Goes to the last key picture before a time, where that is reliable; else the film is read from its start."""
        starts = [track.start_time * track.time_base for track in self.tracks.all
                  if track.start_time is not None and track.time_base is not None]  # fmt: skip
        if time_s > 0 and len(starts) == len(self.tracks.all) and self._container.format.name != "mpegts":
            self._container.seek(round((time_s + min(starts)) * 1_000_000))

    @property
    def declared_s(self) -> float:
        """The length that the container declares: of the film's picture where it says that, else of all tracks."""
        picture = self.tracks.picture
        if picture.duration is not None and picture.time_base is not None:
            return float(picture.duration * picture.time_base)
        return (self._container.duration or 0) / 1e6

    @property
    def is_alone(self) -> bool:
        """Whether no other track could have the length that is declared."""
        return len(self._container.streams) == len(self.tracks.all)

    def notes(self) -> list[str]:
        """What is odd about the tracks and their time stamps."""
        return [name for name, is_so in (
            ("time_joined", self.clock.joined), ("time_guessed", self._times.num_guessed > 0),
            ("track_guessed", self.tracks.guessed), ("damage_skipped", self.damage_skipped),
            ("picture_hdr", self.tracks.picture.codec_context.color_trc in HDR),
        ) if is_so]  # fmt: skip


def read_container(
    path: Path, steps: Steps, frames: Collection[Frames], rates_hz: Collection[int], within: Path | None = None
) -> Decoded:
    """Decodes the first seconds of a video file, its picture and its sound as far as either is wanted.

    Args:
        path: the file.
        steps: each gets a frame.
        frames: forms in which the frames are wanted.
        rates_hz: sample rates in which the sound is wanted.
        within: folder that the file may not lie outside of.

    Raises:
        DatasetError: the file is missing, empty, cut off, damaged, no video, or beyond the limits of this module.
    """
    pictures, sound = PlacedPictures(len(steps), tuple(frames), steps.rate), PlacedSound(steps.seconds)
    with opened(path, within) as film:
        ended = decode(film, pictures, sound if rates_hz else None, steps.seconds)
        silent = film.tracks.sound is None
        is_short = ended and is_shorter_than_declared(film, path, steps.seconds)
        repeated_from = pictures.finish(film.ends_s[film.tracks.picture.index])
        notes = film.notes() + ["length_false"] * is_short
        if frames and pictures.last is None:
            raise DatasetError("it holds no picture")
        heard = None if silent else {rate_hz: sound.finish(rate_hz) for rate_hz in rates_hz}
    return Decoded(
        frames=pictures.stacked(), sound=heard,
        repeated_from_s=steps.time_s(repeated_from) if frames and repeated_from is not None else None,
        frame_notes=(*notes, *pictures.notes()), sound_notes=(*notes, *([] if silent else sound.notes())),
    )


@contextmanager
def opened(path: Path, within: Path | None = None) -> Iterator[Film]:
    """Opens a video, and names it in errors that are raised while it is open.

    Args:
        within: folder that the file may not lie outside of.

    Raises:
        DatasetError: the file is missing, empty, cut off, damaged, no video, or beyond the limits of this module.
    """
    try:
        check_file(path, within)
        refuse_declared_samples(path)
    except OSError as error:
        raise DatasetError(f"video {path} cannot be read ({reason_of(error)}); copy or encode it again") from error
    try:
        with open_film(path) as film:
            yield film
    except DatasetError as error:
        raise DatasetError(f"video {path}: {error}; copy or encode it again") from error
    except (FFmpegError, OSError, ValueError, EOFError, ArithmeticError) as error:
        raise DatasetError(
            f"video {path} is cut off, damaged or not a video ({reason_of(error)}); accepted: {ACCEPTED}. Copy or "
            "encode it again"
        ) from error


@contextmanager
def open_film(path: Path) -> Iterator[Film]:
    """Opens a video and finds its film.

    Raises:
        DatasetError: as `extract.media.tracks.film_tracks` does.
    """
    with open_container(path) as container:
        yield Film(container, film_tracks(container, lambda: open_container(path)))


def open_container(path: Path) -> InputContainer:
    """Opens a video by libav, which is kept from anything but self-contained files."""
    options = {
        "format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file", "max_pixels": str(MOST_PIXELS),
    }
    # The prefix keeps libav from taking a name with a colon for an address.
    return av.open(f"file:{path}", options=options)


def decode(film: Film, pictures: PlacedPictures, sound: PlacedSound | None, num_seconds: int) -> bool:
    """Decodes what is wanted until it reaches `num_seconds`; returns whether the file ended before."""
    picture = film.tracks.picture
    if film.tracks.sound is None:
        sound = None
    for packet in film.packets(num_seconds):
        if packet.stream is picture:
            wanted = bool(pictures.wanted) and not pictures.done
        else:
            wanted = sound is not None and not sound.complete
        for frame in film.decoded(packet) if wanted else ():
            if isinstance(frame, VideoFrame):
                pictures.add(frame, film.time_of(frame))
            elif isinstance(frame, AudioFrame) and sound is not None:
                sound.add(frame)
        reached_s = film.ends_s[picture.index]
        seen = pictures.done if pictures.wanted else reached_s > num_seconds
        if seen and (sound is None or sound.complete or reached_s > num_seconds + SEARCH_SOUND_S):
            return False
    return True


def is_shorter_than_declared(film: Film, path: Path, num_seconds: float) -> bool:
    """Whether a file that has ended declares more seconds; all of its bytes are there.

    Raises:
        DatasetError: bytes are missing.
    """
    reached_s, declared_s = max(film.ends_s.values()), film.declared_s
    if reached_s >= min(declared_s, num_seconds) - MISSING_TAIL_S:
        return False
    if is_cut_off(path):
        raise DatasetError(f"the file declares {declared_s:.1f} s and stops after {reached_s:.1f} s")
    return film.is_alone or film.tracks.picture.duration is not None
