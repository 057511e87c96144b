"""Applies a track's display matrix to its pictures, as a player does, with rotation and mirroring."""

import math
import struct

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Angles this close to a right angle come from a camera's rounding; players treat them as right angles.
_NEAR_DEGREES = 1.0
DISPLAY_MATRIX = "DISPLAYMATRIX"  # of the data beside a frame


def upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a frame as a player shows it."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get(DISPLAY_MATRIX)
    return pixels if matrix is None else shown(pixels, struct.unpack("=9i", bytes(matrix)))


def shown(pixels: UInt8[np.ndarray, "h w 3"], matrix: tuple[int, ...]) -> UInt8[np.ndarray, "height width 3"]:
    """Applies a display matrix (a, b, u, c, d, v, x, y, w), which maps a point (x, y) to (a x + c y, b x + d y).

    Scale and shift describe a player's window and are ignored, and so is a singular matrix.
    """
    across, down = (matrix[0], matrix[1]), (matrix[3], matrix[4])  # directions of the picture's axes
    lengths = math.hypot(*across), math.hypot(*down)
    if not all(lengths):
        return pixels
    mirrored = across[0] * down[1] - across[1] * down[0] < 0
    clockwise = math.degrees(math.atan2(across[1], across[0]))
    quarters = round(clockwise / 90)
    flipped = pixels[::-1] if mirrored else pixels  # mirrored first, so that only a rotation remains
    if abs(clockwise - 90 * quarters) < _NEAR_DEGREES:
        return np.ascontiguousarray(np.rot90(flipped, -quarters))
    turned = Image.fromarray(np.ascontiguousarray(flipped)).rotate(-clockwise, Image.Resampling.BILINEAR)
    return np.asarray(turned)
