"""The schema of a store: streams of frozen features, and masks, as arrays with named axes.

A *stream* is the output of one frozen encoder, or of one of its levels, for one modality. Its id is `visual/<encoder>`,
`audio/<encoder>/<level>` and so on. Each stream is a separate table, and so are the masks (`objects`).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, NotRequired, TypedDict, get_args

from refavs.choices import MaskRule, Role
from refavs.config import digest
from refavs.errors import ConfigError, StoreError
from refavs.files.atomic import LOCK
from refavs.files.typed_json import read_json, shaped
from refavs.steps import Steps
from refavs.store.backends.base import Folder, LocalFolder, is_stray, read_or_refuse
from refavs.store.format.array_spec import NAME, RESERVED, ArraySpec
from refavs.store.format.mask_rows import MaskSize, ToldSize, object_arrays, read_size, told_size

SCHEMA_VERSION = 3
HALF_UPGRADED = "2, half upgraded to 3"
MODALITIES = ("visual", "audio", "text")
OBJECTS = "objects"
LEASE = "lease.json"
LOG = "extract.jsonl"
OTHER_STORE = "name another store, or remove this one and extract again"
MOST_PLACES = 10**6  # rows in a shard; its index is in memory
STREAM_ID = rf"(?:{'|'.join(MODALITIES)})/{NAME}(?:/{NAME})?"


class _Array(TypedDict):
    name: str
    shape: list[Annotated[int, range(1, 2**31)]]
    dtype: str
    axes: list[str]
    statistics: NotRequired[bool]
    valid: NotRequired[str | None]
    scale: NotRequired[str]
    number_format: NotRequired[str]


class _Table(TypedDict):
    rows_per_shard: Annotated[int, range(1, MOST_PLACES + 1)]
    arrays: list[_Array]
    fingerprint: NotRequired[dict[str, Any]]


class _Tables(TypedDict):
    streams: dict[str, _Table]
    objects: _Table


class _Attributes(TypedDict):
    refavs_schema: _Tables
    source: str
    seconds: Annotated[int, range(1, 2**15)]
    fps: NotRequired[float]
    mask_size: ToldSize
    mask_rule: NotRequired[str | None]
    extraction: NotRequired[dict[str, str | int | float | bool | None]]
    splits: NotRequired[dict[str, Role]]


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """A stream, or the table of masks: its arrays and the number of rows per shard.

    Attributes:
        fingerprint: name, weights, preprocessing and everything else that affects the values, as plain values.
    """

    fingerprint: dict[str, Any]
    arrays: tuple[ArraySpec, ...]
    rows_per_shard: int

    def __post_init__(self) -> None:
        named = {spec.name: spec for spec in self.arrays}
        if not named or len(named) < len(self.arrays) or not 1 <= self.rows_per_shard <= MOST_PLACES:
            raise StoreError(f"a stream has the arrays {[spec.name for spec in self.arrays]} and {self.rows_per_shard} "
                             f"rows per shard; accepted: arrays of different names, 1 to {MOST_PLACES:,} rows")
        for spec in self.arrays:
            if spec.valid is not None and (spec.valid not in named or named[spec.valid].dtype != "bool"):
                raise StoreError(f"array {spec.name} has valid={spec.valid!r}, which is not a boolean "
                                 "array of its stream")
            if spec.scale and named.get(spec.scale) != replace(spec.scale_spec(spec.scale), table=spec.table):
                raise StoreError(f"array {spec.name} has scale={spec.scale!r}, which is not a float32 array of its "
                                 "stream with one number per channel")

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """The arrays by name."""
        return {spec.name: spec for spec in self.arrays}

    @property
    def values(self) -> tuple[ArraySpec, ...]:
        """The arrays without the scales of other arrays."""
        scales = {spec.scale for spec in self.arrays}
        return tuple(spec for spec in self.arrays if spec.name not in scales)

    def told(self) -> dict[str, Any]:
        """Plain values for the store's description."""
        return {"rows_per_shard": self.rows_per_shard, "arrays": [spec.told() for spec in self.arrays]}

    @classmethod
    def of(cls, told: _Table) -> "StreamSpec":
        """Reads the output of `told`."""
        arrays = tuple(
            ArraySpec(**{**spec, "shape": tuple(spec["shape"]), "axes": tuple(spec["axes"])})
            for spec in told["arrays"]
        )
        return cls(fingerprint=told.get("fingerprint", {}), arrays=arrays, rows_per_shard=told["rows_per_shard"])


