"""Checks what a container declares, before libav trusts it: an MP4's number of samples, and any file's end."""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from refavs.errors import DatasetError

# Boxes that contain the sample tables of whole and of fragmented files.
_FOLDERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"edts"}
# A fragmented hour has about this many; tables further back do not matter for the first seconds.
_MOST_BOXES = 50_000
# A film that was cut has some dozens of edits; libav indexes the samples of each.
_FEW_EDITS, _MOST_EDITED_SAMPLES = 4, 5_000_000
_DEEPEST = 8
_OUTERMOST = (
    b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"styp", b"sidx", b"uuid", b"mfra", b"meta",
)
_FAR = 1 << 63
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
# An incomplete download with preallocated size ends in zeros.
_EMPTY_TAIL_BYTES = 4096
_REMEDY = "copy or encode it again"


def refuse_declared_samples(path: Path) -> None:
    """Refuses an MP4 or MOV that declares more samples than it has bytes; other files pass.

    libav allocates 57 bytes per declared sample, and again for each edit that shows it: a file of 2 KB could take
    100 GB.

    Raises:
        DatasetError: more samples than bytes, far too many edits, or a compressed index, whose size is unknown.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if file.read(8)[4:] not in (b"ftyp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"styp"):
            return
        pending, seen, edits, samples = [(0, size_bytes, 0)], 0, 0, 0
        while pending and seen < _MOST_BOXES:
            position, end, depth = pending.pop()
            kind, body, stop = _box(file, position, end)
            seen += 1
            if stop < end:
                pending.append((stop, end, depth))
            if kind in _FOLDERS and depth < _DEEPEST and body < stop:
                pending.append((body, stop, depth + 1))
            declared = _declared(file, kind, body)
            if declared > size_bytes:
                raise DatasetError(f"video {path} declares {declared:,} samples in {size_bytes:,} bytes; {_REMEDY}")
            edits = 0 if kind == b"trak" else _count(file, body + 4) if kind == b"elst" else edits
            samples = 0 if kind == b"trak" else declared if kind == b"stsz" else samples
            if edits > _FEW_EDITS and edits * samples > _MOST_EDITED_SAMPLES:
                raise DatasetError(f"video {path} declares {edits:,} edits of {samples:,} samples; {_REMEDY}")
            if kind == b"cmov":
                raise DatasetError(f"video {path} has a compressed index of unknown size; {_REMEDY}")


def is_cut_off(path: Path) -> bool:
    """Whether a file is shorter than its outermost boxes declare, or ends in unwritten bytes.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(12)
        file.seek(max(0, size_bytes - _EMPTY_TAIL_BYTES))
        if size_bytes > _EMPTY_TAIL_BYTES and not any(file.read(_EMPTY_TAIL_BYTES)):
            return True
        if head[:4] == b"RIFF":
            return struct.unpack("<I", head[4:8])[0] + 8 > size_bytes
        if head[:4] == _EBML:
            return _end_of_segment(file) > size_bytes
        position, seen = 0, 0
        while head[4:8] in _OUTERMOST and position < size_bytes and seen < _MOST_BOXES:
            kind, _, stop = _box(file, position, _FAR)
            if kind not in _OUTERMOST or stop == _FAR:  # the last box may extend to the end of the file
                return False
            position, seen = stop, seen + 1
        return position > size_bytes


def _end_of_segment(file: BinaryIO) -> int:
    """Declared end of the first segment of a Matroska file; 0 if it declares none."""
    position = 0
    for wanted in (_EBML, _SEGMENT):
        file.seek(position)
        head = file.read(12)
        if head[:4] != wanted or len(head) < 5 or not head[4]:
            return 0
        width = 9 - head[4].bit_length()
        value = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if value == (1 << 7 * width) - 1:  # unknown size, as in a live stream
            return 0
        position += 4 + width + value
    return position


def _box(file: BinaryIO, position: int, end: int) -> tuple[bytes, int, int]:
    """Kind, start of content and end of the box at `position`; an incomplete box extends to `end`."""
    file.seek(position)
    head = file.read(16)
    if len(head) < 8:
        return b"", end, end
    size, kind, header = struct.unpack(">I", head[:4])[0], head[4:8], 8
    if size == 1 and len(head) == 16:
        size, header = struct.unpack(">Q", head[8:])[0], 16
    if size < header:  # 0 means up to the end
        size = end - position
    return kind, position + header, min(position + size, end)


def _declared(file: BinaryIO, kind: bytes, body: int) -> int:
    """Number of samples that a table declares; `stsz` stores it after their common size, `trun` first."""
    if kind not in (b"stsz", b"trun"):
        return 0
    return _count(file, body + (8 if kind == b"stsz" else 4))


def _count(file: BinaryIO, place: int) -> int:
    file.seek(place)
    count = file.read(4)
    return struct.unpack(">I", count)[0] if len(count) == 4 else 0
