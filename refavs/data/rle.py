"""Run lengths of masks: COCO's two forms, as `pycocotools.mask` reads them, and plain runs in either pixel order.

Runs alternate between background and object, background first. COCO counts pixels column by column over the whole
picture. Its compressed form writes, from the fourth run on, the difference to the run two before it, in groups of five
bits.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Bool

from refavs.files.typed_json import Count

Order = Literal["F", "C"]  # column by column, or row by row
_MOST_BITS = 40  # of a run; longer ones come from damaged strings


class RunLengths(TypedDict):
    """A mask: its height and width, and its runs as a compressed string."""

    size: list[int]
    counts: str


class PlainRunLengths(TypedDict):
    """A mask: its height and width, and its runs as numbers."""

    size: list[Count]
    counts: list[Count]


def runs_of(mask: Bool[np.ndarray, "h w"], order: Order = "F") -> list[int]:
    """The runs of a mask; the first is of background and may be 0."""
    pixels = np.concatenate([[False], mask.ravel(order=order)])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def from_runs(runs: Sequence[int], height: int, width: int, order: Order = "F") -> Bool[np.ndarray, "h w"]:
    """The mask of some runs.

    Raises:
        ValueError: a run is negative, or the runs do not fill the picture.
    """
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"its runs have {sum(runs):,} pixels, a picture of {width} x {height} has {height * width:,}")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape((height, width), order=order)


def plain(mask: Bool[np.ndarray, "h w"]) -> PlainRunLengths:
    """COCO's uncompressed form of a mask."""
    return {"size": list(mask.shape), "counts": runs_of(mask)}


def encoded(mask: Bool[np.ndarray, "h w"]) -> RunLengths:
    """COCO's compressed form of a mask."""
    runs = runs_of(mask)
    letters = bytearray()
    for number, run in enumerate(runs):
        rest = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            group, rest = rest & 31, rest >> 5
            more = rest != (-1 if group & 16 else 0)
            letters.append((group | 32 if more else group) + 48)
    return {"size": list(mask.shape), "counts": letters.decode("ascii")}


def decoded(lengths: RunLengths | PlainRunLengths) -> Bool[np.ndarray, "h w"]:
    """The mask of either form.

    Raises:
        ValueError: the runs do not fill the picture, or the string is no list of runs.
    """
    height, width = lengths["size"]
    counts = lengths["counts"]
    return from_runs(_runs_of_string(counts) if isinstance(counts, str) else counts, height, width)


def _runs_of_string(counts: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for letter in counts.encode("ascii"):
        group = letter - 48
        if not 0 <= group < 64 or shift > _MOST_BITS:
            raise ValueError("its string is no list of run lengths")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its string is cut off")
    return runs
