"""COCO's compressed run lengths of a mask, as `pycocotools.mask` reads them.

Pixels are counted column by column, in runs that alternate between background and object, background first. From the
fourth run on, the difference to the run two before it is written, in groups of five bits.
"""

from typing import TypedDict

import numpy as np
from jaxtyping import Bool


class RunLengths(TypedDict):
    """A mask: its height and width, and its runs."""

    size: list[int]
    counts: str


def encoded(mask: Bool[np.ndarray, "h w"]) -> RunLengths:
    """The runs of a mask."""
    pixels = np.concatenate([[False], mask.ravel(order="F")])  # background first
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    runs = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    letters = bytearray()
    for number, run in enumerate(runs):
        rest = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            group, rest = rest & 31, rest >> 5
            more = rest != (-1 if group & 16 else 0)
            letters.append((group | 32 if more else group) + 48)
    return {"size": list(mask.shape), "counts": letters.decode("ascii")}


def decoded(lengths: RunLengths) -> Bool[np.ndarray, "h w"]:
    """The mask of some runs."""
    runs: list[int] = []
    value = shift = 0
    for letter in lengths["counts"].encode("ascii"):
        group = letter - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    height, width = lengths["size"]
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape((height, width), order="F")
