"""Reads masks from PNG files of every kind: which pixels belong to the object.

A file can be interpreted in up to three ways, its *readings*:

- `nonzero`: the colour is not black, i.e. some channel is above zero. For a palette its colour is used; an index
  without a palette colour is used as a number.
- `index`: the number is not zero: a palette index, a grey value, or the colour's id `R + 256 G + 65536 B`. It differs
  from `nonzero` only for palettes.
- `alpha`: the pixel is not fully transparent, by alpha channel or transparent colour.

Without a rule (`auto`), the readings of all frames of an object must agree. A reading that is the same for every pixel
of every frame is ignored if another one distinguishes pixels. If readings disagree, or if the mask would be full
although pixels have different values (each the id of a segment), `--mask-rule` must name the reading.
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
# Pillow scales grey values of less than a byte to 0..255.
_SPREAD = {"L;2": 85, "L;4": 17}
_CHANNELS = {"ya16be": 2, "rgb48be": 3, "rgba64be": 4}


class MaskRuleError(DatasetError):
    """The masks are ambiguous, or the given rule does not apply to them."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """The content of the file of one frame.

    Attributes:
        readings: masks by name, at the requested size.
        marked: fraction of the file's pixels that each reading marks.
        agree: pairs of readings that mark the same pixels of the file.
        several: whether its pixels have more than one value; computed only if a reading marks all of them.
        lacks_colours: whether a palette has no colour for some pixels, so that `nonzero` uses numbers.
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
    """Reads an object's masks, which are True for its pixels.

    Args:
        masks: the mask of each frame.
        size: height and width of the result, by nearest neighbour; None keeps the files' size.
        expected_size: height and width the files must have, e.g. those of their frames.
        rule: the reading to use; `auto` requires that all readings agree.
        root: folder that must contain the files after following symbolic links.

    Raises:
        MaskRuleError: the masks are ambiguous, or lack the requested reading.
        DatasetError: a file is missing, is not a picture, or does not have `expected_size`.
    """
    files = [_file(mask, root, size, expected_size) for mask in masks]
    if rule == "auto":
        name = _agreed(files)
    else:
        name = rule
        bare = next((file for file in files if rule not in file.readings), None)
        if bare is not None:
            raise MaskRuleError(f"{bare.path} has no transparency, which --mask-rule {rule} needs; leave the rule out, "
                                f"pass --mask-rule {NONZERO}, or draw the mask with an alpha channel.")
    return np.stack([file.readings[name] if name in file.readings else np.ones_like(file.readings[INDEX])
                     for file in files])  # fmt: skip


def num_labels(path: Path, root: Path | None = None) -> int:
    """Number of distinct values other than 0 in a mask, ignoring an alpha channel.

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
    """Whether a mask is grey without transparency; earlier versions read such masks the same way, as above zero.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be read (`PICTURE_ERRORS`).
    """
    with open_picture(path, root, lossless=True) as picture:
        return picture.mode in ("1", "L", "I", "I;16") and "transparency" not in picture.info


def _agreed(files: Sequence[_File]) -> str:
    """The reading to use if no rule is given.

    Raises:
        MaskRuleError: several readings are possible, and they differ.
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
                raise MaskRuleError(f"{file.path} is ambiguous: the object covers {told} of the picture; "
                                    f"accepted: --mask-rule {one} or --mask-rule {other}, for all masks of SOURCE.")
    if min(marks(telling[0])) == 1 and any(file.several for file in files):
        path = next(file.path for file in files if file.several)
        raise MaskRuleError(f"{path} has several values but no pixel of value 0, so the whole picture would be the "
                            f"object; draw the background as 0, or pass --mask-rule {NONZERO} if that is meant.")
    return telling[0]


def _file(mask: Mask, root: Path | None, size: tuple[int, int] | None, expected_size: tuple[int, int] | None) -> _File:
    """Reads the mask of one frame.

    Raises:
        DatasetError: the file is missing, is not a picture, or does not have `expected_size`.
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
        raise DatasetError(f"{mask}: no such mask; expected a PNG for each labelled frame.") from None
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
    whole = {id(mask): _resized(mask, size) for mask in readings.values()}  # two readings may share an array
    return _File(
        path=path, readings={name: whole[id(mask)] for name, mask in readings.items()}, marked=marked,
        agree=frozenset((one, other) for one, other in combinations((NONZERO, INDEX, ALPHA), 2)
                        if _same(readings, one, other)),
        several=max(marked.values()) == 1 and bool((numbers != numbers[0, 0]).any()), lacks_colours=lacks_colours,
    )  # fmt: skip


def _same(readings: Mapping[str, Any], one: str, other: str) -> bool:
    """Whether two readings mark the same pixels. Without an alpha channel, all pixels are opaque."""
    first, second = readings[one], readings.get(other)  # `alpha`, the only one that a file may lack, comes second
    return first is second or bool(first.all() if second is None else np.array_equal(first, second))


def _of_colours(colours: Any, transparent: np.ndarray | None) -> dict[str, Bool[np.ndarray, "h w"]]:
    """The readings of grey values or colours; one value may be transparent."""
    shown = _any_channel(colours > 0)
    readings = {NONZERO: shown, INDEX: shown}
    return readings if transparent is None else {**readings, ALPHA: _any_channel(colours != transparent)}


def _any_channel(marked: Bool[np.ndarray, "h w c"]) -> Bool[np.ndarray, "h w"]:
    """As `any` over the last axis, but several times faster if that is short."""
    return functools.reduce(np.logical_or, np.moveaxis(marked, -1, 0))


def _of_palette(
    numbers: Any, palette: Sequence[int], transparent: int | bytes | None
) -> tuple[dict[str, Bool[np.ndarray, "h w"]], bool]:
    """The readings of palette indices, and whether some have no colour in the palette."""
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
    """The raw values of the pixels: a number or several channels each."""
    deep = str(picture.tile[0][3]).endswith(";16B") and picture.mode in ("RGB", "RGBA")
    return _deep(picture) if deep else np.asarray(picture)


def _deep(picture: Image.Image) -> Any:
    """Reads colours with 16 bits per channel; Pillow would keep only the high byte.

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
