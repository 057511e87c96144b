"""Masks: which pixels of a PNG file belong to the object, by one rule for every kind of PNG.

A file says it in up to three ways, its *readings*:

- `nonzero`: the colour is not black, that is, some channel is above zero. Of a palette the colour counts; a number for
  which the palette has no colour counts by itself.
- `index`: the number is not zero: a palette's index, a grey value, or the id `R + 256 G + 65536 B` of a colour. Only a
  palette makes it another reading than `nonzero`.
- `alpha`: the pixel is not wholly transparent, by an alpha channel or by a transparent colour.

Where no rule is given (`auto`), the readings of all seconds of an object must agree. One that is the same for every
pixel of every second says nothing beside one that tells pixels apart. What they do not agree on, and what would be full
although its pixels differ (each has the id of some segment), is refused until `--mask-rule` names the reading.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageFile

from refavs.choices import MaskRule
from refavs.data.layouts.protocol import Mask
from refavs.errors import DatasetError
from refavs.files.source_files import PICTURE_ERRORS, open_picture, reason_of

ALPHA, INDEX, NONZERO = "alpha", "index", "nonzero"
# Grey values of less than a byte, which Pillow spreads over 0 to 255.
_SPREAD = {"L;2": 85, "L;4": 17}
_CHANNELS = {"ya16be": 2, "rgb48be": 3, "rgba64be": 4}


class MaskRuleError(DatasetError):
    """Masks that may be meant in two ways, or that the rule given cannot read."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """What one second's file says.

    Attributes:
        readings: by name, at the size asked for.
        marked: share of the file's pixels that each marks.
        agree: pairs of readings that mark the same pixels of the file.
        several: whether its pixels have more than one number; looked at where a reading marks all of them.
        lacks_colours: whether a palette has no colour for some of them, so that `nonzero` counts numbers.
    """

    path: Path
    readings: dict[str, Bool[np.ndarray, "h w"]]
    marked: dict[str, float]
    agree: frozenset[tuple[str, str]]
    several: bool
    lacks_colours: bool


def read_masks(
    masks: Sequence[Mask], size: tuple[int, int] | None = None, expected_size: tuple[int, int] | None = None,
    rule: MaskRule = "auto", root: Path | None = None,
) -> Bool[np.ndarray, "t h w"]:  # fmt: skip
    """Reads an object's masks: True for its pixels.

    Args:
        masks: where they are, second by second.
        size: height and width to return, by nearest neighbour; the files' own where None.
        expected_size: height and width the files must have, e.g. those of the frames they belong to.
        rule: the reading that counts; `auto` takes what all of them agree on.
        root: folder that no file may lie outside of, symbolic links followed.

    Raises:
        MaskRuleError: they may be meant in two ways, or have no such reading.
        DatasetError: a file is missing, is no picture, or has another size than `expected_size`.
    """
    files = [_file(mask, root, size, expected_size) for mask in masks]
    if rule == "auto":
        name = _agreed(files)
    else:
        name = rule
        bare = next((file for file in files if rule not in file.readings), None)
        if bare is not None:
            raise MaskRuleError(f"{bare.path} has no transparency, by which --mask-rule {rule} would read it; leave "
                                f"the rule out, give --mask-rule {NONZERO}, or draw it with an alpha channel.")
    return np.stack([file.readings[name] if name in file.readings else np.ones_like(file.readings[INDEX])
                     for file in files])  # fmt: skip


def num_labels(path: Path, root: Path | None = None) -> int:
    """How many numbers but 0 a mask's pixels have, an alpha channel apart.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be read (`PICTURE_ERRORS`).
    """
    with open_picture(path, root, lossless=True) as picture:
        numbers = _numbers(picture)
    if numbers.ndim == 3:
        channels = numbers[..., : {2: 1, 4: 3}.get(numbers.shape[-1])].astype(np.int64)
        numbers = (channels << 16 * np.arange(channels.shape[-1])).sum(axis=-1)
    return int(np.count_nonzero(np.unique(numbers)))


def is_plain_grey(path: Path, root: Path | None = None) -> bool:
    """Whether a mask is grey without transparency, which was never read in another way than as above zero.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be read (`PICTURE_ERRORS`).
    """
    with open_picture(path, root, lossless=True) as picture:
        return picture.mode in ("1", "L", "I", "I;16") and "transparency" not in picture.info


def _agreed(files: Sequence[_File]) -> str:
    """The reading that counts where no rule is given.

    Raises:
        MaskRuleError: several count, and they differ.
    """

    def marks(name: str) -> list[float]:
        return [file.marked.get(name, 1.0) for file in files]  # without an alpha channel a file is opaque

    opaque = min(marks(ALPHA)) == 1
    names = [name for name in (NONZERO, INDEX, ALPHA) if not (name == ALPHA and opaque)]
    if any(file.lacks_colours for file in files):
        names.remove(NONZERO)
    telling = [name for name in names if min(marks(name)) < 1 and max(marks(name)) > 0] or names
    for one, other in combinations(telling, 2):
        for file in files:
            if (one, other) not in file.agree:
                told = " and ".join(f"{file.marked.get(name, 1.0):.1%} by {name}" for name in (one, other))
                raise MaskRuleError(f"{file.path} may be meant in two ways: the object is {told} of the picture; "
                                    f"accepted: --mask-rule {one} or --mask-rule {other}, for all masks of SOURCE.")
    if min(marks(telling[0])) == 1 and any(file.several for file in files):
        path = next(file.path for file in files if file.several)
        raise MaskRuleError(f"{path} has no pixel of value 0 and several other values, so the whole picture would be "
                            f"the object; draw what is not the object as 0, or give --mask-rule {NONZERO} if it is so.")
    return telling[0]


def _file(mask: Mask, root: Path | None, size: tuple[int, int] | None, expected_size: tuple[int, int] | None) -> _File:
    """Reads one second's mask.

    Raises:
        DatasetError: the file is missing, is no picture, or has another size than `expected_size`.
    """
    if not isinstance(mask, Path):
        pixels = mask()
        _refuse_size("a mask", pixels.shape, expected_size)
        return _described(Path(str(mask)), pixels, _of_colours(pixels[..., None], None), False, size)
    try:
        with open_picture(mask, root, lossless=True) as picture:
            _refuse_size(str(mask), (picture.height, picture.width), expected_size)
            return _read(mask, picture, size)
    except FileNotFoundError:
        raise DatasetError(f"{mask}: no such mask; expected a PNG for each labelled second.") from None
    except PICTURE_ERRORS as error:
        raise DatasetError(
            f"{mask} cannot be read as a PNG mask ({reason_of(error)}); unpack that file again."
        ) from error


def _refuse_size(name: str, found: tuple[int, ...], expected: tuple[int, int] | None) -> None:
    if expected is not None and found != tuple(expected):
        raise DatasetError(f"{name} is a mask of {found[0]}x{found[1]} pixels (height x width), its frame has "
                           f"{expected[0]}x{expected[1]}; accepted: a mask of its frame's size. Unpack or draw it "
                           "again.")


def _read(path: Path, picture: ImageFile.ImageFile, size: tuple[int, int] | None) -> _File:
    rawmode = str(picture.tile[0][3])
    transparent: Any = picture.info.pop("transparency", None)
    numbers = _numbers(picture)
    lacks_colours = False
    if picture.mode == "P":
        readings, lacks_colours = _of_palette(numbers, picture.getpalette() or [], transparent)
    elif numbers.ndim == 2:
        value = None if transparent is None else np.array([transparent * _SPREAD.get(rawmode, 1)])
        readings = _of_colours(numbers[..., None], value)
    elif numbers.shape[-1] in (2, 4):
        readings = {**_of_colours(numbers[..., :-1], None), ALPHA: numbers[..., -1] > 0}
    else:
        readings = _of_colours(numbers, None if transparent is None else np.array(transparent))
    return _described(path, numbers, readings, lacks_colours, size)


def _described(
    path: Path, numbers: Any, readings: dict[str, Bool[np.ndarray, "h w"]], lacks_colours: bool,
    size: tuple[int, int] | None,
) -> _File:  # fmt: skip
    marked = {name: float(np.count_nonzero(mask) / mask.size) for name, mask in readings.items()}
    whole = {id(mask): _resized(mask, size) for mask in readings.values()}  # two readings may be one array
    return _File(
        path=path, readings={name: whole[id(mask)] for name, mask in readings.items()}, marked=marked,
        agree=frozenset((one, other) for one, other in combinations((NONZERO, INDEX, ALPHA), 2)
                        if _same(readings, one, other)),
        several=max(marked.values()) == 1 and bool((numbers != numbers[0, 0]).any()), lacks_colours=lacks_colours,
    )  # fmt: skip


def _same(readings: Mapping[str, Any], one: str, other: str) -> bool:
    """Whether two readings mark the same pixels; without an alpha channel all pixels are opaque."""
    first, second = readings[one], readings.get(other)  # `alpha`, the only one that a file may lack, comes second
    return first is second or bool(first.all() if second is None else np.array_equal(first, second))


def _of_colours(colours: Any, transparent: np.ndarray | None) -> dict[str, Bool[np.ndarray, "h w"]]:
    """The readings of grey values or colours; one value may be transparent."""
    shown = _any_channel(colours > 0)
    readings = {NONZERO: shown, INDEX: shown}
    return readings if transparent is None else {**readings, ALPHA: _any_channel(colours != transparent)}


def _any_channel(marked: Bool[np.ndarray, "h w c"]) -> Bool[np.ndarray, "h w"]:
    """As `any` over the last axis, several times as fast where that is short."""
    return functools.reduce(np.logical_or, np.moveaxis(marked, -1, 0))


def _of_palette(
    numbers: Any, palette: Sequence[int], transparent: int | bytes | None
) -> tuple[dict[str, Bool[np.ndarray, "h w"]], bool]:
    """The readings of a palette's indices, and whether it has no colour for some of them."""
    num_colours = len(palette) // 3
    shown = np.arange(256) > 0
    shown[:num_colours] = np.array(palette, np.uint8).reshape(-1, 3).any(axis=-1)
    readings = {NONZERO: shown[numbers], INDEX: numbers > 0}
    if transparent is not None:
        opacity = np.full(256, 255, np.uint8)
        if isinstance(transparent, bytes):
            opacity[: len(transparent)] = np.frombuffer(transparent, np.uint8)[:256]
        else:
            opacity[transparent] = 0
        readings[ALPHA] = opacity[numbers] > 0
    return readings, bool(numbers.max() >= num_colours)


