"""What a store holds: tables of rows, arrays with named axes, encoder fingerprints, and the Zarr v3 metadata."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, NotRequired, TypedDict, get_args

import numpy as np
from jaxtyping import Bool, UInt8

from refavs.choices import MaskRule, Role
from refavs.config import digest
from refavs.errors import StoreError
from refavs.files.atomic import LOCK
from refavs.files.typed_json import read_json, shaped
from refavs.store.backends.base import Folder, LocalFolder, is_stray, read_or_refuse

SCHEMA_VERSION = 2
TABLES = ("clips", "objects", "text")
LEASE = "lease.json"
LOG = "extract.jsonl"
OTHER_STORE = "name another store, or remove this one and extract anew"
DTYPES = ("bool", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
MASK = "objects/mask"
MOST_PLACES = 10**6  # of a shard; its index is in memory
_MOST_ROW_BYTES = 2**31
_ROW_AXIS = {"clips": "clip", "objects": "object", "text": "text"}
_PATH = re.compile(rf"({'|'.join(TABLES)})(/[A-Za-z0-9_][A-Za-z0-9_-]*)+")


class _Array(TypedDict):
    path: str
    shape: list[Annotated[int, range(1, 2**31)]]
    dtype: str
    axes: list[str]
    statistics: NotRequired[bool]
    valid: NotRequired[str | None]


class _Table(TypedDict):
    rows_per_shard: Annotated[int, range(1, MOST_PLACES + 1)]
    arrays: list[_Array]


class _Tables(TypedDict):
    tables: dict[str, _Table]


class _Attributes(TypedDict):
    refavs_schema: _Tables
    encoders: dict[str, dict[str, Any]]
    source: str
    T: Annotated[int, range(1, 2**15)]
    input_size: Annotated[int, range(1, 2**15)]
    mask_rule: NotRequired[str | None]
    extraction: NotRequired[dict[str, str | int | float | bool | None]]
    splits: NotRequired[dict[str, Role]]


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a table.

    Attributes:
        path: where it lies in the store, starting with its table, e.g. `clips/audio/vggish`.
        shape: shape of one row, without the row axis.
        dtype: one of `DTYPES`.
        axes: a name per axis of `shape`; the channel axis is called `c`.
        statistics: keep the mean and deviation of each channel over all rows.
        valid: path of a boolean array of the same table that says which places of the leading axes are real; the
            others are left out of the statistics.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    statistics: bool = False
    valid: str | None = None

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise StoreError(
                f"array path {self.path!r} cannot be used; accepted: names of letters, digits, _ and - joined by '/', "
                f"the first one of {', '.join(TABLES)}"
            )
        if self.dtype not in DTYPES:
            raise StoreError(f"array {self.path} is of type {self.dtype!r}; accepted: {', '.join(DTYPES)}")
        if not self.shape or min(self.shape) < 1 or len(self.shape) != len(self.axes):
            raise StoreError(f"array {self.path} has row shape {self.shape} and axes {self.axes}; accepted: positive "
                             "sizes and one name for each")
        if self.row_bytes > _MOST_ROW_BYTES:
            raise StoreError(f"array {self.path} has rows of {self.row_bytes:,} bytes; accepted: up to "
                             f"{_MOST_ROW_BYTES:,}")
        if self.statistics and self.axes.count("c") != 1:
            raise StoreError(f"array {self.path} keeps statistics, so one of its axes {self.axes} must be called 'c'")

    @property
    def table(self) -> str:
        """Name of the table the array belongs to."""
        return self.path.split("/")[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class TableSchema:
    """Arrays of one table and how many rows one shard of them takes."""

    rows_per_shard: int
    arrays: tuple[ArraySpec, ...]


@dataclass(frozen=True, kw_only=True)
class StoreSchema:
    """Everything that is fixed when a store is created.

    Attributes:
        encoders: fingerprint of the encoder of each stream: name, weights, preprocessing and whatever else changes
            its values.
        source: where the clips came from, for people to read.
        num_frames: frames per clip.
        input_size: side of the frames the visual encoder saw and of the stored masks, in pixels.
        mask_rule: by which all masks were read, of `refavs.choices`; None where there are none, or were read before
            stores told it.
        extraction: how the last run made the rows, plain values, so that `refavs-store repair` can do it again; no part
            of what the store is.
        splits: what each split of the expressions is for, by its name; None where that was not told.
    """

    encoders: dict[str, dict]
    source: str
    num_frames: int
    input_size: int
    tables: dict[str, TableSchema]
    mask_rule: str | None = None
    extraction: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Role] | None = None

    def __post_init__(self) -> None:
        for name, table in self.tables.items():
            if name not in TABLES or table.rows_per_shard < 1 or not table.arrays:
                raise StoreError(f"table {name!r} with {table.rows_per_shard} rows per shard and {len(table.arrays)} "
                                 f"arrays; accepted: one of {', '.join(TABLES)}, at least one row and one array")
        if self.mask_rule not in (None, *get_args(MaskRule)):
            raise StoreError(f"mask rule {self.mask_rule!r}; accepted: one of {', '.join(get_args(MaskRule))}")
        specs = self.specs
        if len(specs) != sum(len(table.arrays) for table in self.tables.values()):
            raise StoreError("the schema names an array twice")
        for path, spec in specs.items():
            inside = [other for other in specs if other.startswith(f"{path}/")]
            if inside or spec.table not in self.tables or spec not in self.tables[spec.table].arrays:
                raise StoreError(f"array {path} lies in another table or holds another array {inside}")
            if path == MASK and spec.shape[-1] != -(-self.input_size // 8):
                raise StoreError(f"array {path} has rows of {spec.shape}, which are no masks of {self.input_size} px "
                                 "with eight pixels to a byte")
            if spec.valid is not None and (spec.valid not in specs or specs[spec.valid].dtype != "bool"):
                raise StoreError(f"array {path} names {spec.valid!r} as its valid places, which is no boolean array")

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """All arrays by path."""
        return {spec.path: spec for table in self.tables.values() for spec in table.arrays}

    def to_attributes(self) -> dict[str, Any]:
        """The attributes of the root group, plain values."""
        tables = {
            name: {"rows_per_shard": table.rows_per_shard, "arrays": [asdict(spec) for spec in table.arrays]}
            for name, table in self.tables.items()
        }
        extraction = {"extraction": self.extraction} if self.extraction else {}
        mask_rule = {} if self.mask_rule is None else {"mask_rule": self.mask_rule}
        splits = {} if self.splits is None else {"splits": self.splits}
        return json.loads(json.dumps({
            "refavs_schema": {"version": SCHEMA_VERSION, "tables": tables},
            "encoders": self.encoders, "source": self.source, "T": self.num_frames, "input_size": self.input_size,
            **mask_rule, **extraction, **splits,
        }))  # fmt: skip

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> "StoreSchema":
        """Reads what `to_attributes` wrote.

        Raises:
            StoreError: the attributes are another schema's or damaged; `where` names the store.
        """
        found = attributes.get("refavs_schema")
        found = found if isinstance(found, dict) else {}
        version = found.get("version")
        if version != SCHEMA_VERSION:
            raise StoreError(f"{where} has schema version {version!r}, this refavs reads {SCHEMA_VERSION}; extract "
                             "into a new store or use the refavs that wrote it")
        try:
            told: _Attributes = shaped(dict(attributes), _Attributes, "attributes")
            tables = {
                name: TableSchema(
                    rows_per_shard=table["rows_per_shard"],
                    arrays=tuple(
                        ArraySpec(**{**spec, "shape": tuple(spec["shape"]), "axes": tuple(spec["axes"])})
                        for spec in table["arrays"]
                    ),
                )
                for name, table in told["refavs_schema"]["tables"].items()
            }
            return cls(encoders=dict(told["encoders"]), source=told["source"], num_frames=told["T"],
                       input_size=told["input_size"], tables=tables, mask_rule=told.get("mask_rule"),
                       extraction=dict(told.get("extraction", {})), splits=told.get("splits"))  # fmt: skip
        except (TypeError, ValueError) as error:
            raise StoreError(f"{where} has a damaged zarr.json ({error}); restore that file or extract into a new "
                             "store") from error
        except StoreError as error:
            raise StoreError(f"{where} has a damaged zarr.json: {error}") from error

    def layout_digest(self) -> str:
        """Names the arrays and sizes; what differs here cannot share a store."""
        arrays = {path: asdict(spec) for path, spec in self.specs.items()}
        return digest([SCHEMA_VERSION, arrays, self.num_frames, self.input_size])


def root_attributes(folder: Folder) -> dict[str, Any]:
    """Attributes of the group at `folder`.

    Raises:
        StoreError: there is no store there.
    """
    if not folder.exists("zarr.json"):
        raise StoreError(f"no feature store at {folder.location} (it has no zarr.json); name a folder that "
                         "refavs-extract wrote")
    try:
        attributes = read_json(read_or_refuse(folder, "zarr.json", "the store's description", "check its permissions"))
        attributes = attributes["attributes"]
    except (ValueError, KeyError, TypeError):
        attributes = None
    if not isinstance(attributes, dict) or "refavs_schema" not in attributes:
        raise StoreError(f"{folder.where('zarr.json')} does not describe a refavs store; name a folder that "
                         "refavs-extract wrote")
    return attributes


def refuse_foreign(folder: Folder) -> None:
    """Checks that a store is at `folder`, or can be made there.

    Raises:
        StoreError: it is a file, or a folder of other files.
    """
    if isinstance(folder, LocalFolder):
        if folder.path.exists() and not folder.path.is_dir():
            raise StoreError(f"{folder.location} is a file; name a folder for the store")
        names = [stray.name for stray in folder.path.iterdir()] if folder.path.is_dir() else []
    else:
        names = ["zarr.json"] if folder.exists("zarr.json") else folder.names()
    ours = (LOCK, LEASE, LOG)
    foreign = any(name not in ours and not is_stray(name) for name in names)
    if "zarr.json" not in names and (foreign or (LEASE in names and not _is_lease(folder))):
        raise StoreError(f"{folder.location} holds files but no feature store; name an empty or a new folder")


def _is_lease(folder: Folder) -> bool:
    """Whether the file of that name is the lease of a store, and not something else that somebody calls so."""
    try:
        return {"token", "pid", "beat"} <= set(json.loads(folder.read(LEASE)))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def extended(found: StoreSchema, wanted: StoreSchema, where: str) -> StoreSchema:
    """The schema of a store that has one and into which a run writes that wants the other.

    What the store has stays as it is, its `source` and shard sizes included, which do not change what its rows hold;
    streams and arrays that it lacks (another level) are added.

    Raises:
        StoreError: a stream has another encoder, or an array, a size or the mask rule differs; both are named.
    """
    for stream, old in found.encoders.items():
        new = wanted.encoders.get(stream)
        if old != new:
            raise StoreError(f"store {where} holds {stream} {_named(old, new)}, this run makes {_named(new, old)}; "
                             f"{OTHER_STORE}")
    same_arrays = all(wanted.specs.get(path) == spec for path, spec in found.specs.items())
    same_sizes = (found.num_frames, found.input_size) == (wanted.num_frames, wanted.input_size)
    if not same_arrays or not same_sizes:
        raise StoreError(f"store {where} has layout {_layout(found, wanted)}, this run makes {_layout(wanted, found)}; "
                         f"{OTHER_STORE}")
    if None not in (found.mask_rule, wanted.mask_rule) and found.mask_rule != wanted.mask_rule:
        raise StoreError(f"store {where} has masks read by mask rule {found.mask_rule}, this run reads them by "
                         f"{wanted.mask_rule}; leave out --mask-rule, or {OTHER_STORE}")
    sizes = {name: found.tables.get(name, table).rows_per_shard for name, table in wanted.tables.items()}
    tables = {name: TableSchema(rows_per_shard=sizes[name], arrays=table.arrays)
              for name, table in wanted.tables.items()}  # fmt: skip
    extraction = wanted.extraction or found.extraction
    rule = found.mask_rule or wanted.mask_rule
    return replace(found, encoders=wanted.encoders, tables=tables, mask_rule=rule, extraction=extraction,
                   splits=wanted.splits or found.splits)  # fmt: skip


def _named(fingerprint: dict | None, other: dict | None) -> str:
    """A fingerprint by name and digest, with the facts in which it differs from the other one."""
    if fingerprint is None:
        return "nothing"
    facts = [f"{key}={fingerprint.get(key)}" for key in sorted({*fingerprint, *(other or {})})
             if other is not None and fingerprint.get(key) != other.get(key)]  # fmt: skip
    name = f"{fingerprint.get('name', 'encoder')}@{digest(fingerprint)[:8]}"
    return f"{name} ({', '.join(facts)})" if facts else name


def _layout(schema: StoreSchema, other: StoreSchema) -> str:
    facts = [f"{path} {spec.dtype} {spec.shape}" for path, spec in schema.specs.items()
             if other.specs.get(path) != spec]  # fmt: skip
    sizes = f"{schema.num_frames} frames of {schema.input_size} px"
    return f"{schema.layout_digest()[:8]} ({', '.join([sizes, *facts])})"


def group_metadata(attributes: Mapping[str, Any] | None = None) -> bytes:
    """The zarr.json of a group."""
    return _encode({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})})


def array_metadata(
    spec: ArraySpec, rows_per_shard: int, num_rows: int, attributes: Mapping[str, Any] | None = None
) -> bytes:
    """The zarr.json of a sharded array: one row is an inner chunk, all arrays carry checksums and no compression."""
    chunk_bytes = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shards = {
        "chunk_shape": [1, *spec.shape], "codecs": chunk_bytes, "index_codecs": chunk_bytes, "index_location": "end",
    }  # fmt: skip
    return _encode(_array(
        spec.dtype, [num_rows, *spec.shape], [rows_per_shard, *spec.shape],
        [{"name": "sharding_indexed", "configuration": shards}], [_ROW_AXIS[spec.table], *spec.axes], attributes,
    ))  # fmt: skip


def column_metadata(column: np.ndarray, attributes: Mapping[str, Any] | None = None) -> bytes:
    """The zarr.json of a small array that is one chunk."""
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shape = list(column.shape)
    axes = ["row", "byte"][: column.ndim]
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


def text_key(text: str) -> str:
    """Key of a string in the table `text`: two expressions with the same words share a row."""
    return hashlib.sha256(text.encode()).hexdigest()


def object_key(clip_id: str, fid: int) -> str:
    """Key of an annotated object in the table `objects`."""
    return f"{clip_id}/{fid}"


def pack_mask(mask: Bool[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h bytes"]:
    """Eight pixels per byte, as `objects/mask` stores them."""
    return np.packbits(mask, axis=-1)


def unpack_mask(packed: UInt8[np.ndarray, "t h bytes"], width: int) -> Bool[np.ndarray, "t h {width}"]:
    """Inverse of `pack_mask` for masks `width` pixels wide."""
    return np.unpackbits(packed, axis=-1, count=width).astype(bool)
