"""PNG files byte by byte, of every colour type and depth, so that a test says exactly what a file holds."""

import struct
import zlib
from pathlib import Path

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def write_png(
    path: Path, values: np.ndarray, colour_type: int, depth: int = 8, palette: bytes | None = None,
    transparent: bytes | None = None,
) -> Path:  # fmt: skip
    """Writes `values`, of shape (h, w) or (h, w, channels), as they are: no scaling, no conversion."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if depth < 8:
        shifts = np.arange(depth - 1, -1, -1)
        bits = (rows[..., None] >> shifts & 1).astype(np.uint8).reshape(height, -1)
        lines = [np.packbits(line).tobytes() for line in bits]
    else:
        lines = [line.astype(">u2" if depth == 16 else "u1").tobytes() for line in rows]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", transparent),
             (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))), (b"IEND", b"")]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts if part[1] is not None))
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
