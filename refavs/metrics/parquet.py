"""Statistics of a run as one Parquet file: one row per expression and frame, readable by any Parquet reader.

A row group holds complete expressions, in the order of the metadata file, so that a run is read in bounded memory.
Parquet stores all unsigned integers of up to 32 bits alike; zstd compresses the empty cells of the histograms away.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from refavs.errors import StatisticsError
from refavs.files.atomic import sync_folder
from refavs.files.partials import partial_path
from refavs.files.typed_json import read_json
from refavs.metrics.frame_counts import (
    ALWAYS,
    COUNTS,
    EXPRESSION_COLUMNS,
    FACTS,
    HISTOGRAMS,
    LABELLED,
    PEAK,
    RELEASED_SIZE,
    VERSION,
    Statistics,
    concat,
    own_columns,
)
from refavs.metrics.segmentation import NUM_CELLS

STATISTICS_FILE = "statistics.parquet"
EXPRESSIONS_PER_GROUP = 256
_MOST_GROUP_BYTES = 2**28
_KEY = b"refavs.statistics"
_AGAIN = "evaluate the run again, which rewrites them"
_STRING = pa.dictionary(pa.int32(), pa.string())
_REPETITIVE = [*EXPRESSION_COLUMNS, "frame"]
_TYPES = {"int32": pa.int32(), "int16": pa.int16(), "str": _STRING}
_CELLS = pa.list_(pa.field("element", pa.uint32(), nullable=False), NUM_CELLS)


_FIELDS = {
    **{name: pa.field(name, _TYPES[kind], nullable=False) for name, kind in EXPRESSION_COLUMNS.items()},
    "frame": pa.field("frame", pa.int16(), nullable=False),
    **{name: pa.field(name, pa.uint32(), nullable=False) for name in COUNTS},
    PEAK: pa.field(PEAK, pa.float32(), nullable=False),
    **{name: pa.field(name, _CELLS, nullable=False) for name in HISTOGRAMS},
    LABELLED: pa.field(LABELLED, pa.bool_(), nullable=False),
}


def statistics_schema(statistics: Statistics) -> pa.Schema:
    """The columns of the file; its metadata has the facts as JSON under `refavs.statistics`.

    Every file has the columns that identify expression and frame, and `target`, `pred_50` and `hits_50`. The own counts
    of plug-in metrics have columns `METRIC/COLUMN` of any numeric type.
    """
    frames = statistics.frames
    others = {name: pa.from_numpy_dtype(frames[name].dtype) for name in sorted({*frames} - {*_FIELDS})}
    own = [pa.field(name, kind, nullable=False) for name, kind in others.items()]
    known = [field for name, field in _FIELDS.items() if name in frames or name in _REPETITIVE]
    return pa.schema([*known, *own], metadata={_KEY: json.dumps(statistics.facts, sort_keys=True).encode()})


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Replaces `path` atomically; the same statistics give the same bytes."""
    ordered = concat([statistics])
    schema = statistics_schema(ordered)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with pq.ParquetWriter(
            partial, schema, compression="zstd", write_page_checksum=True,
            use_dictionary=_REPETITIVE,  # pyright: ignore[reportArgumentType]
        ) as writer:  # fmt: skip
            step = _most_expressions(ordered.facts["num_frames"])
            for start in range(0, len(ordered), step):
                part = ordered.select(np.arange(start, min(start + step, len(ordered))))
                writer.write_table(_table(part, schema), row_group_size=len(part) * ordered.facts["num_frames"])
        partial.rename(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _most_expressions(num_frames: int) -> int:
    """Maximum number of expressions in a row group, whose histograms are in memory at once."""
    line_bytes = 4 * NUM_CELLS * len(HISTOGRAMS)
    return max(1, min(EXPRESSIONS_PER_GROUP, _MOST_GROUP_BYTES // (line_bytes * num_frames)))


def _table(part: Statistics, schema: pa.Schema) -> pa.Table:
    num_frames = part.facts["num_frames"]
    columns: dict[str, pa.Array] = {}
    for name in EXPRESSION_COLUMNS:
        values = part.expressions[name].to_numpy()
        field = schema.field(name)
        if pa.types.is_dictionary(field.type):
            encoded = pa.array(values.tolist(), pa.string()).dictionary_encode()
            places = np.repeat(encoded.indices.to_numpy(), num_frames)
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(places), encoded.dictionary)
        else:
            columns[name] = pa.array(np.repeat(values, num_frames), field.type)
    columns["frame"] = pa.array(np.tile(np.arange(num_frames, dtype=np.int16), len(part)))
    for name, frames in part.frames.items():
        values = pa.array(np.ascontiguousarray(frames).reshape(-1))
        cells = pa.types.is_fixed_size_list(schema.field(name).type)
        columns[name] = pa.FixedSizeListArray.from_arrays(values, type=schema.field(name).type) if cells else values
    return pa.Table.from_arrays([columns[field.name] for field in schema], schema=schema)


def read_facts(path: Path) -> dict[str, Any]:
    """Reads what the statistics describe: size and number of frames, and the store's fingerprint.

    Raises:
        StatisticsError: as `statistics_blocks`.
    """
    with _open(path) as file:
        return _facts(file, path)


def statistics_blocks(
    path: Path, histograms: Sequence[str] = HISTOGRAMS, splits: Sequence[str] | None = None
) -> Iterator[Statistics]:
    """Yields the statistics of a run in parts of up to 256 expressions, with the counts that the file has.

    Args:
        splits: skip parts without expressions of these splits; the other parts may still contain other splits.
        histograms: the histograms to read, by the names of `histograms_of`; reading none is several times faster.

    Raises:
        StatisticsError: the file is missing, damaged, or was not written by `write_statistics`.
    """
    with _open(path) as file:
        facts = _facts(file, path)
        wanted = (*_REPETITIVE, *COUNTS, PEAK, *histograms, LABELLED, *own_columns())
        names = [name for name in wanted if file.schema_arrow.get_field_index(name) >= 0]
        for group in range(file.num_row_groups):
            _refuse_long(file, group, facts["num_frames"], path)
            try:
                if splits is not None:
                    found = file.read_row_group(group, columns=["split"], use_threads=False)["split"]
                    if not set(found.unique().to_pylist()) & set(splits):
                        continue
                table = file.read_row_group(group, columns=names, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(path, error) from error
            yield _statistics(table, facts, path, group)


def _refuse_long(file: pq.ParquetFile, group: int, num_frames: int, path: Path) -> None:
    """Checks, before reading a row group, that it is not longer than `write_statistics` makes it."""
    told = file.metadata.row_group(group)
    most = _most_expressions(num_frames)
    if told.num_rows > most * num_frames or told.total_byte_size > 2 * _MOST_GROUP_BYTES:
        raise StatisticsError(
            f"{path} has {told.num_rows:,} rows ({told.total_byte_size:,} bytes) in row group {group}; "
            f"accepted: up to {most} expressions, as refavs writes them; {_AGAIN}"
        )


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise StatisticsError(f"run {path.parent} has no statistics ({path.name} is missing); {_AGAIN}")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _facts(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    try:
        facts = read_json((file.schema_arrow.metadata or {})[_KEY])
        version = facts["version"]
    except (KeyError, ValueError, TypeError) as error:
        raise StatisticsError(f"{path} is not a statistics file: its facts are missing; {_AGAIN}") from error
    if version != VERSION:
        raise StatisticsError(f"{path} holds statistics of version {version!r}, this program reads {VERSION}; {_AGAIN}")
    numbers = [facts.get(name) for name in ("height", "width", "num_frames")]
    known = set(FACTS) <= set(facts) and isinstance(facts.get("store"), str)
    if not known or not all(type(number) is int and 0 < number < 2**16 for number in numbers):
        raise StatisticsError(f"{path} has facts {facts}; accepted: {', '.join(FACTS)}; {_AGAIN}")
    kinds = {field.name: field.type for field in file.schema_arrow if file.schema_arrow.names.count(field.name) == 1}
    for name, field in _FIELDS.items():
        kind = kinds.get(name)
        if kind is None and name not in (*_REPETITIVE, *ALWAYS):
            continue
        if kind is None or not _alike(kind, field.type):
            raise StatisticsError(f"{path} has column {name} of type {kind}; accepted: {field.type}; {_AGAIN}")
    for name in kinds.keys() & set(own_columns()):
        if not (pa.types.is_integer(kinds[name]) or pa.types.is_floating(kinds[name]) or kinds[name] == pa.bool_()):
            raise StatisticsError(f"{path} has column {name} of type {kinds[name]}; accepted: numbers; {_AGAIN}")
    return facts


def _alike(found: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_dictionary(expected):
        return pa.types.is_string(found) or (pa.types.is_dictionary(found) and pa.types.is_string(found.value_type))
    if pa.types.is_fixed_size_list(expected):
        return pa.types.is_fixed_size_list(found) and found.list_size == NUM_CELLS and pa.types.is_uint32(
            found.value_type
        )
    return found == expected


def _statistics(table: pa.Table, facts: dict[str, Any], path: Path, group: int) -> Statistics:
    where, num_frames = f"{path}, row group {group}", facts["num_frames"]
    if table.num_rows % num_frames or any(column.null_count for column in table.columns):
        raise _damaged(where, "rows are missing or empty")
    frame, row = (table[name].to_numpy().reshape(-1, num_frames) for name in ("frame", "row"))
    if (frame != np.arange(num_frames)).any() or (row != row[:, :1]).any():
        raise _damaged(where, "its rows are not complete expressions")
    first = pa.array(np.arange(0, table.num_rows, num_frames))
    columns = table.select(list(EXPRESSION_COLUMNS)).take(first)
    expressions = pd.DataFrame({
        name: pd.Series(columns[name].to_pylist(), dtype="str") if kind == "str" else columns[name].to_numpy()
        for name, kind in EXPRESSION_COLUMNS.items()
    })  # fmt: skip
    frames: dict[str, np.ndarray] = {}
    for name in table.column_names[len(_REPETITIVE) :]:
        if name in HISTOGRAMS:
            cells = table[name].combine_chunks().flatten().to_numpy()
            frames[name] = cells.reshape(-1, num_frames, NUM_CELLS)
        else:
            frames[name] = table[name].to_numpy().reshape(-1, num_frames)
    part = Statistics(expressions=expressions, frames=frames, facts=facts)
    _check_numbers(part, where)
    return part


def _check_numbers(part: Statistics, where: str) -> None:
    """Checks for numbers that no prediction can have."""
    frames, sizes = part.frames, (part.facts["height"] * part.facts["width"], RELEASED_SIZE**2)
    if PEAK in frames and not ((frames[PEAK] >= 0) & (frames[PEAK] <= 1)).all():
        raise _damaged(where, "a probability is not a number in [0, 1]")
    for prefix, size in zip(("", "released_"), sizes, strict=True):
        if not {f"{prefix}{name}" for name in ("object", "background", "target")} <= set(frames):
            continue
        objects = frames[f"{prefix}object"].sum(-1, dtype=np.int64)
        total = objects + frames[f"{prefix}background"].sum(-1, dtype=np.int64)
        if (total != size).any() or (objects != frames[f"{prefix}target"]).any():
            raise _damaged(where, f"a histogram does not count the {size} pixels of a frame")


def _damaged(where: Path | str, reason: object) -> StatisticsError:
    text = " ".join(str(reason).split())[:200]
    return StatisticsError(f"the statistics {where} cannot be used ({text}); {_AGAIN}")
