"""Corrects the length in the header of a WAV file, which recorders leave wrong when they stream or die."""

import struct
from io import SEEK_END, SEEK_SET, BufferedReader, RawIOBase
from typing import Any, BinaryIO

_MOST_CHUNKS = 1000
# Bytes after the declared samples that are no chunk count as samples if they last at least this long.
_SHORTEST_REST_S = 0.05


class _Corrected(RawIOBase):
    """A file with some of its bytes replaced on reading."""

    def __init__(self, raw: BinaryIO, bytes_at: dict[int, bytes]) -> None:
        super().__init__()
        self._raw, self._bytes_at = raw, bytes_at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        start, view = self._raw.tell(), memoryview(buffer).cast("B")
        data = bytearray(self._raw.read(len(view)))
        for place, new in self._bytes_at.items():
            for index, value in enumerate(new, place - start):
                if 0 <= index < len(data):
                    data[index] = value
        view[: len(data)] = data
        return len(data)


def by_its_samples(raw: BinaryIO) -> tuple[BinaryIO, bool]:
    """The file with the true length of its samples, and whether the declared one was wrong.

    Only RIFF files are examined; libsndfile reports any other error in them.
    """
    size = raw.seek(0, SEEK_END)
    raw.seek(0)
    head = raw.read(12)
    found = _samples(raw, size) if head[:4] == b"RIFF" and head[8:] == b"WAVE" else None
    raw.seek(0)
    if found is None:
        return raw, False
    place, declared, bytes_per_s = found
    rest = size - place - 8
    if declared > rest:
        return raw, True  # libsndfile reads the existing samples
    behind = place + 8 + declared + declared % 2
    if behind >= size or _is_chunk(raw, behind, size) or size - behind < _SHORTEST_REST_S * bytes_per_s:
        raw.seek(0)
        return raw, False
    raw.seek(0)
    lengths = {4: struct.pack("<I", min(size - 8, 2**32 - 1)), place + 4: struct.pack("<I", min(rest, 2**32 - 1))}
    return BufferedReader(_Corrected(raw, lengths)), True


def _samples(raw: BinaryIO, size: int) -> tuple[int, int, int] | None:
    """Start of the chunk of samples, its declared length, and the bytes of a second of sound."""
    place, bytes_per_s = 12, 0
    for _ in range(_MOST_CHUNKS):
        raw.seek(place)
        head = raw.read(16 + 8)
        if len(head) < 8 or place >= size:
            return None
        kind, length = head[:4], struct.unpack("<I", head[4:8])[0]
        if kind == b"data":
            return place, length, bytes_per_s
        if kind == b"fmt " and len(head) >= 20:
            bytes_per_s = struct.unpack("<I", head[16:20])[0]
        place += 8 + length + length % 2
    return None


def _is_chunk(raw: BinaryIO, place: int, size: int) -> bool:
    """Whether a chunk seems to begin there: four printable letters, and a length within the file."""
    raw.seek(place)
    head = raw.read(8)
    letters = head[:4].isascii() and all(32 <= value < 127 for value in head[:4])
    return len(head) == 8 and letters and place + 8 + struct.unpack("<I", head[4:8])[0] <= size + 1