@dataclass(frozen=True, kw_only=True)
class StoreSchema:
    """The description of a store.

    Attributes:
        streams: the streams by id.
        source: where the clips came from, for people to read.
        seconds: length of a clip.
        fps: number of steps per second; a step has a frame, a mask and a place in the sound.
        mask_size: side of the stored masks in pixels; or height and width of the largest, if they keep their own.
        objects_per_shard: number of masks in one shard.
        mask_rule: rule in `refavs.choices` by which all masks were read; None if there are none, or if they were read
            before stores recorded it.
        extraction: settings of the last run as plain values, so that `refavs-store repair` can repeat it; not part of
            the store's identity.
        splits: role of each split by name; None if not recorded.
    """

    streams: dict[str, StreamSpec]
    source: str
    seconds: int
    fps: float
    mask_size: MaskSize
    objects_per_shard: int
    mask_rule: str | None = None
    extraction: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Role] | None = None

    def __post_init__(self) -> None:
        if self.mask_rule not in (None, *get_args(MaskRule)):
            raise StoreError(f"the mask rule is {self.mask_rule!r}; accepted: {', '.join(get_args(MaskRule))}")
        try:
            _ = self.steps
        except ConfigError as error:
            raise StoreError(str(error)) from error
        for name in self.streams:
            inside = [other for other in self.streams if other.startswith(f"{name}/")]
            if not re.fullmatch(STREAM_ID, name) or name.split("/")[1] in RESERVED or inside:
                raise StoreError(
                    f"stream {name!r} cannot be used{f' beside {inside[0]!r}' if inside else ''}; accepted: "
                    f"<modality>/<encoder> or <modality>/<encoder>/<level>, the modality one of {', '.join(MODALITIES)}"
                    ", names of letters, digits, _ - . and @"
                )

    @cached_property
    def steps(self) -> Steps:
        """The steps of a clip, T of them."""
        return Steps(self.seconds, self.fps)

    @cached_property
    def tables(self) -> dict[str, StreamSpec]:
        """The streams by id, and the masks as `objects`, with `table` set in each array."""
        masks = object_arrays(len(self.steps), self.mask_size)
        found = self.streams | {OBJECTS: StreamSpec(fingerprint={}, arrays=masks,
                                                    rows_per_shard=self.objects_per_shard)}  # fmt: skip
        return {
            name: replace(table, arrays=tuple(replace(spec, table=name) for spec in table.arrays))
            for name, table in sorted(found.items())
        }

    @property
    def object_paths(self) -> list[str]:
        """Paths of the arrays of an object."""
        return [spec.path for spec in self.tables[OBJECTS].arrays]

    @cached_property
    def specs(self) -> dict[str, ArraySpec]:
        """All arrays by path."""
        return {spec.path: spec for table in self.tables.values() for spec in table.arrays}

    def with_scales(self, *paths: str) -> list[str]:
        """The paths to read for the values of some arrays: their own and those of their scales."""
        return [one for path in paths for one in self.specs[path].paths]

    def to_attributes(self) -> dict[str, Any]:
        """The attributes of the root group, plain values."""
        streams = {name: {"fingerprint": stream.fingerprint, **stream.told()} for name, stream in self.streams.items()}
        extraction = {"extraction": self.extraction} if self.extraction else {}
        mask_rule = {} if self.mask_rule is None else {"mask_rule": self.mask_rule}
        splits = {} if self.splits is None else {"splits": self.splits}
        return json.loads(json.dumps({
            "refavs_schema": {"version": SCHEMA_VERSION, "streams": streams, OBJECTS: self.tables[OBJECTS].told()},
            "source": self.source, "seconds": self.seconds, "fps": self.fps, "mask_size": self.mask_size,
            **mask_rule, **extraction, **splits,
        }))  # fmt: skip

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> "StoreSchema":
        """Reads what `to_attributes` wrote.

        Raises:
            StoreError: the attributes are damaged or have another schema version; `where` names the store.
        """
        found = attributes.get("refavs_schema")
        version = found.get("version") if isinstance(found, dict) else None
        if version != SCHEMA_VERSION:
            remedy = ("bring it to this version with refavs-store upgrade" if version in (2, HALF_UPGRADED)
                      else "extract into a new store, or use the refavs that wrote it")  # fmt: skip
            raise StoreError(f"{where} has schema version {version!r}, this refavs reads {SCHEMA_VERSION}; {remedy}")
        try:
            told: _Attributes = shaped(dict(attributes), _Attributes, "attributes")
            tables = told["refavs_schema"]
            schema = cls(
                streams={name: StreamSpec.of(table) for name, table in tables["streams"].items()},
                source=told["source"], seconds=told["seconds"], fps=told.get("fps", 1.0),
                mask_size=read_size(told["mask_size"]),
                objects_per_shard=tables["objects"]["rows_per_shard"], mask_rule=told.get("mask_rule"),
                extraction=dict(told.get("extraction", {})), splits=told.get("splits"),
            )  # fmt: skip
            masks = StreamSpec.of(tables["objects"]).arrays
        except (TypeError, ValueError) as error:
            raise StoreError(f"{where} has a damaged zarr.json ({error}); restore that file or extract into a new "
                             "store") from error
        except StoreError as error:
            raise StoreError(f"{where} has a damaged zarr.json: {error}") from error
        if masks != object_arrays(len(schema.steps), schema.mask_size):
            raise StoreError(f"{where} has a damaged zarr.json: its arrays {[spec.name for spec in masks]} of objects "
                             f"are not masks of {told_size(schema.mask_size)} in {len(schema.steps)} steps")
        return schema


