"""Mean and deviation of each channel as sums that merge, so that neither order nor sharding changes them."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64


@dataclass(frozen=True, kw_only=True)
class ChannelSums:
    """Sums over all values of each channel.

    Attributes:
        count: values per channel.
        total: their sum.
        squares: the sum of their squares.
    """

    count: int
    total: Float64[np.ndarray, "c"]
    squares: Float64[np.ndarray, "c"]

    @classmethod
    def of(cls, values: np.ndarray, channel_axis: int, valid: Bool[np.ndarray, "..."] | None = None) -> "ChannelSums":
        """Sums of one row; `valid` masks its leading axes, which must come before the channels."""
        if valid is not None:
            values = values[valid]
            channel_axis += 1 - valid.ndim
        channels = values.shape[channel_axis]
        total, squares = np.zeros(channels), np.zeros(channels)
        # One frame at a time: float64 of a whole clip would be four times the clip.
        blocks = [values] if channel_axis == 0 else [values[i : i + 1] for i in range(values.shape[0])]
        others = tuple(axis for axis in range(values.ndim) if axis != channel_axis)
        for block in blocks:
            wide = block.astype(np.float64)
            total += wide.sum(axis=others)
            squares += np.square(wide, out=wide).sum(axis=others)
        return cls(count=values.size // channels, total=total, squares=squares)

    def merge(self, other: "ChannelSums") -> "ChannelSums":
        """Sums over both."""
        return ChannelSums(
            count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares
        )

    def moments(self) -> tuple[Float32[np.ndarray, "c"], Float32[np.ndarray, "c"]]:
        """Mean and deviation; a channel that never changes has deviation 1, so that dividing by it is safe."""
        count = max(self.count, 1)
        mean = self.total / count
        std = np.sqrt(np.maximum(self.squares / count - mean**2, 0))
        std[std <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1
        return mean.astype(np.float32), std.astype(np.float32)

    @property
    def finite(self) -> bool:
        """Whether no value was infinite or not a number."""
        return bool(np.isfinite(self.total).all())

    def to_json(self) -> dict[str, Any]:
        """Plain values; the sums survive exactly, as base64 of little-endian float64."""
        return {"count": self.count, "sum": _text(self.total), "sumsq": _text(self.squares)}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "ChannelSums":
        """Reads what `to_json` wrote."""
        return cls(count=int(facts["count"]), total=_values(facts["sum"]), squares=_values(facts["sumsq"]))


def _text(values: Float64[np.ndarray, "c"]) -> str:
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def _values(text: str) -> Float64[np.ndarray, "c"]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype(np.float64)
