"""Mean and standard deviation of each channel as mergeable sums, independent of order and sharding."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

# Number of values widened and summed together. torch splits larger sums among its threads, which changes their bits and
# makes short tasks wait for other work on the processor.
_BLOCK = 2**15 - 1

@dataclass(frozen=True, kw_only=True)
class ChannelSums:
    """Sums over all values of each channel.

    Attributes:
        count: number of values per channel.
        total: sum of the values.
        squares: sum of their squares.
    """

    count: int
    total: Float64[np.ndarray, "c"]
    squares: Float64[np.ndarray, "c"]

    @classmethod
    def of(cls, values: np.ndarray, channel_axis: int, valid: Bool[np.ndarray, "..."] | None = None) -> "ChannelSums":
        """Sums of one row; `valid` masks its leading axes, those of the channels left out."""
        if valid is not None:
            behind = max(channel_axis, valid.ndim)
            values, channel_axis = np.moveaxis(values, channel_axis, behind)[valid], 1 + behind - valid.ndim
        channels = values.shape[channel_axis]
        if not values.size:
            return cls(count=0, total=np.zeros(channels), squares=np.zeros(channels))
        total, squares = _sums(values, channel_axis)
        return cls(count=values.size // channels, total=total, squares=squares)

    def merge(self, other: "ChannelSums") -> "ChannelSums":
        """Sums over both."""
        return ChannelSums(
            count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares
        )

    def moments(self) -> tuple[Float32[np.ndarray, "c"], Float32[np.ndarray, "c"]]:
        """Mean and standard deviation; a constant channel has 1, so that dividing by it is safe."""
        count = max(self.count, 1)
        mean = self.total / count
        std = np.sqrt(np.maximum(self.squares / count - mean**2, 0))
        std[std <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1
        return mean.astype(np.float32), std.astype(np.float32)

    def refuse_odd(self, channels: int) -> None:
        """Checks sums that come from a file.

        Raises:
            ValueError: they have another number of channels, or are not finite.
        """
        finite = self.finite and np.isfinite(self.squares).all()
        if not finite or not len(self.total) == len(self.squares) == channels:
            raise ValueError(f"statistics of {len(self.total)} channels, or of infinite values; accepted: {channels}")

    @property
    def finite(self) -> bool:
        """Whether all values were finite."""
        return bool(np.isfinite(self.total).all())

    def to_json(self) -> dict[str, Any]:
        """Plain values; the sums are stored exactly, as base64 of little-endian float64."""
        return {"count": self.count, "sum": _text(self.total), "sumsq": _text(self.squares)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "ChannelSums":
        """Reads what `to_json` wrote."""
        return cls(count=int(facts["count"]), total=_values(facts["sum"]), squares=_values(facts["sumsq"]))


def _sums(values: np.ndarray, channel_axis: int) -> tuple[Float64[np.ndarray, "c"], Float64[np.ndarray, "c"]]:
    """Sum and sum of squares of each channel, bitwise independent of the number of threads.

    Each run of a channel is summed as differences from its first value and shifted back in float64. So float32 is
    precise enough for runs of a float16 map, and a constant run has deviation 0 despite rounding.
    """
    if not (values.flags.c_contiguous and values.flags.writeable and min(values.strides) > 0):
        values = values.copy()  # torch rejects negative strides and warns about read-only arrays
    channels, inner = values.shape[channel_axis], math.prod(values.shape[channel_axis + 1 :])
    runs = torch.from_numpy(values).reshape(-1, inner)
    if inner == 1:
        runs = runs.reshape(-1, channels).T.contiguous()
    wide = torch.float32 if runs.dtype == torch.float16 else torch.float64
    totals, squares = torch.zeros(2, len(runs), dtype=torch.float64)
    for piece in runs.split(_BLOCK, 1):
        step, count = _BLOCK // piece.shape[1], piece.shape[1]
        first, buffer = piece[:, :1].to(wide), torch.empty(step, count, dtype=wide)
        moved, moved_squares = torch.empty(2, len(runs), dtype=wide)
        parts = (part.split(step) for part in (piece, first, moved, moved_squares))
        for block, start, total, square in zip(*parts, strict=True):
            shifted = buffer[: len(block)].copy_(block).sub_(start)
            torch.sum(shifted, 1, out=total)
            torch.sum(shifted.square_(), 1, out=square)
        start, moved = first[:, 0].to(torch.float64), moved.to(torch.float64)
        totals += moved + count * start
        squares += moved_squares.to(torch.float64) + 2 * start * moved + count * start.square()
    return totals.reshape(-1, channels).sum(0).numpy(), squares.reshape(-1, channels).sum(0).numpy()


def _text(values: Float64[np.ndarray, "c"]) -> str:
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def _values(text: str) -> Float64[np.ndarray, "c"]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype(np.float64)
