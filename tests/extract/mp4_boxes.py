"""Changes to the boxes of an MP4 or MOV whose index lies at its end: display matrices and edit lists."""

import struct
from collections.abc import Sequence
from pathlib import Path

_ONE = 1 << 16


def set_matrix(path: Path, matrix: Sequence[float], track: int = 0) -> None:
    """Sets a track's display matrix: (a, b, c, d) of x' = a x + c y, y' = b x + d y."""
    a, b, c, d = (round(value * _ONE) for value in matrix)
    content = bytearray(path.read_bytes())
    start = _tracks(content)[track][0]
    place = content.index(b"tkhd", start) + 44
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def set_edits(path: Path, edits: Sequence[tuple[float, float]], track: int = 0) -> None:
    """Replaces a track's edit list: for each edit its length and where in the track it begins, -1 for an empty one."""
    content = bytearray(path.read_bytes())
    movie_scale = _scale(content, b"mvhd", 0)
    start, end = _tracks(content)[track]
    scale = _scale(content, b"mdhd", start)
    entries = b"".join(
        struct.pack(">IiI", round(length_s * movie_scale), -1 if from_s < 0 else round(from_s * scale), _ONE)
        for length_s, from_s in edits
    )
    elst = _box(b"elst", struct.pack(">II", 0, len(edits)) + entries)
    body = bytes(content[start + 8 : end])
    if b"edts" in body:
        place = body.index(b"edts") - 4
        size = struct.unpack(">I", body[place : place + 4])[0]
        body = body[:place] + body[place + size :]
    header = struct.unpack(">I", body[:4])[0]
    trak = _box(b"trak", body[:header] + _box(b"edts", elst) + body[header:])
    moov = content.index(b"moov") - 4
    assert moov > content.index(b"mdat"), "the index must lie behind the samples, whose places stay"
    grown = bytes(content[moov + 8 : start]) + trak + bytes(content[end:])
    path.write_bytes(bytes(content[:moov]) + _box(b"moov", grown))


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def _tracks(content: bytes | bytearray) -> list[tuple[int, int]]:
    """Where each track's box begins and ends."""
    found, place = [], content.index(b"moov")
    while (place := content.find(b"trak", place + 4)) > 0:
        size = struct.unpack(">I", content[place - 4 : place])[0]
        found.append((place - 4, place - 4 + size))
    return found


def _scale(content: bytes | bytearray, kind: bytes, start: int) -> int:
    place = content.index(kind, start) + 16
    return struct.unpack(">I", content[place : place + 4])[0]
