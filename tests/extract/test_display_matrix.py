"""Display matrices by their definition: a point (x, y) of the picture is shown at (a x + c y, b x + d y)."""

import itertools

import numpy as np
import pytest

from extract.media.display_matrix import shown

ONE = 1 << 16
# All turns and mirrors that keep the axes: signs and places of two numbers.
ORTHOGONAL = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)] + [
    (0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)
]


def matrix(a: float, b: float, c: float, d: float) -> tuple[int, ...]:
    return (round(a * ONE), round(b * ONE), 0, round(c * ONE), round(d * ONE), 0, 5 * ONE, -3 * ONE, 1 << 30)


@pytest.mark.parametrize(("a", "b", "c", "d"), ORTHOGONAL)
@pytest.mark.parametrize("scale", [1, 0.5, 3])
def test_each_pixel_is_shown_where_the_matrix_puts_it(a: int, b: int, c: int, d: int, scale: float) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    result = shown(pixels, matrix(scale * a, scale * b, scale * c, scale * d))
    height, width = (4, 6) if a else (6, 4)
    assert result.shape == (height, width, 3)
    for y, x in itertools.product(range(4), range(6)):
        from_centre = x - 2.5, y - 1.5
        across = a * from_centre[0] + c * from_centre[1] + (width - 1) / 2
        down = b * from_centre[0] + d * from_centre[1] + (height - 1) / 2
        np.testing.assert_array_equal(result[round(down), round(across)], pixels[y, x])


@pytest.mark.parametrize("degrees", [30, -30, 45, 200])
def test_odd_angle_turns_clockwise(degrees: float) -> None:
    pixels = np.zeros((101, 101, 3), np.uint8)
    pixels[45:56, 80:91] = 255  # to the right of the centre
    radians = np.radians(degrees)
    result = shown(pixels, matrix(np.cos(radians), np.sin(radians), -np.sin(radians), np.cos(radians)))
    down, across = (places.mean() - 50 for places in np.nonzero(result[..., 0] > 128))
    assert (across, down) == pytest.approx((35 * np.cos(radians), 35 * np.sin(radians)), abs=1.5)


def test_matrix_of_zeros_turns_nothing() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    np.testing.assert_array_equal(shown(pixels, (0,) * 9), pixels)
