"""Sums of channels are those of float64, whatever the layout, and the same bits with any number of threads."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from refavs.store.format.channel_stats import ChannelSums


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives torch its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plain(values: np.ndarray, channel_axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in one line of float64."""
    rows = np.moveaxis(values.astype(np.float64), channel_axis, 0).reshape(values.shape[channel_axis], -1)
    return rows.sum(1), np.square(rows).sum(1)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(
    values=arrays.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]), arrays.array_shapes(min_dims=1, max_dims=4, max_side=6),
        elements=st.floats(-1000, 1000, width=16),
    ),
    data=st.data(),
)  # fmt: skip
def test_sums_are_those_of_float64(values: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, values.ndim - 1))
    before = values.copy()
    if data.draw(st.booleans(), label="read only"):
        values.flags.writeable = False
    values = data.draw(st.sampled_from([values, values[::-1]]))
    sums = ChannelSums.of(values, axis)
    total, squares = plain(values, axis)
    assert sums.count * values.shape[axis] == values.size
    scale = np.abs(values.astype(np.float64)).max(initial=0) * sums.count
    np.testing.assert_allclose(sums.total, total, atol=1e-6 * scale, rtol=0)
    np.testing.assert_allclose(sums.squares, squares, atol=1e-6 * scale**2 + 1e-12, rtol=0)
    np.testing.assert_array_equal(before if values.base is None else before[::-1], values)


@pytest.mark.parametrize(
    ("shape", "axis"), [((10, 64, 40, 40), 1), ((1, 1, 300, 300), 1), ((3, 700, 1), 1), ((50_000, 2), 1)]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sums_have_the_same_bits_with_any_number_of_threads(
    threads: None, shape: tuple[int, ...], axis: int, dtype: type
) -> None:
    values = np.random.default_rng(0).normal(3, 1, shape).astype(dtype)
    found = []
    for number in (1, 2, 3, 7):
        torch.set_num_threads(number)
        sums = ChannelSums.of(values, axis)
        found.append((sums.total.tobytes(), sums.squares.tobytes()))
    assert len(set(found)) == 1
    total, squares = plain(values, axis)
    np.testing.assert_allclose(sums.total, total, rtol=1e-6)
    np.testing.assert_allclose(sums.squares, squares, rtol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1000.7, -7e-6, 0.0])
def test_constant_map_has_deviation_one(value: float) -> None:
    values = np.full((10, 2, 96, 96), value, np.float16)
    mean, std = ChannelSums.of(values, 1).merge(ChannelSums.of(values, 1)).moments()
    assert mean.tolist() == [np.float32(values.flat[0])] * 2 and std.tolist() == [1, 1]


def test_small_deviation_beside_a_large_mean_is_kept() -> None:
    values = np.full((10, 1, 96, 96), 1000, np.float16)
    values[:, :, ::2] += np.float16(0.5)
    mean, std = ChannelSums.of(values, 1).moments()
    assert mean[0] == pytest.approx(1000.25) and std[0] == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 1, 0, 0), (1, 1, 3, 2)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_that_are_not_finite_are_reported(bad: float, place: tuple[int, ...], dtype: type) -> None:
    values = np.zeros((2, 3, 4, 4), dtype)
    assert ChannelSums.of(values, 1).finite
    values[place] = bad
    assert not ChannelSums.of(values, 1).finite


def test_nothing_valid_sums_to_nothing() -> None:
    sums = ChannelSums.of(np.ones((5, 3), np.float32), 1, np.zeros(5, bool))
    assert sums.count == 0 and not sums.total.any() and not sums.squares.any()


def test_padded_places_of_a_map_are_left_out() -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float16)
    valid = np.random.default_rng(1).random((2, 4, 5)) > 0.5
    sums = ChannelSums.of(values, 1, valid)
    expected = np.moveaxis(values.astype(np.float64), 1, -1)[valid]
    assert sums.count == len(expected)
    np.testing.assert_allclose(sums.total, expected.sum(0), atol=1e-3)
    np.testing.assert_allclose(sums.squares, (expected**2).sum(0), atol=1e-3)
