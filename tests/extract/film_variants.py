"""Realistic videos with the expected content of each second: codec x container x offsets x matrix x tracks x cuts.

The truth follows from how a film is built, never from a decoder.
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tests.extract import mp4_boxes as boxes
from tests.extract.film_oracle import Shown
from tests.extract.films import Pictures, Sound, Subtitles, write_film

PLAIN = ("TL", "TR")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One film.

    Attributes:
        suffix: of its file's name.
        build: writes the file.
        truth: what its seconds show.
        corners: where the white and the black corner are.
        notes: what must be noted of it, all of it.
        repeated_from_s: first second beyond the picture.
        ffmpeg: why the command of ffmpeg 5.1 shows something else; empty where it agrees.
    """

    suffix: str
    build: Callable[[Path], object]
    truth: Shown
    corners: tuple[str, str] = PLAIN
    notes: frozenset[str] = frozenset()
    repeated_from_s: int | None = None
    ffmpeg: str = ""


def truth(
    *, late_s: float = 0, sound_late_s: float | None = 0, first: float = 0, sound_first: float | None = None,
    length_s: float = 12, sound_length_s: float = 12, rate: float = 10,
) -> Shown:
    """Seconds of a film whose tracks begin late, with some second of the content, and have some length."""

    def pictured(second: int) -> int:
        index = max(0, math.ceil((second - late_s) * rate - 1e-6))
        return math.floor(first + min(index, round(length_s * rate) - 1) / rate + 1e-6)

    def heard(second: int) -> int | None:
        time_s = second + 0.5 - (sound_late_s or 0)
        inside = sound_late_s is not None and 0 <= time_s < sound_length_s
        return math.floor((first if sound_first is None else sound_first) + time_s) if inside else None

    return Shown(pictures=tuple(map(pictured, range(10))), tones=tuple(map(heard, range(10))))


def of(tracks: Sequence, **settings: object) -> Callable[[Path], object]:
    return lambda path: write_film(path, tracks, **settings)


def joined(*parts: Sequence, options: Sequence[dict[str, str] | None] = ()) -> Callable[[Path], object]:
    """Several films written one after another into one file."""

    def build(path: Path) -> None:
        content = b""
        for number, tracks in enumerate(parts):
            part = path.with_name(f"part-{number}{path.suffix}")
            write_film(part, tracks, options=options[number] if options else None)
            content += part.read_bytes()
            part.unlink()
        path.write_bytes(content)

    return build


def edited(tracks: Sequence, *edits: Sequence[tuple[float, float]] | None) -> Callable[[Path], object]:
    """A film with an edit list for each of its tracks."""

    def build(path: Path) -> None:
        write_film(path, tracks)
        for number, list_of_edits in enumerate(edits):
            if list_of_edits is not None:
                boxes.set_edits(path, list_of_edits, number)

    return build


def turned(matrix: Sequence[float]) -> Callable[[Path], object]:
    def build(path: Path) -> None:
        write_film(path, [Pictures(), Sound()])
        boxes.set_matrix(path, matrix)

    return build


def corners_by(matrix: Sequence[float]) -> tuple[str, str]:
    """Where a matrix puts the two marked corners, by its definition."""
    a, b, c, d = matrix
    places = []
    for x, y in ((-1, -1), (1, -1)):
        across, down = a * x + c * y, b * x + d * y
        places.append(("T" if down < 0 else "B") + ("L" if across < 0 else "R"))
    return places[0], places[1]


def patched(tracks: Sequence, *changes: tuple[bytes, bytes], **settings: object) -> Callable[[Path], object]:
    def build(path: Path) -> None:
        write_film(path, tracks, **settings)
        content = path.read_bytes()
        for old, new in changes:
            assert old in content and len(old) == len(new)
            content = content.replace(old, new, 1)
        path.write_bytes(content)

    return build


RIGHT = truth()
VARIANTS: dict[str, Variant] = {}


