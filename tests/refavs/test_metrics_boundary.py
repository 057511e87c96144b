"""Boundary counts against DAVIS's definition, one pixel at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from refavs.metrics.boundary import _rectangles, boundary_counts, boundary_map, boundary_radius


def contour_of(mask: np.ndarray) -> np.ndarray:
    """Pixel by pixel: differs from the right, lower or lower right neighbour; on an edge, from those that exist."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                if y + dy < height and x + dx < width:
                    found[y, x] |= mask[y, x] != mask[y + dy, x + dx]
    return found


def literal_counts(pred: np.ndarray, target: np.ndarray) -> dict[str, int]:
    radius = math.ceil(0.008 * math.sqrt(pred.shape[0] ** 2 + pred.shape[1] ** 2))
    contours = {"pred": np.argwhere(contour_of(pred)), "target": np.argwhere(contour_of(target))}
    counts = {name: len(points) for name, points in contours.items()}
    for name, other in (("pred", "target"), ("target", "pred")):
        met = 0
        for point in contours[name]:
            met += any(((point - near) ** 2).sum() <= radius**2 for near in contours[other])
        counts[f"{name}_met"] = met
    return counts


@settings(max_examples=40, deadline=None, database=None)
@given(masks=npst.arrays(bool, st.tuples(st.just(2), st.integers(1, 14), st.integers(1, 17))))
def test_boundary_counts_equal_the_definition_on_any_mask(masks: np.ndarray) -> None:
    pred, target = masks
    found = boundary_counts(torch.from_numpy(pred), torch.from_numpy(target))
    assert {name: int(value) for name, value in found.items()} == literal_counts(pred, target)


@pytest.mark.long
@pytest.mark.parametrize(("height", "width", "radius"), [(60, 80, 1), (150, 200, 2)])
def test_boundary_counts_equal_the_definition_on_discs(height: int, width: int, radius: int) -> None:
    assert boundary_radius(height, width) == radius and boundary_radius(384, 384) == 5
    y, x = np.mgrid[:height, :width]
    scale = height / 60
    pred = (y - 20 * scale) ** 2 + (x - 20 * scale) ** 2 < 60 * scale
    target = (y - 20 * scale - radius) ** 2 + (x - 20 * scale - radius) ** 2 < 50 * scale
    frames = torch.from_numpy(np.stack([pred, target, pred]))
    others = torch.from_numpy(np.stack([target, pred, np.zeros_like(pred)]))
    found = boundary_counts(frames, others)
    expected = [literal_counts(a, b) for a, b in zip(frames.numpy(), others.numpy(), strict=True)]
    assert {name: value.tolist() for name, value in found.items()} == {
        name: [counts[name] for counts in expected] for name in expected[0]
    }
    assert 0 < expected[0]["pred_met"] < expected[0]["pred"], "the case says nothing"


@pytest.mark.parametrize("radius", range(12))
def test_rectangles_make_up_the_disc(radius: int) -> None:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    union = np.zeros_like(y, bool)
    for half_height, half_width in _rectangles(radius):
        union |= (abs(y) <= half_height) & (abs(x) <= half_width)
    np.testing.assert_array_equal(union, y**2 + x**2 <= radius**2)


def test_a_full_or_empty_frame_has_no_boundary() -> None:
    for value in (False, True):
        assert not boundary_map(torch.full((2, 5, 7), value)).any()
