"""Selects a film's picture and sound track, and not a cover, still, preview or commentary."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from extract.media.wav import refuse_rate
from refavs.errors import DatasetError
from refavs.files.source_files import MOST_PIXELS

_DEFAULT = ("default",)
_NO_FILM = ("attached_pic", "timed_thumbnails", "still_image")
# Additional tracks: commentaries, or versions for some viewers.
_ASIDE = ("comment", "lyrics", "karaoke", "hearing_impaired", "visual_impaired", "clean_effects", "descriptions")
# Extent of the survey that tells a film from a preview if there are several tracks of a kind.
_SURVEY_S = 10.0
_SURVEY_PACKETS = 20_000
_PREVIEW_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class FilmTracks:
    """The tracks of a film.

    Attributes:
        picture: the moving pictures.
        sound: None if there is none.
        guessed: several tracks could be the film's and none is marked, so the best was taken.
    """

    picture: VideoStream
    sound: AudioStream | None
    guessed: bool

    @property
    def all(self) -> tuple[Stream, ...]:
        """The tracks that are read."""
        return (self.picture,) if self.sound is None else (self.picture, self.sound)


@dataclass
class _Seen:
    """What a survey found of one track."""

    num_packets: int = 0
    first_s: float | None = None
    end_s: float = 0.0

    @property
    def length_s(self) -> float:
        return self.end_s - (self.first_s or 0.0)


@dataclass
class _Survey:
    """Facts about the packets of the first seconds, by track; empty without several tracks of a kind."""

    seen: dict[int, _Seen] = field(default_factory=dict)

    def of(self, track: Stream) -> _Seen:
        return self.seen.get(track.index, _Seen())

    def is_preview(self, track: Stream, others: Sequence[Stream]) -> bool:
        longest_s = max(self.of(other).length_s for other in others)
        return self.of(track).num_packets < 2 or self.of(track).length_s < _PREVIEW_SHARE * longest_s


def film_tracks(
    container: InputContainer, again: Callable[[], AbstractContextManager[InputContainer]]
) -> FilmTracks:
    """The picture and the sound of a film: the default tracks, else the best that can be decoded.

    Args:
        container: freshly opened, nothing read yet.
        again: opens the same file once more, for the survey of its tracks.

    Raises:
        DatasetError: no picture track, none with a known codec, frames too large, a sound of unusable rate, or no sound
            track with a known codec among several.
    """
    pictures = [track for track in container.streams.video if not _is_marked(track, _NO_FILM)]
    if not pictures:
        raise DatasetError("it has no picture track, which every clip needs")
    seeing, hearing = _decodable(pictures), _decodable(container.streams.audio)
    fitting = [track for track in seeing if track.codec_context.width * track.codec_context.height]
    if not fitting:  # libav reports no size above `max_pixels`
        raise DatasetError(f"its frames have more than {MOST_PIXELS:,} pixels (8K has 33 million) or no size at all")
    survey = _Survey()
    if len(fitting) > 1 or len(hearing) > 1:
        with again() as other:
            survey = _survey(other, [track.index for track in (*fitting, *hearing)])

    def seen(track: VideoStream) -> tuple:
        moving = len(fitting) == 1 or not survey.is_preview(track, fitting)
        size = track.codec_context.width * track.codec_context.height
        length_s = round(survey.of(track).length_s)
        return moving, _is_marked(track, _DEFAULT), not _is_marked(track, _ASIDE), size, length_s

    def heard(track: AudioStream) -> tuple:
        held = len(hearing) == 1 or survey.of(track).num_packets > 0
        return held, _is_marked(track, _DEFAULT), not _is_marked(track, _ASIDE), track.codec_context.channels

    picture, sound = max(fitting, key=seen), max(hearing, key=heard, default=None)
    if sound is not None:
        refuse_rate(sound.codec_context.sample_rate)
    guessed = _is_guess([seen(track)[:3] for track in fitting], seen(picture)[:3])
    if sound is not None:
        guessed |= _is_guess([heard(track)[:3] for track in hearing], heard(sound)[:3])
        guessed |= not _is_marked(sound, _DEFAULT) and any(
            _is_marked(track, _DEFAULT) for track in container.streams.audio
        )
    return FilmTracks(picture=picture, sound=sound, guessed=guessed)


def _decodable(tracks: Sequence[Stream]) -> list:
    """The tracks with a codec that libav knows; raises DatasetError if it knows none of them."""
    known = [track for track in tracks if track.codec_context is not None]
    if tracks and not known:
        raise DatasetError(f"libav does not know the codec of its {tracks[0].type} track")
    return known


def _is_marked(track: Stream, names: Sequence[str]) -> bool:
    """Whether the container marks a track with one of these dispositions."""
    return any(track.disposition & Disposition[name] for name in names)


def _is_guess(ranks: list[tuple], best: tuple) -> bool:
    """Whether only its size or position put the best track before another."""
    return ranks.count(best) > 1


def _survey(container: InputContainer, indices: list[int]) -> _Survey:
    found: dict[int, _Seen] = {index: _Seen() for index in indices}
    for number, packet in enumerate(container.demux(*(container.streams[index] for index in indices))):
        seen = found[packet.stream.index]
        if packet.size and packet.pts is not None and packet.time_base is not None and not packet.is_discard:
            start_s = float(packet.pts * packet.time_base)
            seen.num_packets += 1
            seen.first_s = start_s if seen.first_s is None else min(seen.first_s, start_s)
            seen.end_s = max(seen.end_s, start_s + float((packet.duration or 0) * packet.time_base))
        if number > _SURVEY_PACKETS or seen.length_s > _SURVEY_S:
            break
    return _Survey(seen=found)
