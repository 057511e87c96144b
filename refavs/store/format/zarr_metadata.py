"""The Zarr v3 metadata of groups, sharded arrays and columns."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from refavs.store.format.array_spec import ArraySpec
from refavs.store.format.schema import OBJECTS


def group_metadata(attributes: Mapping[str, Any] | None = None) -> bytes:
    """The zarr.json of a group."""
    return _encode({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})})


def array_metadata(
    spec: ArraySpec, rows_per_shard: int, num_rows: int, attributes: Mapping[str, Any] | None = None
) -> bytes:
    """The zarr.json of a sharded array: one row per inner chunk, with checksums and without compression.

    The attributes name the scales of a quantised array, for readers without this package.
    """
    chunk_bytes = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shards = {
        "chunk_shape": [1, *spec.shape], "codecs": chunk_bytes, "index_codecs": chunk_bytes, "index_location": "end",
    }  # fmt: skip
    first = "object" if spec.table == OBJECTS else "row"
    return _encode(_array(
        spec.dtype, [num_rows, *spec.shape], [rows_per_shard, *spec.shape],
        [{"name": "sharding_indexed", "configuration": shards}], [first, *spec.axes],
        {**spec.number_attributes, **(attributes or {})},
    ))  # fmt: skip


def column_metadata(column: np.ndarray, axis: str, attributes: Mapping[str, Any] | None = None) -> bytes:
    """The zarr.json of a small array with a single chunk; `axis` names its rows."""
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shape = list(column.shape)
    axes = [axis, "byte"][: column.ndim]
    return _encode(_array(str(column.dtype), shape, [max(size, 1) for size in shape], codecs, axes, attributes))


def _array(dtype: str, shape: list[int], chunk: list[int], codecs: list[dict], axes: list[str],
           attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    zero = False if dtype == "bool" else 0.0 if dtype.startswith("float") else 0
    return {
        "zarr_format": 3, "node_type": "array", "shape": shape, "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": zero, "codecs": codecs, "dimension_names": axes, "attributes": dict(attributes or {}),
    }  # fmt: skip


def _encode(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata, indent=2, sort_keys=True, allow_nan=False).encode()
