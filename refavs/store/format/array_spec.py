"""One array of a stream: its name, shape, axes and type, and the scales of a quantised one."""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refavs.errors import StoreError

NAME = r"(?!zarr\.json(?:/|$))[A-Za-z0-9_][A-Za-z0-9_.@-]*"
RESERVED = ("row", "key", "text")  # names of columns in the groups of streams and modalities
DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
FLOAT8 = "float8_e4m3fn"
_MOST_ROW_BYTES = 2**31


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a stream.

    Attributes:
        name: name of the array within its stream, e.g. `features`.
        shape: shape of one row, without the row axis.
        dtype: one of `DTYPES`.
        axes: a name per axis of `shape`; the channel axis is called `c`.
        statistics: whether to keep the mean and standard deviation of each channel over all rows.
        valid: name of a boolean array of the same stream that marks the real entries of the leading axes; the others
            are left out of the statistics.
        scale: name of the float32 array of the same stream with one scale per row and channel. A value is the stored
            number times its scale. None for an array that is not quantised.
        number_format: `FLOAT8` if each stored byte (uint8) is a number in that format, for which zarr-python has no
            type.
        table: the stream that contains the array, set by `StoreSchema`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    statistics: bool = False
    valid: str | None = None
    scale: str | None = None
    number_format: str | None = None
    table: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name) or self.name in RESERVED:
            raise StoreError(f"array name {self.name!r} cannot be used; accepted: letters, digits, _ - . and @, but "
                             f"none of {', '.join(RESERVED)}")
        if self.dtype not in DTYPES:
            raise StoreError(f"array {self.name} has type {self.dtype!r}; accepted: {', '.join(DTYPES)}")
        if not self.shape or min(self.shape) < 1 or len(self.shape) != len(self.axes):
            raise StoreError(f"array {self.name} has row shape {self.shape} and axes {self.axes}; accepted: positive "
                             "sizes and one name for each")
        if self.row_bytes > _MOST_ROW_BYTES:
            raise StoreError(f"array {self.name} has rows of {self.row_bytes:,} bytes; accepted: up to "
                             f"{_MOST_ROW_BYTES:,}")
        if (self.statistics or self.scale) and self.axes.count("c") != 1:
            raise StoreError(f"array {self.name} keeps statistics or scales, so one of its axes {self.axes} must be "
                             "called 'c'")
        byte = (self.dtype, self.number_format)
        if self.number_format not in (None, FLOAT8) or (self.scale and byte not in (("int8", None), ("uint8", FLOAT8))):
            raise StoreError(f"array {self.name} has a scale {self.scale!r} for {self.dtype} and the number format "
                             f"{self.number_format!r}; accepted: int8, or uint8 with the number format {FLOAT8}")

    @property
    def path(self) -> str:
        """Path of the array in the store, e.g. `clips/audio/vggish/features`."""
        return f"{table_path(self.table)}/{self.name}"

    @property
    def scale_path(self) -> str | None:
        """Path of the scales; None if the array is not quantised."""
        return self.scale and f"{table_path(self.table)}/{self.scale}"

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths to read for the values of the array."""
        return (self.path, self.scale_path) if self.scale_path else (self.path,)

    @property
    def channel_axis(self) -> int:
        """Index of the channel axis among the axes of a row."""
        return self.axes.index("c")

    def length(self, axis: str) -> int | None:
        """Length of an axis of a row; None without that axis."""
        return dict(zip(self.axes, self.shape, strict=True)).get(axis)

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def num_parts(self) -> int:
        """Number of equal parts of a row that a shard keeps a checksum of: the steps of a map, else the whole row."""
        return self.shape[0] if self.axes[0] == "t" and "c" in self.axes and len(self.axes) > 2 else 1

    @property
    def number_attributes(self) -> dict[str, str]:
        """Attributes from which other readers get the values; empty if the array is not quantised."""
        told = {"scale": self.scale, "number_format": self.number_format}
        return {name: value for name, value in told.items() if value is not None}

    def scale_spec(self, name: str) -> "ArraySpec":
        """The array with the scales of this one."""
        return ArraySpec(name=name, shape=(self.shape[self.channel_axis],), dtype="float32", axes=("c",))

    def told(self) -> dict[str, Any]:
        """Plain values for the store's description."""
        left_out = ("table", "scale", "number_format")
        return {name: value for name, value in asdict(self).items() if name not in left_out} | self.number_attributes


def table_path(table: str) -> str:
    """Path of the group with the arrays of a stream or of `objects`."""
    return f"clips/{table}" if table.startswith(("visual/", "audio/")) else table