def _add(name: str, suffix: str, build: Callable[[Path], object], shown: Shown = RIGHT, **settings) -> None:
    assert name not in VARIANTS
    notes = frozenset(settings.pop("notes", ()))
    VARIANTS[name] = Variant(suffix=suffix, build=build, truth=shown, notes=notes, **settings)


# ------------------------------------------------------------------------------------------------ codec x container

for _suffix, _codec, _sound, _hz in (
    (".mp4", "libx264", "aac", 44_100), (".mp4", "libx265", "aac", 48_000), (".mp4", "mpeg4", "libmp3lame", 16_000),
    (".mp4", "libvpx-vp9", "libopus", 48_000), (".mp4", "mjpeg", "alac", 44_100), (".mp4", "libx264", "flac", 16_000),
    (".mov", "libx264", "pcm_s16le", 48_000), (".mov", "mjpeg", "pcm_s24le", 16_000),
    (".mov", "prores_ks", "aac", 32_000),
    (".mkv", "libx264", "aac", 16_000), (".mkv", "libx265", "flac", 44_100), (".mkv", "ffv1", "flac", 16_000),
    (".mkv", "mpeg2video", "ac3", 48_000), (".mkv", "mjpeg", "pcm_s16le", 8_000), (".mkv", "libvpx", "libopus", 48_000),
    (".mkv", "mpeg4", "mp2", 32_000), (".mkv", "libx264", "pcm_f32le", 96_000),
    (".webm", "libvpx", "libopus", 48_000), (".webm", "libvpx-vp9", "libopus", 24_000),
    (".ts", "libx264", "aac", 48_000), (".ts", "libx265", "ac3", 48_000), (".ts", "mpeg2video", "mp2", 44_100),
):  # fmt: skip
    _rate = 25 if "mpeg2video" in _codec else 10
    _tracks = [Pictures(codec=_codec, rate=_rate), Sound(codec=_sound, rate_hz=_hz)]
    _add(f"{_codec} {_sound} {_hz}{_suffix}", _suffix, of(_tracks))
_add("MP4 by another name.m4v", ".m4v", of([Pictures(), Sound(rate_hz=48_000)], container_format="mp4"))
# Camcorders and discs: each packet of the transport stream has a time stamp of four bytes before it.
for _suffix in (".m2ts", ".mts"):
    _add(f"packets of 192 bytes{_suffix}", _suffix, of([Pictures(), Sound(codec="ac3", rate_hz=48_000)],
                                                       options={"mpegts_m2ts_mode": "1"}))  # fmt: skip
# AVI counts its pictures in the order of decoding, so those of a codec that reorders come two places late.
for _codec, _sound, _late_s in (("mjpeg", "pcm_s16le", 0), ("ffv1", "pcm_s16le", 0), ("libx264", "aac", 0.2),
                                ("mpeg4", "libmp3lame", 0.1), ("mpeg4", "ac3", 0.1)):  # fmt: skip
    _hz = 48_000 if _sound == "ac3" else 16_000
    _add(f"{_codec} {_sound}.avi", ".avi", of([Pictures(codec=_codec), Sound(codec=_sound, rate_hz=_hz)]),
         truth(late_s=_late_s))  # fmt: skip
_add("NTSC", ".mp4", of([Pictures(rate=Fraction(30_000, 1001)), Sound()]))
_add("times of a screen recorder", ".mp4",
     of([Pictures(times_s=[0, 0.1, 0.5, 1.2, 1.9, 2.0, 4.5, 5, 6, 7.7, 8, 9.3, 10.5], b_frames=0), Sound()]),
     Shown(pictures=(0, 1, 2, 2, 4, 5, 6, 7, 8, 9), tones=RIGHT.tones), notes=["picture_held"])  # fmt: skip

# ------------------------------------------------------------------------------------------------------- offsets

