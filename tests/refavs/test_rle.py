"""COCO's run lengths: strings that the format's definition gives, and that every mask comes back."""

import numpy as np
import pytest

from refavs.data.rle import decoded, encoded, from_runs, plain, runs_of


@pytest.mark.parametrize(("mask", "counts"), [
    ([[0, 0], [0, 0]], "4"),
    ([[1, 1], [1, 1]], "04"),  # the first run is of background
    ([[0, 1], [0, 0]], "211"),  # column by column
    ([[0, 0], [1, 0]], "112"),
    ([[1, 0, 1, 0, 1, 0]], "0110000"),  # from the fourth run on, differences to the run two before
    ([[1] * 5 + [0] * 3 + [1, 0]], "053LN"),  # 1 - 5 and 1 - 3, in two's complement
])  # fmt: skip
def test_small_masks_have_the_strings_of_the_definition(mask: list[list[int]], counts: str) -> None:
    pixels = np.array(mask, bool)
    assert encoded(pixels) == {"size": list(pixels.shape), "counts": counts}
    assert np.array_equal(decoded(encoded(pixels)), pixels)


def test_long_runs_take_several_groups_of_five_bits() -> None:
    pixels = np.zeros((100, 100), bool)
    pixels[:, 50] = True  # runs of 5000, 100 and 4900
    groups = [(5000 & 31 | 32) + 48, (5000 >> 5 & 31 | 32) + 48, (5000 >> 10) + 48]
    found = encoded(pixels)["counts"]
    assert [ord(letter) for letter in found[:3]] == groups
    assert found[3:5] == chr((100 & 31 | 32) + 48) + chr((100 >> 5) + 48)
    assert np.array_equal(decoded(encoded(pixels)), pixels)


def test_any_mask_comes_back() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        pixels = rng.random((37, 53)) < share
        assert np.array_equal(decoded(encoded(pixels)), pixels)
        blocks = np.kron(rng.random((3, 4)) < share, np.ones((11, 13))).astype(bool)
        assert np.array_equal(decoded(encoded(blocks)), blocks)


def test_plain_runs_follow_the_order_of_pixels() -> None:
    pixels = np.array([[0, 1], [1, 1], [0, 0]], bool)
    assert plain(pixels) == {"size": [3, 2], "counts": [1, 1, 1, 2, 1]}
    assert runs_of(pixels, "C") == [1, 3, 2]
    assert np.array_equal(decoded(plain(pixels)), pixels)
    assert np.array_equal(from_runs([1, 3, 2], 3, 2, "C"), pixels)


@pytest.mark.parametrize("lengths", [
    {"size": [2, 2], "counts": [1, 2]}, {"size": [2, 2], "counts": [5, -1]}, {"size": [2, 2], "counts": "3"},
    {"size": [2, 2], "counts": "\n4"}, {"size": [2, 2], "counts": "o"}, {"size": [2, 2], "counts": "ooooooooooooo4"},
    {"size": [2, 2], "counts": "\xe94"},
])  # fmt: skip
def test_runs_that_make_no_mask_are_refused(lengths: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        decoded(lengths)  # type: ignore[arg-type]
