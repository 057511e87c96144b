"""A summary of a store's content: tags keep it, and two stores are compared by it, row by row."""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from refavs.config import digest
from refavs.errors import ConfigError, StoreError
from refavs.files.typed_json import OddRecord, read_json, shaped
from refavs.store.backends.base import Folder
from refavs.store.columns import NEEDED, read_table
from refavs.store.derived_files import store_fingerprint
from refavs.store.folders import open_folder
from refavs.store.format.commits import CommitRecord, read_records, short_digest
from refavs.store.format.schema import StoreSchema, root_attributes, schema_at

TAGS = "tags"
NAME = re.compile(r"[A-Za-z0-9][\w.\-]{0,99}")
MOST_NAMED = 5


class _Stream(TypedDict):
    fingerprint: str
    rows: dict[str, str]


class Contents(TypedDict):
    """The content of a store.

    `rows` has a digest of the checksums of each key's row, `clips` the keys of each clip's frames and sound.
    """

    fingerprint: str
    streams: dict[str, _Stream]
    clips: dict[str, list[str]]
    expressions: dict[str, int]


class Tag(Contents):
    """The content of a store at a time to which somebody gave a name."""

    name: str
    time_s: float
    message: str


def contents_of(location: str) -> Contents:
    """The content of a store, or of its tag for `STORE@NAME`; reads no features.

    Raises:
        StoreError: there is no such store or tag, or it is damaged.
    """
    place, at, name = location.rpartition("@")
    if at and NAME.fullmatch(name) and (found := read_tag(open_folder(place), name)) is not None:
        return found
    folder = open_folder(location)
    schema = schema_at(folder)
    records = read_records(folder, schema)
    tables = {name: found for name in NEEDED if (found := read_table(folder, name))}
    clips, expressions = (tables[name][0] if name in tables else None for name in ("clips", "expressions"))
    return {
        "fingerprint": store_fingerprint(schema, records, tables),
        "streams": {name: {"fingerprint": short_digest(table.fingerprint), "rows": _rows(schema, records, name)}
                    for name, table in schema.tables.items()},
        "clips": {} if clips is None else {
            row["id"]: [row["frames"], row["sound"]] for row in clips.to_dict("records")},
        "expressions": {} if expressions is None else dict(Counter(
            f"{row['split']} {row['uid']}" for row in expressions.to_dict("records"))),
    }  # fmt: skip


def _rows(schema: StoreSchema, records: list[CommitRecord], table: str) -> dict[str, str]:
    size, found = schema.tables[table].rows_per_shard, {}
    for record in records:
        if record.table == table:
            for key, row in record.rows.items():
                place = row - record.index * size
                crcs = {name: facts.rows[place] for name, facts in record.arrays.items()}
                found[key] = digest(crcs)[:16]
    return found


def read_tag(folder: Folder, name: str) -> Tag | None:
    """A tag of a store; None if it has none of that name.

    Raises:
        StoreError: the tag is damaged.
    """
    file = f"{TAGS}/{name}.json"
    if not folder.exists(file):
        return None
    try:
        return shaped(read_json(folder.read(file)), Tag, "the tag")
    except (OddRecord, OSError) as error:
        raise StoreError(f"{folder.where(file)} cannot be used ({error}); remove it and tag the store again") from error


def tags_of(folder: Folder) -> list[Tag]:
    """All tags, oldest first.

    Raises:
        StoreError: a tag is damaged.
    """
    files = [name for name in folder.names(TAGS) if name.endswith(".json")]
    found = [read_tag(folder, file.rpartition("/")[2].removesuffix(".json")) for file in files]
    return sorted((tag for tag in found if tag is not None), key=lambda tag: (tag["time_s"], tag["name"]))


def new_tag(location: str, name: str, message: str = "", write: bool = True) -> Tag:
    """Tags the present content of a finished store.

    Args:
        write: False only checks, and returns what would be written.

    Raises:
        ConfigError: the name cannot be used, or is taken.
        StoreError: the store is not finished.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"a tag cannot be called {name!r}; accepted: letters, digits, '.', '_' and '-', at most 100")
    folder = open_folder(location)
    if (known := read_tag(folder, name)) is not None:
        raise ConfigError(f"{location} has the tag {name!r} already, of {known['fingerprint']}; take another name, or "
                          f"remove {folder.where(f'{TAGS}/{name}.json')}")  # fmt: skip
    found = contents_of(location)
    if root_attributes(folder).get("fingerprint") != found["fingerprint"]:
        raise StoreError(f"the extraction into {location} is not finished; run the same refavs-extract command again")
    tag: Tag = {**found, "name": name, "time_s": round(time.time(), 3), "message": message}
    if write:
        folder.write(f"{TAGS}/{name}.json", json.dumps(tag, sort_keys=True).encode())
    return tag


@dataclass(frozen=True)
class Difference:
    """Names on the first side only, on the second side only, and on both with different content."""

    what: str
    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.first or self.second or self.changed)

    def lines(self, first: str, second: str) -> list[str]:
        """The difference, a line for each kind with the first names."""
        kinds = ((f"only in {first}", self.first), (f"only in {second}", self.second),
                 ("with other content", self.changed))  # fmt: skip
        return [
            f"{self.what}: {len(names):,} {kind} ({', '.join(names[:MOST_NAMED])}{', ...' * (len(names) > MOST_NAMED)})"
            for kind, names in kinds if names
        ]  # fmt: skip


def differences(first: Contents, second: Contents) -> list[Difference]:
    """Streams, rows, clips and expressions in which two stores differ; empty if they have the same content."""
    one, other = first["streams"], second["streams"]
    shared = [name for name in one if name in other]
    prints = {name: (one[name]["fingerprint"], other[name]["fingerprint"]) for name in shared}
    found = [_between("streams", {name: table["fingerprint"] for name, table in one.items()},
                      {name: table["fingerprint"] for name, table in other.items()})]  # fmt: skip
    for name in shared:
        if prints[name][0] == prints[name][1]:  # rows of other encoders are all different
            told = _clip_names(first, second, name)
            rows = _between(f"rows of {name}", one[name]["rows"], other[name]["rows"])
            sides = ([told.get(key, key) for key in side] for side in (rows.first, rows.second, rows.changed))
            found.append(Difference(rows.what, *sides))
    found.append(_between("clips", first["clips"], second["clips"]))
    found.append(_between("expressions", first["expressions"], second["expressions"]))
    return [difference for difference in found if difference]


def _between(what: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> Difference:
    return Difference(
        what=what, first=sorted(one.keys() - other.keys()), second=sorted(other.keys() - one.keys()),
        changed=sorted(name for name in one.keys() & other.keys() if one[name] != other[name]),
    )


def _clip_names(first: Contents, second: Contents, stream: str) -> dict[str, str]:
    """The clip of each key of a visual or audio stream."""
    place = {"visual": 0, "audio": 1}.get(stream.split("/")[0])
    if place is None:
        return {}
    return {keys[place]: clip for side in (second, first) for clip, keys in side["clips"].items()}