for _suffix in (".mp4", ".mov", ".mkv", ".ts"):
    _codec, _hz = {".ts": ("ac3", 48_000), ".mkv": ("flac", 16_000)}.get(_suffix, ("aac", 16_000))
    _sound = Sound(codec=_codec, rate_hz=_hz)
    _add(f"picture 2 s late{_suffix}", _suffix, of([Pictures(late_s=2), _sound]), truth(late_s=2),
         notes=["picture_late"])  # fmt: skip
    _add(f"sound 2 s late{_suffix}", _suffix, of([Pictures(), Sound(codec=_codec, rate_hz=_hz, late_s=2)]),
         truth(sound_late_s=2), notes=["sound_late"])  # fmt: skip
    _add(f"picture 0.3 s late{_suffix}", _suffix, of([Pictures(late_s=0.3), _sound]), truth(late_s=0.3))
# MP4 writes the time before the first track as an empty edit, which both tracks share here.
_add("both 5 s late.mkv", ".mkv", of([Pictures(late_s=5), Sound(codec="flac", late_s=5)]))
_add("both 5 s late.ts", ".ts", of([Pictures(late_s=5), Sound(codec="mp2", rate_hz=48_000, late_s=5)]))
_add("no sound, late.mkv", ".mkv", of([Pictures(late_s=5)]), truth(sound_late_s=None))
_add("sound alone for 4 s, then both end early", ".mkv",
     of([Pictures(late_s=4, content=(0, 4)), Sound(codec="flac", content=(0, 8))]),
     truth(late_s=4, length_s=4, sound_length_s=8), notes=["picture_late", "sound_short"],
     repeated_from_s=8)  # fmt: skip

# -------------------------------------------------------------------------------------------------- display matrix

for _name, _matrix in {
    "hflip": (-1, 0, 0, 1), "vflip": (1, 0, 0, -1), "turned 90": (0, 1, -1, 0), "turned 180": (-1, 0, 0, -1),
    "turned 270": (0, -1, 1, 0), "transposed": (0, 1, 1, 0), "transposed the other way": (0, -1, -1, 0),
    "scaled": (2, 0, 0, 2), "scaled and mirrored": (-0.5, 0, 0, 0.5), "off by half a degree": (0.0087, 1, -1, 0.0087),
}.items():  # fmt: skip
    for _suffix in (".mp4", ".mov") if _name in ("hflip", "turned 90") else (".mp4",):
        _add(f"{_name}{_suffix}", _suffix, turned(_matrix), corners=corners_by(_matrix))

# ---------------------------------------------------------------------------------------------------------- tracks

_stills = Pictures(codec="mjpeg", size=(192, 192), num_frames=1, strange=True)
_other = Sound(codec="flac", strange=True, disposition="")
_film = [Pictures(disposition="default"), Sound(codec="flac", disposition="default")]
_add("commentary first, film default.mkv", ".mkv", of([_film[0], _other, _film[1]]))
_add("commentary in stereo, film default.mkv", ".mkv",
     of([_film[0], Sound(codec="flac", layout="stereo", strange=True, disposition=""), _film[1]]))  # fmt: skip
_add("commentary marked, none default.mkv", ".mkv",
     of([_film[0], Sound(codec="flac", strange=True, disposition="comment"), Sound(codec="flac", disposition="")]),
     ffmpeg="takes the first of two sounds, whatever says that it is a commentary")  # fmt: skip
_add("commentary first, film default.mp4", ".mp4",
     of([_film[0], Sound(strange=True, disposition=""), Sound(disposition="default")]))  # fmt: skip
_add("no default, stereo after mono.mkv", ".mkv",
     of([Pictures(disposition=""), _other, Sound(codec="flac", layout="stereo", disposition="")]),
     notes=["track_guessed"])  # fmt: skip
_add("second sound longer.mkv", ".mkv",
     of([Pictures(content=(0, 6)), Sound(codec="flac", content=(0, 6), disposition="default"),
         Sound(codec="flac", content=(0, 30), strange=True, disposition="")]),
     truth(length_s=6, sound_length_s=6), repeated_from_s=6, notes=["sound_short"])  # fmt: skip
