"""Masks as rows of `objects`, eight pixels per byte: all of one size, or each of its own, padded to the largest."""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from refavs.errors import DatasetError
from refavs.store.format.array_spec import ArraySpec

MASK, LABELLED, SIZE = "objects/mask", "objects/labelled", "objects/size"
MaskSize = int | tuple[int, int]  # the side of all masks in pixels; or height and width of the largest of their own
Side = Annotated[int, range(1, 2**15)]
ToldSize = Side | list[Side]  # a mask size in JSON


def read_size(told: int | list[int]) -> MaskSize:
    """The mask size that JSON gives.

    Raises:
        ValueError: it is neither one number nor two.
    """
    if isinstance(told, int):
        return told
    if len(told) != 2:
        raise ValueError(f"mask_size is {told}; accepted: a number, or height and width")
    return told[0], told[1]


def mask_shape(mask_size: MaskSize) -> tuple[int, int]:
    """Height and width of the masks in a batch."""
    return (mask_size, mask_size) if isinstance(mask_size, int) else mask_size


def told_size(mask_size: MaskSize) -> str:
    """The size in words."""
    height, width = mask_shape(mask_size)
    return f"{'' if isinstance(mask_size, int) else 'native, up to '}{height} x {width} px"


def object_arrays(num_steps: int, mask_size: MaskSize) -> tuple[ArraySpec, ...]:
    """The arrays of objects: masks, the labelled steps, and the height and width of masks that keep their own size."""
    height, width = mask_shape(mask_size)
    arrays = (
        ArraySpec(name="mask", shape=(num_steps, height, -(-width // 8)), dtype="uint8", axes=("t", "h", "bytes")),
        ArraySpec(name="labelled", shape=(num_steps,), dtype="bool", axes=("t",)),
    )
    if isinstance(mask_size, int):
        return arrays
    return (*arrays, ArraySpec(name="size", shape=(2,), dtype="int32", axes=("hw",)))


def row_of_mask(mask: Bool[np.ndarray, "t h w"], mask_size: MaskSize) -> dict[str, np.ndarray]:
    """The arrays of a mask by name.

    Raises:
        DatasetError: it is larger than the largest one.
    """
    if isinstance(mask_size, int):
        return {"mask": pack_mask(mask)}
    _, height, width = mask.shape
    below, right = (most - side for most, side in zip(mask_size, (height, width), strict=True))
    if min(below, right) < 0:
        raise DatasetError(f"a mask has {height} x {width} px, and the store has room for {mask_size[0]} x "
                           f"{mask_size[1]}; extract this clip into another store")  # fmt: skip
    padded = np.pad(mask, ((0, 0), (0, below), (0, right)))
    return {"mask": pack_mask(padded), "size": np.array([height, width], np.int32)}


def mask_of_row(
    mask_size: MaskSize, packed: UInt8[Tensor, "t h bytes"], size: Int[Tensor, "2"] | None = None
) -> Bool[Tensor, "t h2 w"]:
    """A mask at its own size.

    Args:
        size: its height and width; None if all masks have one size.
    """
    height, width = mask_shape(mask_size) if size is None else size.tolist()
    return torch.from_numpy(unpack_mask(packed[:, :height].numpy(), width))


def scaled(mask: Bool[Tensor, "t h w"], shape: tuple[int, int]) -> Bool[Tensor, "t h2 w2"]:
    """A mask at another size, by nearest neighbour."""
    for axis, side in enumerate(shape, start=1):
        if mask.shape[axis] != side:
            mask = mask.index_select(axis, ((torch.arange(side) + 0.5) * mask.shape[axis] / side).long())
    return mask


def pack_mask(mask: Bool[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h bytes"]:
    """Packs eight pixels per byte, the format of `objects/mask`."""
    return np.packbits(mask, axis=-1)


def unpack_mask(packed: UInt8[np.ndarray, "t h bytes"], width: int) -> Bool[np.ndarray, "t h {width}"]:
    """Inverse of `pack_mask` for masks `width` pixels wide."""
    return np.unpackbits(packed, axis=-1, count=width).astype(bool)
