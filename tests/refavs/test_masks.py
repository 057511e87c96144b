"""Masks of every kind of PNG and meaning; each file is built byte by byte, so that its object is known."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refavs.data import masks
from refavs.data.masks import MaskRuleError
from refavs.errors import DatasetError
from tests.refavs.png import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, write_png

# A quarter of the picture, off both edges; 14 wide, so that rows of 1, 2 and 4 bits end within a byte.
OBJECT = np.zeros((8, 14), bool)
OBJECT[2:6, 3:10] = True
COLOURED = bytes([0, 0, 0, 128, 0, 0, 0, 128, 0])


def read_masks(folder: Path, seconds: Iterable[int], *given: Any, **named: Any) -> np.ndarray:
    return masks.read_masks([folder / f"{second:05d}.png" for second in seconds], *given, **named)


def read_mask(folder: Path, second: int, **named: Any) -> np.ndarray:
    return read_masks(folder, [second], **named)[0]


def grey(inside: int, outside: int = 0) -> np.ndarray:
    return np.where(OBJECT, inside, outside)


def colour(inside: tuple[int, ...], outside: tuple[int, ...]) -> np.ndarray:
    return np.where(OBJECT[..., None], inside, outside)


def halves(one: int, other: int) -> np.ndarray:
    """Two labels, together the object."""
    found = grey(one)
    found[:, 6:][OBJECT[:, 6:]] = other
    return found


def ids(values: np.ndarray) -> np.ndarray:
    """As COCO's panoptic files write ids: R + 256 G + 65536 B."""
    return np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1)


def swatch(*colours: tuple[int, int, int]) -> bytes:
    return bytes(value for each in colours for value in each)


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
# By name: values, colour type, depth, palette, transparency. All show the same object.
CLEAR: dict[str, tuple[Any, ...]] = {
    **{f"grey of {depth} bit, {value}": (grey(value), GREY, depth)
       for depth in (1, 2, 4, 8, 16) for value in {1, 2**depth - 1}},
    "grey of 16 bit, below one byte": (grey(200), GREY, 16),
    "grey of 16 bit, an id": (grey(26001), GREY, 16),
    "labels 1 and 2": (halves(1, 2), GREY, 8),
    "labels 1 and 255": (halves(1, 255), GREY, 8),
    "labels of 16 bit": (halves(1, 300), GREY, 16),
    "grey whose 0 is transparent": (grey(255), GREY, 8, None, b"\0\0"),
    "grey of 2 bit whose 0 is transparent": (grey(1), GREY, 2, None, b"\0\0"),
    "grey with a transparent value that does not occur": (grey(255), GREY, 8, None, b"\0\7"),
    **{f"index of {depth} bit with colours": (grey(1), PALETTE, depth, COLOURED[:6]) for depth in (1, 2, 4, 8)},
    **{f"index of {depth} bit without colours": (grey(1), PALETTE, depth, bytes(3)) for depth in (1, 2, 4, 8)},
    "two labels with colours": (halves(1, 2), PALETTE, 8, COLOURED),
    "two labels, the second without a colour": (halves(1, 2), PALETTE, 8, COLOURED[:6]),
    "label far outside the palette": (grey(200), PALETTE, 8, bytes(3)),
    "index with a palette of black alone": (grey(1), PALETTE, 8, bytes(768)),
    "index with a palette of white alone": (grey(1), PALETTE, 8, bytes([255] * 768)),
    "index with grey colours": (grey(1), PALETTE, 8, bytes(value for each in range(256) for value in [each] * 3)),
    "index never 0, one colour black": (grey(2, 1), PALETTE, 8, swatch(WHITE, BLACK, WHITE)),
    "index whose 0 is transparent": (grey(1), PALETTE, 8, COLOURED, bytes([0])),
    "index without colours whose 0 is transparent": (grey(1), PALETTE, 8, bytes(3), bytes([0])),
    "index with opacity that says nothing": (grey(1), PALETTE, 8, COLOURED, bytes([255, 255])),
    **{f"colour {inside}": (colour(inside, BLACK), RGB, 8)
       for inside in (WHITE, RED, (1, 0, 0), (0, 0, 1), (0, 1, 0))},
    "panoptic id 1": (ids(grey(1)), RGB, 8),
    "panoptic id 256": (ids(grey(256)), RGB, 8),
    "panoptic id 65536": (ids(grey(65536)), RGB, 8),
    "panoptic ids 3 and 70000": (ids(halves(3, 70000)), RGB, 8),
    "colour of 16 bit": (colour((65535, 0, 0), BLACK), RGB, 16),
    "colour of 16 bit, below one byte": (colour((0, 0, 200), BLACK), RGB, 16),
    "colour whose black is transparent": (colour(RED, BLACK), RGB, 8, None, bytes(6)),
    "grey, opaque": (colour((255, 255), (0, 255)), GREY_ALPHA, 8),
    "colour, opaque": (colour((9, 0, 0, 255), (0, 0, 0, 255)), RGBA, 8),
    "colour of 16 bit, opaque": (colour((9, 0, 0, 65535), (0, 0, 0, 65535)), RGBA, 16),
    "grey of 16 bit, opaque": (colour((9, 65535), (0, 65535)), GREY_ALPHA, 16),
    "alpha of black": (colour((0, 0, 0, 255), (0, 0, 0, 0)), RGBA, 8),
    "alpha of white": (colour((255, 255, 255, 255), (255, 255, 255, 0)), RGBA, 8),
    "alpha of grey": (colour((7, 255), (7, 0)), GREY_ALPHA, 8),
    "half transparent": (colour((0, 0, 0, 9), (0, 0, 0, 0)), RGBA, 8),
    "alpha of 16 bit, below one byte": (colour((0, 0, 0, 9), (0, 0, 0, 0)), RGBA, 16),
    "alpha of grey of 16 bit, below one byte": (colour((0, 9), (0, 0)), GREY_ALPHA, 16),
    "alpha and colour": (colour((9, 0, 0, 255), (0, 0, 0, 0)), RGBA, 8),
}  # fmt: skip