_add("subtitles longer.mkv", ".mkv",
     of([Pictures(content=(0, 6)), Sound(codec="flac", content=(0, 6)), Subtitles(codec="subrip", duration_s=60)]),
     truth(length_s=6, sound_length_s=6), repeated_from_s=6, notes=["sound_short"])  # fmt: skip
_add("subtitles longer.mp4", ".mp4",
     of([Pictures(content=(0, 6)), Sound(content=(0, 6)), Subtitles(codec="mov_text", duration_s=60)]),
     truth(length_s=6, sound_length_s=6), repeated_from_s=6, notes=["sound_short"])  # fmt: skip
_add("unknown sound first.mkv", ".mkv", patched([_film[0], Sound(codec="mp2", strange=True, disposition=""), _film[1]],
                                                (b"A_MPEG/L2", b"A_MPEG/L9")))  # fmt: skip
_add("unknown default sound.mkv", ".mkv",
     patched([_film[0], Sound(codec="mp2", strange=True, disposition="default"), Sound(codec="flac", disposition="")],
             (b"A_MPEG/L2", b"A_MPEG/L9")), notes=["track_guessed"],
     ffmpeg="fails: it takes the default track and has no decoder for it")  # fmt: skip
_add("unknown picture first.mkv", ".mkv",
     patched([Pictures(codec="mjpeg", size=(64, 64), strange=True, disposition=""), *_film],
             (b"V_MJPEG", b"V_NEVER")))  # fmt: skip
for _suffix in (".mkv", ".mp4", ".mov"):
    _add(f"preview of one larger picture first{_suffix}", _suffix, of([_stills, Pictures(), Sound()]),
         ffmpeg="takes the larger track, which is the preview")  # fmt: skip
_add("preview of one smaller picture first.mkv", ".mkv",
     of([Pictures(codec="mjpeg", size=(32, 32), num_frames=1, strange=True), Pictures(), Sound()]))  # fmt: skip
_add("trailer of half a second first.mkv", ".mkv",
     of([Pictures(codec="mjpeg", num_frames=5, strange=True, disposition=""), *_film]))  # fmt: skip
_add("two pictures, the larger is the film.mkv", ".mkv",
     of([Pictures(size=(48, 48), strange=True, disposition=""), Pictures(disposition=""),
         Sound(codec="flac", disposition="")]), notes=["track_guessed"])  # fmt: skip
_add("two pictures, the smaller is default.mkv", ".mkv",
     of([Pictures(size=(192, 192), strange=True, disposition=""), *_film]))  # fmt: skip
_add("cover after the film.mp4", ".mp4",
     of([Pictures(), Sound(),
         Pictures(codec="mjpeg", num_frames=1, strange=True, disposition="attached_pic")]))  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- cuts

_pair = [Pictures(gop=10), Sound()]
_add("cut at a key picture.mp4", ".mp4", edited(_pair, [(8, 3.2)], [(8, 3)]),
     truth(first=3, length_s=8, sound_length_s=8), repeated_from_s=8, notes=["sound_short"])  # fmt: skip
_add("cut between key pictures.mp4", ".mp4", edited([Pictures(gop=40), Sound()], [(7, 3.7)], [(7, 3.7)]),
     truth(first=3.7, length_s=7, sound_length_s=7), repeated_from_s=7, notes=["sound_short"])  # fmt: skip
_add("cut between key pictures.mov", ".mov",
     edited([Pictures(gop=40), Sound(codec="pcm_s16le")], [(7, 3.7)], [(7, 3.7)]),
     truth(first=3.7, length_s=7, sound_length_s=7), repeated_from_s=7, notes=["sound_short"])  # fmt: skip
_add("empty edit before the picture.mp4", ".mp4", edited(_pair, [(3, -1), (12, 0.2)], None), truth(late_s=3),
     notes=["picture_late"])  # fmt: skip