def _numbers(picture: ImageFile.ImageFile) -> Any:
    """What the file has for each pixel: a number, or several channels."""
    deep = str(picture.tile[0][3]).endswith(";16B") and picture.mode in ("RGB", "RGBA")
    return _deep(picture) if deep else np.asarray(picture)


def _deep(picture: Image.Image) -> Any:
    """Colours of 16 bits a channel, of which Pillow keeps the high byte alone.

    Raises:
        ValueError: the file is damaged.
    """
    import av
    from av.container import InputContainer

    source: Any = getattr(picture, "fp", None)
    source.seek(0)
    with cast(InputContainer, av.open(source, format="png_pipe")) as file:
        frame = next(file.decode(file.streams.video[0]), None)
        if frame is None or frame.format.name not in _CHANNELS:
            raise ValueError("its pixels cannot be decoded")
        plane, num_channels = frame.planes[0], _CHANNELS[frame.format.name]
        rows = np.frombuffer(bytes(plane), ">u2").reshape(frame.height, plane.line_size // 2)
        pixels = rows[:, : frame.width * num_channels].reshape(frame.height, frame.width, num_channels)
        return pixels.astype(np.uint16)


def _resized(mask: Bool[np.ndarray, "h w"], size: tuple[int, int] | None) -> Bool[np.ndarray, "h2 w2"]:
    if size is None or mask.shape == tuple(size):
        return mask
    height, width = size
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)) > 0
