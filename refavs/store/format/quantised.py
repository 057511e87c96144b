"""Arrays with one byte per value: each channel of a row has a scale, and a value is the stored number times the scale.

`int8` has 255 equal steps; the channel's largest magnitude is step 127. `float8` (e4m3) has a relative precision of 3
bits; its scale maps the channel's largest magnitude to 448, the largest number of the format.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from refavs.choices import StoredType
from refavs.store.format.array_spec import FLOAT8, ArraySpec
from refavs.store.format.channel_stats import ChannelSums

# Values converted at once. torch splits longer work among its threads, which wait for each other on a busy processor.
_BLOCK = 2**15 - 1
_TO_INTEGER = 1.5 * 2**23  # adding it rounds a float32 to an integer; `round` would be split even for short blocks
_MOST = {None: 127.0, FLOAT8: 448.0}  # the largest stored number of each number format
_LEAST_SCALE = float(np.finfo(np.float32).tiny)  # its inverse is finite


def stored_as(specs: Sequence[ArraySpec], dtype: StoredType | None) -> tuple[ArraySpec, ...]:
    """The arrays of a stream that is stored as `dtype`; None changes nothing.

    Integers, booleans and arrays without a channel axis, which are no features, keep their type.
    """
    found = []
    for spec in specs:
        if dtype is None or not spec.dtype.startswith("float") or "c" not in spec.axes:
            found.append(spec)
        elif dtype == "float16":
            found.append(dataclasses.replace(spec, dtype=dtype))
        else:
            byte, number_format = ("int8", None) if dtype == "int8" else ("uint8", FLOAT8)
            scale = f"{spec.name}_scale"
            found.append(dataclasses.replace(spec, dtype=byte, number_format=number_format, scale=scale))
            found.append(spec.scale_spec(scale))
    return tuple(found)


def stored_rows(values: Mapping[str, np.ndarray], specs: Sequence[ArraySpec]) -> dict[str, np.ndarray]:
    """One row of each array of a stream as it is stored, computed from the values of the arrays.

    A value that is not finite, or too large for the type, makes a scale or a stored number non-finite, which
    `ShardWriter` rejects.
    """
    found = {}
    for spec in specs:
        if spec.scale is not None:
            found[spec.name], found[spec.scale] = quantise(values[spec.name], spec)
        elif spec.name in values:
            with np.errstate(over="ignore"):
                found[spec.name] = values[spec.name].astype(spec.dtype, copy=False)
    return found


def quantise(values: np.ndarray, spec: ArraySpec) -> tuple[np.ndarray, Float32[np.ndarray, " c"]]:
    """The stored numbers of a row and the scale of each channel; a channel of zeros has the scale 0."""
    channels, inner = spec.shape[spec.channel_axis], int(np.prod(spec.shape[spec.channel_axis + 1 :]))
    runs = torch.from_numpy(np.require(values, requirements=("C", "W"))).reshape(-1, inner)
    step, most = max(1, _BLOCK // inner), _MOST[spec.number_format]
    greatest = torch.cat([part.abs().amax(1) for part in runs.split(step)]).double()
    scale = (greatest.reshape(-1, channels).amax(0) / most).float()
    scale = torch.where(scale < _LEAST_SCALE, 0.0, scale)  # which leaves NaN as it is
    inverse = torch.where(scale > 0, 1 / scale, 0.0).repeat(len(runs) // channels)[:, None]
    stored = torch.empty(runs.shape, dtype=torch.float8_e4m3fn if spec.number_format else torch.int8)
    buffer = torch.empty(min(step, len(runs)), inner)
    for part, factor, out in zip(runs.split(step), inverse.split(step), stored.split(step), strict=True):
        scaled = torch.mul(part, factor, out=buffer[: len(part)])
        if spec.number_format is None:
            scaled.add_(_TO_INTEGER).sub_(_TO_INTEGER)
        out.copy_(scaled.clamp_(-most, most))
    return stored.view(torch.uint8).numpy().view(spec.dtype).reshape(spec.shape), scale.numpy()


def numbers(stored: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Stored numbers of a quantised array in a type for arithmetic: int8 as it is, float8 bytes as float32."""
    return stored.view(torch.float8_e4m3fn).float() if stored.dtype == torch.uint8 else stored


def scaled(stored: Shaped[Tensor, "..."], factor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Stored numbers times a factor, as float32."""
    values = numbers(stored)
    return values * factor if values is stored else values.mul_(factor)


def dequantised(
    stored: Shaped[Tensor, "..."], scale: Float[Tensor, "*rows c"], channel_axis: int
) -> Float[Tensor, "..."]:
    """The float32 values of stored numbers; `channel_axis` is the axis of their channels."""
    rows, channels = scale.shape[:-1], scale.shape[-1]
    before, after = channel_axis - len(rows), stored.ndim - channel_axis - 1
    return scaled(stored, scale.reshape(*rows, *(1,) * before, channels, *(1,) * after))


def values_of(spec: ArraySpec, found: Mapping[str, Tensor]) -> Tensor:
    """The values of one or several rows of an array, from the stored tensors by path (see `ArraySpec.paths`)."""
    stored = found[spec.path]
    if spec.scale_path is None:
        return stored
    return dequantised(stored, found[spec.scale_path], spec.channel_axis + stored.ndim - len(spec.shape))


def sums_of(spec: ArraySpec, row: Mapping[str, np.ndarray]) -> ChannelSums:
    """Channel sums of the values of one row. Stored numbers are exact in float16; their sums are scaled afterwards."""
    stored, valid = row[spec.name], row[spec.valid] if spec.valid else None
    if spec.scale is None:
        return ChannelSums.of(stored, spec.channel_axis, valid)
    halves = numbers(torch.from_numpy(stored)).half().numpy()
    sums, scale = ChannelSums.of(halves, spec.channel_axis, valid), row[spec.scale].astype(np.float64)
    return dataclasses.replace(sums, total=sums.total * scale, squares=sums.squares * scale**2)