_add("empty edit before the sound.mp4", ".mp4", edited(_pair, None, [(3, -1), (12, 0)]), truth(sound_late_s=3),
     notes=["sound_late"])  # fmt: skip
_add("two pieces of a film.mp4", ".mp4",
     edited([Pictures(gop=10, b_frames=0), Sound(codec="pcm_s16le")], [(3, 0), (5, 6)], [(3, 0), (5, 6)]),
     Shown(pictures=(0, 1, 2, 6, 7, 8, 9, 10, 10, 10), tones=(0, 1, 2, 6, 7, 8, 9, 10, None, None)),
     repeated_from_s=8, notes=["sound_short"])  # fmt: skip
_add("two pieces cut between key pictures.mov", ".mov",
     edited([Pictures(gop=40, b_frames=0), Sound(codec="pcm_s16le")], [(3, 1), (7, 5)], [(3, 1), (7, 5)]),
     Shown(pictures=(1, 2, 3, 5, 6, 7, 8, 9, 10, 11), tones=(1, 2, 3, 5, 6, 7, 8, 9, 10, 11)))  # fmt: skip


def _part(first: float, last: float, **settings: float) -> list:
    return [Pictures(content=(first, last), rate=25), Sound(codec="mp2", rate_hz=48_000, content=(first, last))]


_add("two parts joined.ts", ".ts", joined(_part(0, 5), _part(5, 12)), notes=["time_joined"])
_add("three parts joined.ts", ".ts", joined(_part(0, 3), _part(3, 6), _part(6, 12)), notes=["time_joined"])
_add("parts without sound joined.ts", ".ts", joined(_part(0, 5)[:1], _part(5, 12)[:1]), truth(sound_late_s=None),
     notes=["time_joined"])  # fmt: skip
_add("time leaps an hour ahead.ts", ".ts",
     joined(_part(0, 5), _part(5, 12), options=[None, {"output_ts_offset": "3600"}]),
     notes=["time_joined"])  # fmt: skip
_add("time leaps an hour back.ts", ".ts",
     joined(_part(0, 5), _part(5, 12), options=[{"output_ts_offset": "3600"}, None]),
     notes=["time_joined"])  # fmt: skip
_add("three seconds were lost.ts", ".ts",
     joined(_part(0, 4), _part(7, 12), options=[None, {"output_ts_offset": "7.1"}]),
     Shown(pictures=(0, 1, 2, 3, 3, 3, 3, 7, 8, 9), tones=(0, 1, 2, 3, None, None, None, 7, 8, 9)),
     notes=["picture_held", "sound_gap"])  # fmt: skip
_WRAP_S = 2**33 / 90_000
_add("clock of 33 bits wraps.ts", ".ts", of(_part(0, 12), options={"output_ts_offset": f"{_WRAP_S - 1.4 - 4:.2f}"}))
_add("clock wraps at the join.ts", ".ts",
     joined(_part(0, 5), _part(5, 12), options=[{"output_ts_offset": f"{_WRAP_S - 4.95:.2f}"}, None]))  # fmt: skip
_add("two parts joined.mkv", ".mkv",
     joined(*([Pictures(content=part), Sound(codec="flac", content=part)] for part in ((0, 5), (5, 12)))),
     notes=["time_joined"], ffmpeg="leaves out pictures whose time stamps go back")  # fmt: skip
for _name, _first, _second in (
    ("rate", Sound(codec="mp2", rate_hz=48_000, content=(0, 5)), Sound(codec="mp2", rate_hz=32_000, content=(5, 12))),
    ("layout", Sound(codec="mp2", rate_hz=48_000, content=(0, 5)),
     Sound(codec="mp2", rate_hz=48_000, layout="stereo", content=(5, 12))),
    ("layout of many channels", Sound(codec="ac3", rate_hz=48_000, layout="5.1", content=(0, 5)),
     Sound(codec="ac3", rate_hz=48_000, content=(5, 12))),
    ("layout, AAC", Sound(rate_hz=48_000, content=(0, 5)), Sound(rate_hz=48_000, layout="stereo", content=(5, 12))),
):  # fmt: skip
    _add(f"sound changes its {_name}.ts", ".ts",
         joined([Pictures(content=(0, 5)), _first], [Pictures(content=(5, 12)), _second],
                options=[None, {"output_ts_offset": "5"}]), notes=["sound_varies"],
         ffmpeg="moves the picture where the sound steps back by 0.1 s" if "many" in _name else "")  # fmt: skip