def write(folder: Path, second: int, case: tuple[Any, ...]) -> Path:
    return write_png(folder / f"{second:05d}.png", *case)


@pytest.mark.parametrize("name", CLEAR)
def test_mask_is_what_the_file_says(tmp_path: Path, name: str) -> None:
    write(tmp_path / "fid_0", 0, CLEAR[name])
    np.testing.assert_array_equal(read_mask(tmp_path / "fid_0", 0), OBJECT)


# What one reading marks and another one does not, with those that may be chosen and what each marks.
FULL, EMPTY = np.ones_like(OBJECT), np.zeros_like(OBJECT)
UNCLEAR: dict[str, tuple[tuple[Any, ...], dict[str, np.ndarray]]] = {
    "colours the other way round": (
        (grey(1), PALETTE, 8, swatch(WHITE, BLACK)), {"nonzero": ~OBJECT, "index": OBJECT}),
    "object is index 0, as a quantiser writes": (
        (grey(0, 1), PALETTE, 8, swatch(WHITE, BLACK)), {"nonzero": OBJECT, "index": ~OBJECT}),
    "index 0 in white": (
        (np.zeros_like(grey(1)), PALETTE, 8, swatch(WHITE)), {"nonzero": FULL, "index": EMPTY}),
    "index whose 1 is transparent": (
        (grey(1), PALETTE, 8, COLOURED, bytes([255, 0])), {"nonzero": OBJECT, "alpha": ~OBJECT}),
    "cut-out of a picture with black in it": (
        (np.dstack([grey(0, 9)] * 3 + [grey(255)]), RGBA, 8), {"nonzero": ~OBJECT, "alpha": OBJECT}),
    "all transparent white": ((colour((255, 255, 255, 0), (255, 255, 255, 0)), RGBA, 8),
                              {"nonzero": FULL, "alpha": EMPTY}),
    "colour whose white is transparent": (
        (colour(WHITE, BLACK), RGB, 8, None, b"\0\xff" * 3), {"nonzero": OBJECT, "alpha": ~OBJECT}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_mask_of_two_meanings_is_refused_until_a_rule_chooses(tmp_path: Path, name: str) -> None:
    case, readings = UNCLEAR[name]
    path = write(tmp_path / "fid_0", 3, case)
    with pytest.raises(MaskRuleError) as caught:
        read_mask(path.parent, 3)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and all(f"--mask-rule {rule}" in line for rule in readings), line
    for rule, expected in readings.items():
        np.testing.assert_array_equal(read_mask(path.parent, 3, rule=rule), expected)  # pyright: ignore


@pytest.mark.parametrize("case", [
    (ids(grey(300, 7)), RGB, 8), (grey(2, 1), GREY, 8), (grey(2, 1), PALETTE, 8, COLOURED + bytes([9, 9, 9])),
], ids=["panoptic", "grey", "index"])  # fmt: skip
def test_mask_whose_every_pixel_has_a_label_is_not_read_as_full(tmp_path: Path, case: tuple[Any, ...]) -> None:
    path = write(tmp_path / "fid_0", 0, case)
    with pytest.raises(MaskRuleError, match=r"several values but no pixel of value 0.*--mask-rule nonzero"):
        read_mask(path.parent, 0)
    assert read_mask(path.parent, 0, rule="nonzero").all()


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("colour_type", [GREY, RGB])
def test_masks_that_are_empty_or_full_stay_so(tmp_path: Path, value: int, colour_type: int) -> None:
    values = np.full((4, 6, 3) if colour_type == RGB else (4, 6), value)
    write(tmp_path / "fid_0", 0, (values, colour_type, 8))
    assert read_mask(tmp_path / "fid_0", 0).all() == read_mask(tmp_path / "fid_0", 0).any() == bool(value)


def test_seconds_of_an_object_are_read_by_one_rule(tmp_path: Path) -> None:
    """A second without the object, or full of it, says nothing by itself; the others say what counts."""
    folder = tmp_path / "fid_0"
    write(folder, 0, (colour((255, 255, 255, 0), (255, 255, 255, 0)), RGBA, 8))
    write(folder, 1, (colour((255, 255, 255, 255), (255, 255, 255, 0)), RGBA, 8))
    write(folder, 2, (colour((255, 255, 255, 255), (255, 255, 255, 255)), RGBA, 8))
    write(folder, 3, (colour(WHITE, WHITE), RGB, 8))  # an alpha channel that is opaque may be left out
    np.testing.assert_array_equal(read_masks(folder, [0, 1, 2, 3]), [EMPTY, OBJECT, FULL, FULL])


def test_rule_alpha_needs_transparency(tmp_path: Path) -> None:
    path = write(tmp_path / "fid_0", 0, (grey(255), GREY, 8))
    with pytest.raises(MaskRuleError, match=r"00000\.png has no transparency, which --mask-rule alpha needs"):
        read_mask(path.parent, 0, rule="alpha")


def test_rule_counts_a_number_without_a_colour_by_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "fid_0", 0, CLEAR["index of 8 bit without colours"])
    for rule in ("nonzero", "index"):
        np.testing.assert_array_equal(read_mask(path.parent, 0, rule=rule), OBJECT)


def test_mask_files_of_the_cases_are_a_quarter(shared: Path) -> None:
    folders = sorted((shared / "cases/masks").glob("*/gt_mask/*/fid_*"))
    assert folders
    for folder in folders:
        assert (read_masks(folder, range(10)).mean(axis=(1, 2)) == 0.25).all(), folder


# -------------------------------------------------------------------------------------------- files and sizes


def save_grey(folder: Path, gray: np.ndarray, t: int = 0, mode: str = "L") -> None:
    Image.fromarray(gray).convert(mode).save(folder / f"0000{t}.png")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_mask_is_true_where_gray_is_above_zero(tmp_path: Path, mode: str) -> None:
    gray = np.zeros((4, 6), np.uint8)
    gray[1:3, 2] = 255 if mode == "1" else 1
    save_grey(tmp_path, gray, t=7, mode=mode)
    np.testing.assert_array_equal(read_mask(tmp_path, 7), gray > 0)


def test_mask_of_sixteen_bits_keeps_its_pixels(tmp_path: Path) -> None:
    gray = np.zeros((3, 3), np.uint16)
    gray[0, 0], gray[2, 1] = 1, 65280
    Image.fromarray(gray).save(tmp_path / "00000.png")
    np.testing.assert_array_equal(read_mask(tmp_path, 0), gray > 0)


def test_mask_resize_takes_the_nearest_pixel(tmp_path: Path) -> None:
    gray = (np.random.default_rng(0).random((4, 6)) > 0.5).astype(np.uint8) * 255
    save_grey(tmp_path, gray)
    np.testing.assert_array_equal(read_mask(tmp_path, 0, size=(8, 12)), gray.repeat(2, 0).repeat(2, 1) > 0)
    shrunk = read_mask(tmp_path, 0, size=(2, 3))
    assert shrunk.shape == (2, 3) and shrunk.dtype == np.bool_


def test_mask_resize_does_not_grow_the_object(tmp_path: Path) -> None:
    gray = np.zeros((64, 64), np.uint8)
    gray[16:32, 16:32] = 1
    save_grey(tmp_path, gray)
    assert read_mask(tmp_path, 0, size=(16, 16)).sum() == 16


def test_mask_errors_name_the_file_and_its_size(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"00003.png: no such mask; expected a PNG for each labelled frame"):
        read_mask(tmp_path, 3)
    save_grey(tmp_path, np.zeros((4, 6), np.uint8))
    assert read_mask(tmp_path, 0, size=(2, 2), expected_size=(4, 6)).shape == (2, 2)
    with pytest.raises(DatasetError, match=r"mask of 4x6 pixels \(height x width\), its frame has 6x4; accepted"):
        read_mask(tmp_path, 0, expected_size=(6, 4))
    (tmp_path / "00001.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"00001.png cannot be read as a PNG mask .*unpack that file again"):
        read_mask(tmp_path, 1)
    whole = (tmp_path / "00000.png").read_bytes()
    (tmp_path / "00002.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"00002.png cannot be read as a PNG mask"):
        read_mask(tmp_path, 2)
