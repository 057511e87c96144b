"""Commit records, which make a shard part of the store.

A record is one line of JSON with its own checksum. It is written after the shard files it lists, so these are complete.
Readers ignore files that no record lists.
"""

import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, TypedDict

from refavs.config import digest
from refavs.errors import StoreError
from refavs.files.typed_json import Count, OddRecord, read_json, shaped
from refavs.store.backends.base import Folder, read_or_refuse
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.schema import OBJECTS, SCHEMA_VERSION, STREAM_ID, StoreSchema
from refavs.store.format.shard import ShardFacts, crc32c

REMEDY = "remove it and run the same refavs-extract command again, which computes its rows again"
_NAME = re.compile(rf"commits/({OBJECTS}|{STREAM_ID})/(\d{{5,9}})\.json")
LISTING = "commits/listing.json"  # names of all records, for backends that cannot list files
READERS = 16
MOST_ROWS = 2**22  # in a table
_OBJECT = re.compile(r"(?s).+/\d{1,9}")
Crc = Annotated[int, range(2**32)]


class ShardJson(TypedDict):
    """The entry of a shard file in a record."""

    bytes: Count
    crc32c: Crc
    rows: dict[str, Crc]


class SumsJson(TypedDict):
    """Channel sums of an array."""

    count: Count
    sum: str
    sumsq: str


class _Record(TypedDict):
    table: str
    index: Count
    rows: dict[str, Annotated[int, range(MOST_ROWS)]]
    meta: dict[str, dict[str, str | int | float | bool | None]]
    arrays: dict[str, ShardJson]
    fingerprint: str
    statistics: dict[str, SumsJson]
    failures: dict[str, str]
    seconds: float


_Listing = TypedDict("_Listing", {"names": list[str], "zarr.json": NotRequired[str]})


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """A committed shard of a stream or of the masks, with all its arrays.

    Attributes:
        table: id of the stream, or `objects`.
        rows: row of each key.
        meta: facts that the extraction noted for each key, e.g. that the audio is silent.
        arrays: the shard file of each array, by array name.
        fingerprint: digest of the stream's fingerprint.
        statistics: sums per channel, by array name.
        failures: keys of this shard that could not be computed, with the reason.
        seconds: time taken; the only value that differs between two runs.
    """

    table: str
    index: int
    rows: dict[str, int]
    meta: dict[str, dict]
    arrays: dict[str, ShardFacts]
    fingerprint: str
    statistics: dict[str, ChannelSums] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def file(self) -> str:
        """Name of the record's file."""
        return record_name(self.table, self.index)

    def facts(self) -> dict[str, Any]:
        """Plain values, without the time."""
        arrays = {
            name: {"bytes": facts.num_bytes, "crc32c": facts.crc32c,
                   "rows": {str(place): crc for place, crc in facts.rows.items()}}
            for name, facts in self.arrays.items()
        }  # fmt: skip
        return {
            "version": SCHEMA_VERSION, "table": self.table, "index": self.index, "rows": self.rows, "meta": self.meta,
            "arrays": arrays, "fingerprint": self.fingerprint,
            "statistics": {name: sums.to_json() for name, sums in self.statistics.items()}, "failures": self.failures,
        }  # fmt: skip


def record_name(table: str, index: int) -> str:
    """File name of the record of shard `index` of a stream or of `objects`."""
    return f"commits/{table}/{index:05d}.json"


def shard_of(file: str) -> tuple[str, int] | None:
    """Table and shard index of a commit record's file; None for other files."""
    name = _NAME.fullmatch(file)
    return (name[1], int(name[2])) if name else None


def write_record(folder: Folder, record: CommitRecord) -> None:
    """Commits a shard whose files are already in place."""
    facts = record.facts() | {"seconds": round(record.seconds, 3)}
    folder.write(record.file, seal(facts))


def read_record(folder: Folder, file: str, schema: StoreSchema) -> CommitRecord:
    """Reads and checks one record against the schema.

    Raises:
        StoreError: it is damaged, or lists rows or arrays that this shard cannot have.
    """
    return parse_record(read_or_refuse(folder, file, "commit record", REMEDY), file, schema, folder.where(file))


def parse_record(data: bytes, file: str, schema: StoreSchema, where: str) -> CommitRecord:
    """Parses the bytes of `file` as `read_record` does; `where` is its full name for messages."""
    found = _opened(data, where)
    try:
        facts: _Record = shaped(found, _Record, "the record")
        record = CommitRecord(
            table=facts["table"], index=facts["index"], rows=facts["rows"], meta=facts["meta"],
            arrays={
                array: ShardFacts(num_bytes=value["bytes"], crc32c=value["crc32c"],
                                  rows={int(place): crc for place, crc in value["rows"].items()})
                for array, value in facts["arrays"].items()
            },
            fingerprint=facts["fingerprint"], failures=facts["failures"], seconds=facts["seconds"],
            statistics={array: ChannelSums.from_json(value) for array, value in facts["statistics"].items()},
        )  # fmt: skip
        if (record.table, record.index) != shard_of(file):
            raise ValueError(f"it belongs to shard {record.index} of {record.table}")
        _check(record, schema)
    except (KeyError, ValueError) as error:
        raise StoreError(f"commit record {where} cannot be used: {error}; {REMEDY}") from error
    return record