_add("picture changes its size.ts", ".ts",
     joined([Pictures(content=(0, 5)), Sound(codec="mp2", rate_hz=48_000, content=(0, 5))],
            [Pictures(content=(5, 12), size=(128, 160)), Sound(codec="mp2", rate_hz=48_000, content=(5, 12))],
            options=[None, {"output_ts_offset": "5"}]), notes=["size_varies"])  # fmt: skip
_add("live, without length or index.mkv", ".mkv", of([Pictures(), Sound(codec="flac")], options={"live": "1"}))
_add("fragments.mp4", ".mp4", of([Pictures(), Sound()], options={"movflags": "frag_keyframe+empty_moov"}),
     truth(late_s=0.2))  # no edit list there takes back the delay of reordered pictures
_add("fragments with late sound.mp4", ".mp4",
     of([Pictures(), Sound(late_s=2)], options={"movflags": "frag_keyframe+empty_moov+delay_moov"}),
     truth(sound_late_s=2), notes=["sound_late"])  # fmt: skip

# ---------------------------------------------------------------------------------- headers and stamps that say nothing


def changed(tracks: Sequence, change: Callable[[bytearray], None], **settings: object) -> Callable[[Path], object]:
    def build(path: Path) -> None:
        write_film(path, tracks, **settings)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return build


def _unstamped(content: bytearray) -> None:
    """Takes the time stamps from all pictures of a transport stream but the first."""
    pictures = 0
    for start in range(0, len(content), 188):
        filled = 1 + content[start + 4] if content[start + 3] & 0x20 else 0
        place = start + 4 + filled
        if content[start + 1] & 0x40 and content[place : place + 4] == b"\0\0\1\xe0":
            pictures += 1
            if pictures > 1:
                content[place + 7] &= 0x3F


def _avi_header(kind: bytes, offset: int, value: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        place = content.index(kind) + offset
        content[place : place + 4] = struct.pack("<I", value)

    return change


def _without_lengths(content: bytearray) -> None:
    for kind, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        place = 0
        while (place := content.find(kind, place + 4)) > 0:
            content[place + offset : place + offset + 4] = bytes(4)


_avi = [Pictures(codec="mjpeg"), Sound(codec="pcm_s16le")]
_START, _LENGTH = 28, 32
_add("pictures without time stamps.ts", ".ts",
     changed([Pictures(rate=25, b_frames=0), Sound(codec="mp2", rate_hz=48_000)], _unstamped),
     notes=["time_guessed"])  # fmt: skip
_add("header says no sound samples.avi", ".avi", changed(_avi, _avi_header(b"auds", _LENGTH, 0)))
_add("header says no pictures.avi", ".avi", changed(_avi, _avi_header(b"vids", _LENGTH, 0)))
_add("header says 2^31 pictures.avi", ".avi", changed(_avi, _avi_header(b"vids", _LENGTH, 2**31 - 1)))
_add("sound 2 s late.avi", ".avi", changed(_avi, _avi_header(b"auds", _START, 32_000)), truth(sound_late_s=2),
     notes=["sound_late"])  # fmt: skip
_add("picture 2 s late.avi", ".avi", changed(_avi, _avi_header(b"vids", _START, 20)), truth(late_s=2),
     notes=["picture_late"])  # fmt: skip
_add("header says 0 s.mp4", ".mp4", changed([Pictures(), Sound()], _without_lengths))
_add("one picture a second, reordered.mkv", ".mkv", of([Pictures(rate=1, b_frames=3), Sound(codec="flac")]))
