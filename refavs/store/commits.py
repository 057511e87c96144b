"""Commit records: what makes a shard part of the store.

A record is one line of JSON with its own checksum. It is written after the shard files it speaks of, so whatever a
record names is whole; whatever no record names does not exist for a reader.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refavs.config import digest
from refavs.errors import StoreError
from refavs.store.files import read_file, write_atomically
from refavs.store.schema import SCHEMA_VERSION, StoreSchema
from refavs.store.shard import ShardFacts, crc32c
from refavs.store.statistics import ChannelSums

REMEDY = "remove it and run the same refavs-extract command again, which computes its rows anew"
_NAME = re.compile(r"(clips|objects|text)-(\d{5,9})\.json")


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """One committed shard of a table, in all its arrays.

    Attributes:
        rows: row of each key.
        meta: what the extraction noted of each key, e.g. that a clip is silent.
        arrays: what was written, by array path.
        encoders: digest of the fingerprint of each stream.
        statistics: sums per channel, by array path.
        failures: keys of this shard that could not be computed, with the reason.
        seconds: time the shard took; the only thing that differs between two runs.
    """

    table: str
    index: int
    rows: dict[str, int]
    meta: dict[str, dict]
    arrays: dict[str, ShardFacts]
    encoders: dict[str, str]
    statistics: dict[str, ChannelSums] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Plain values, without the time."""
        arrays = {
            path: {"bytes": facts.num_bytes, "crc32c": facts.crc32c,
                   "rows": {str(place): crc for place, crc in facts.rows.items()}}
            for path, facts in self.arrays.items()
        }  # fmt: skip
        return {
            "version": SCHEMA_VERSION, "table": self.table, "index": self.index, "rows": self.rows, "meta": self.meta,
            "arrays": arrays, "encoders": self.encoders,
            "statistics": {path: sums.to_json() for path, sums in self.statistics.items()}, "failures": self.failures,
        }  # fmt: skip


def record_path(root: Path, table: str, index: int) -> Path:
    """File of the record of shard `index` of `table`."""
    return root / "commits" / f"{table}-{index:05d}.json"


def write_record(root: Path, record: CommitRecord) -> None:
    """Commits a shard whose files are already in place."""
    facts = record.facts() | {"seconds": round(record.seconds, 3)}
    write_atomically(record_path(root, record.table, record.index), seal(facts))


def read_record(path: Path, schema: StoreSchema) -> CommitRecord:
    """Reads and checks one record against the schema.

    Raises:
        StoreError: it is damaged, or speaks of rows or arrays that the shard of its name cannot have.
    """
    facts = unseal(path)
    try:
        name = _NAME.fullmatch(path.name)
        record = CommitRecord(
            table=facts["table"], index=facts["index"], rows=facts["rows"], meta=facts["meta"],
            arrays={
                array: ShardFacts(num_bytes=value["bytes"], crc32c=value["crc32c"],
                                  rows={int(place): crc for place, crc in value["rows"].items()})
                for array, value in facts["arrays"].items()
            },
            encoders=facts["encoders"], failures=facts["failures"], seconds=facts["seconds"],
            statistics={array: ChannelSums.from_json(value) for array, value in facts["statistics"].items()},
        )  # fmt: skip
        if name is None or (record.table, record.index) != (name[1], int(name[2])):
            raise ValueError(f"it speaks of shard {record.index} of table {record.table}")
        _check(record, schema)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"commit record {path} cannot be used: {error}; {REMEDY}") from error
    return record


def _check(record: CommitRecord, schema: StoreSchema) -> None:
    table = schema.tables[record.table]
    size = table.rows_per_shard
    places = {row - record.index * size for row in record.rows.values() if type(row) is int}
    inside = all(0 <= place < size for place in places)
    if len(places) != len(record.rows) or not places or not inside or set(record.meta) != set(record.rows):
        raise ValueError(f"its rows {sorted(record.rows.values())} are not those of shard {record.index}")
    paths = {spec.path for spec in table.arrays}
    if set(record.arrays) != paths or any(set(facts.rows) != places for facts in record.arrays.values()):
        raise ValueError(f"its arrays {sorted(record.arrays)} or their rows are not those of the store's schema")
    if record.encoders != encoder_digests(schema):
        raise ValueError(f"its encoders {record.encoders} are not the store's {encoder_digests(schema)}")


def record_files(root: Path, table: str | None = None) -> list[Path]:
    """Files of all commit records of shards, sorted."""
    found = [path for path in (root / "commits").glob("*.json") if (name := _NAME.fullmatch(path.name))
             and table in (None, name[1])]  # fmt: skip
    return sorted(found, key=lambda path: (path.name.split("-")[0], int(path.stem.split("-")[1])))


def read_records(root: Path, schema: StoreSchema, table: str | None = None) -> list[CommitRecord]:
    """All commit records, by table and index.

    Raises:
        StoreError: a record is damaged, or two of them hold the same key.
    """
    records = [read_record(path, schema) for path in record_files(root, table)]
    seen: dict[tuple[str, str], int] = {}
    for record in records:
        for key in record.rows:
            other = seen.setdefault((record.table, key), record.index)
            if other != record.index:
                raise StoreError(f"{record_path(root, record.table, record.index)} holds {key!r}, which shard {other} "
                                 f"already holds; {REMEDY}")
    return records


def encoder_digests(schema: StoreSchema) -> dict[str, str]:
    """A short name of the fingerprint of each stream."""
    return {stream: digest(fingerprint)[:16] for stream, fingerprint in schema.encoders.items()}


def store_fingerprint(schema: StoreSchema, records: Sequence[CommitRecord], expressions: dict[str, Any] | None) -> str:
    """Names the content of a store: schema, encoders, every row with its checksums, statistics and expressions."""
    facts = [digest({**record.facts(), "failures": {}}) for record in records]
    return digest([schema.layout_digest(), schema.encoders, facts, expressions])


def seal(facts: dict[str, Any]) -> bytes:
    """JSON with a checksum of itself."""
    body = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return _head(body) + body + b"}"


def unseal(path: Path) -> dict[str, Any]:
    """Reads what `seal` wrote.

    Raises:
        StoreError: a byte of it has changed.
    """
    data = read_file(path, "commit record", REMEDY)
    body = data[len(_head(b"")) : -1]
    try:
        facts = json.loads(body) if data == _head(body) + body + b"}" else None
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise StoreError(f"commit record {path} is damaged: it does not match its own checksum; {REMEDY}")
    return facts


def _head(body: bytes) -> bytes:
    """What comes before the record, in as many bytes whatever the body is."""
    return f'{{"crc32c":"{crc32c(body):08x}","record":'.encode()