def _check(record: CommitRecord, schema: StoreSchema) -> None:
    table = schema.tables[record.table]
    size = table.rows_per_shard
    places = {row - record.index * size for row in record.rows.values()}
    inside = all(0 <= place < size for place in places)
    if len(places) != len(record.rows) or not places or not inside or set(record.meta) != set(record.rows):
        raise ValueError(f"its rows {sorted(record.rows.values())} are not those of shard {record.index}")
    if record.table == OBJECTS and (odd := [key for key in record.rows if not _OBJECT.fullmatch(key)]):
        raise ValueError(f"{odd[0]!r} is not a key of an object")
    if set(record.arrays) != set(table.specs) or any(set(facts.rows) != places for facts in record.arrays.values()):
        raise ValueError(f"its arrays {', '.join(record.arrays)} or their rows are not those of the store's schema")
    for name, sums in record.statistics.items():
        spec = table.specs.get(name)
        if spec is None or not spec.statistics:
            raise ValueError(f"it has statistics of {name}, which keeps none")
        sums.refuse_odd(spec.shape[spec.axes.index("c")])
    if record.fingerprint != (known := short_digest(table.fingerprint)):
        raise ValueError(f"its rows have the fingerprint {record.fingerprint}, the stream has {known}")


def record_files(folder: Folder, table: str | None = None) -> list[str]:
    """Files of all commit records of shards, by table and index."""
    found = [(*shard, file) for file in folder.names("commits") if (shard := shard_of(file))]
    return [file for name, _, file in sorted(found) if table in (None, name)]


def read_records(folder: Folder, schema: StoreSchema) -> list[CommitRecord]:
    """All commit records of the store's streams, by table and index.

    Raises:
        StoreError: a record is damaged, or two records contain the same key.
    """
    records = read_each(folder, files_of(folder, schema), schema)
    refuse_doubles(folder, records)
    return records


def files_of(folder: Folder, schema: StoreSchema) -> list[str]:
    """`record_files` of the store's streams; an interrupted `drop` may have left files of others."""
    return [file for file in record_files(folder) if (shard := shard_of(file)) and shard[0] in schema.tables]


def read_each(folder: Folder, files: Sequence[str], schema: StoreSchema) -> list[CommitRecord]:
    """Reads records concurrently, which helps if each file is a request to a server.

    Raises:
        StoreError: as for `read_record`.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda file: read_record(folder, file, schema), files))


def refuse_doubles(folder: Folder, records: Iterable[CommitRecord]) -> None:
    """Checks that no key is in two records.

    Raises:
        StoreError: a key is.
    """
    seen: dict[tuple[str, str], int] = {}
    for record in records:
        for key in record.rows:
            other = seen.setdefault((record.table, key), record.index)
            if other != record.index:
                raise StoreError(f"{folder.where(record.file)} holds {key!r}, which shard {other} already holds; "
                                 f"{REMEDY}")


def short_digest(fingerprint: dict[str, Any]) -> str:
    """A short digest of a stream's fingerprint."""
    return digest(fingerprint)[:16]


def seal(facts: dict[str, Any]) -> bytes:
    """JSON with a checksum of itself."""
    body = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return _head(body) + body + b"}"


def unseal(folder: Folder, file: str) -> dict[str, Any]:
    """Reads what `seal` wrote.

    Raises:
        StoreError: the bytes have changed.
    """
    return _opened(read_or_refuse(folder, file, "commit record", REMEDY), folder.where(file))


def read_listing(folder: Folder) -> dict[str, Any]:
    """Reads the names of all commit records and the copy of the store's description from when it was last finished.

    Raises:
        StoreError: the bytes have changed, or the file has another form.
    """
    facts = unseal(folder, LISTING)
    try:
        known: _Listing = shaped(facts, _Listing, "the list")
        odd = [name for name in known["names"] if shard_of(name) is None]
        if odd:
            raise OddRecord(f"{odd[0]!r} is not a commit record")
    except OddRecord as error:
        raise StoreError(f"{folder.where(LISTING)} cannot be used ({error}); remove it and run the same refavs-extract "
                         "command again, which rewrites it") from error
    return facts


def _opened(data: bytes, where: str) -> dict[str, Any]:
    body = data[len(_head(b"")) : -1]
    try:
        facts = read_json(body) if data == _head(body) + body + b"}" else None
    except OddRecord:
        facts = None
    if not isinstance(facts, dict):
        raise StoreError(f"commit record {where} is damaged: it does not match its own checksum; {REMEDY}")
    return facts


def _head(body: bytes) -> bytes:
    """The prefix of a record; its length does not depend on the body."""
    return f'{{"crc32c":"{crc32c(body):08x}","record":'.encode()