def root_attributes(folder: Folder) -> dict[str, Any]:
    """Attributes of the group at `folder`.

    Raises:
        StoreError: there is no store.
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


def schema_at(folder: Folder) -> StoreSchema:
    """The description of the store at `folder`.

    Raises:
        StoreError: there is no store, or it has another version.
    """
    return StoreSchema.from_attributes(root_attributes(folder), f"store {folder.location}")


def refuse_foreign(folder: Folder) -> None:
    """Checks that a store exists at `folder` or can be created there.

    Raises:
        StoreError: it is a file, or a folder with other files.
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
    """Whether lease.json is really the lease of a store and not an unrelated file of that name."""
    try:
        return {"token", "pid", "beat"} <= set(json.loads(folder.read(LEASE)))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def extended(found: StoreSchema, wanted: StoreSchema, where: str) -> StoreSchema:
    """The schema of a store after a run that needs `wanted`: existing streams stay, missing ones are added.

    The existing `source` and shard sizes stay too, because they do not affect the content of rows.

    Raises:
        StoreError: a stream has another fingerprint or other arrays, or the seconds, frames per second, mask size or
            rule differ.
    """
    for attribute, unit in (("seconds", "seconds"), ("fps", "frames per second"), ("mask_size", "px masks")):
        old, new = getattr(found, attribute), getattr(wanted, attribute)
        if old != new:
            told = [" x ".join(map(str, each)) if isinstance(each, tuple) else each for each in (old, new)]
            raise StoreError(f"store {where} has clips with {told[0]} {unit}, this run makes {told[1]} {unit}; "
                             f"{OTHER_STORE}")
    for name in found.streams.keys() & wanted.streams.keys():
        old, new = found.streams[name], wanted.streams[name]
        if old.fingerprint != new.fingerprint or old.arrays != new.arrays:
            modality, encoder, *level = name.split("/")
            other = "/".join([modality, f"{encoder}@NAME", *level])
            raise StoreError(
                f"store {where} has a stream {name} of {_differing(old, new)}, this run makes {_differing(new, old)}; "
                f"remove it with refavs-store drop, or keep both and call the new one {other}"
            )
    if None not in (found.mask_rule, wanted.mask_rule) and found.mask_rule != wanted.mask_rule:
        raise StoreError(f"store {where} has masks read by mask rule {found.mask_rule}, this run reads them by "
                         f"{wanted.mask_rule}; leave out --mask-rule, or {OTHER_STORE}")
    return replace(
        found, streams={**wanted.streams, **found.streams}, mask_rule=found.mask_rule or wanted.mask_rule,
        extraction=wanted.extraction or found.extraction, splits=wanted.splits or found.splits,
    )  # fmt: skip


def _differing(stream: StreamSpec, other: StreamSpec) -> str:
    """Name and digest of a fingerprint, with the facts that differ from the other one."""
    one, two = stream.fingerprint, other.fingerprint
    facts = [f"{key}={one.get(key)}" for key in sorted({*one, *two}) if one.get(key) != two.get(key)]
    facts += [f"{spec.name} {spec.dtype} {spec.shape}" for spec in stream.arrays if spec not in other.arrays]
    return f"{one.get('name', 'encoder')}@{digest(one)[:8]} ({', '.join(facts)})"


def text_key(text: str) -> str:
    """Key of a string in a text stream; expressions with the same text share a row."""
    return hashlib.sha256(text.encode()).hexdigest()


def object_key(clip_id: str, fid: int) -> str:
    """Key of an annotated object in the table `objects`."""
    return f"{clip_id}/{fid}"


def says_random(value: Any) -> bool:
    """Whether a fingerprint or any part of it says that weights are random."""
    if isinstance(value, dict):
        return any(map(says_random, value.values()))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return any(map(says_random, value))
    return isinstance(value, str) and value.startswith("random:")
