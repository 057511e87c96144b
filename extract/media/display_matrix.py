"""Pictures as a player shows them: the display matrix of a track applied whole, with its mirrors."""

import math
import struct
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image

if TYPE_CHECKING:
    import av

# A camera's matrix is off a right angle by rounding at most; players take what is closer than this for one.
_NEAR_DEGREES = 1.0


def upright(frame: "av.VideoFrame") -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a frame as a player shows it."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return pixels if matrix is None else shown(pixels, struct.unpack("=9i", bytes(matrix)))


def shown(pixels: UInt8[np.ndarray, "h w 3"], matrix: tuple[int, ...]) -> UInt8[np.ndarray, "height width 3"]:
    """Pixels by a display matrix: (a, b, u, c, d, v, x, y, w), a point (x, y) goes to (a x + c y, b x + d y).

    Scale and shift say how large and where a window would be, and are left out; so is a matrix that turns nothing.
    """
    across, down = (matrix[0], matrix[1]), (matrix[3], matrix[4])  # where the axes of the picture point
    lengths = math.hypot(*across), math.hypot(*down)
    if not all(lengths):
        return pixels
    mirrored = across[0] * down[1] - across[1] * down[0] < 0
    clockwise = math.degrees(math.atan2(across[1], across[0]))
    quarters = round(clockwise / 90)
    flipped = pixels[::-1] if mirrored else pixels  # about the horizontal axis first, so that one turn remains
    if abs(clockwise - 90 * quarters) < _NEAR_DEGREES:
        return np.ascontiguousarray(np.rot90(flipped, -quarters))
    turned = Image.fromarray(np.ascontiguousarray(flipped)).rotate(-clockwise, Image.Resampling.BILINEAR)
    return np.asarray(turned)
