"""Upgrades a store from schema version 2 to 3: moves files and rewrites records without computing any feature.

The new commit records are written first, next to the old ones, which stay valid. Then a journal (`upgrade.json`) lists
the remaining work, the description marks the store as half upgraded, and the shards move. After an interruption at any
point, the next call completes the upgrade.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pandas as pd

from refavs.errors import StoreError
from refavs.files.typed_json import Count, shaped
from refavs.store.backends.base import Folder
from refavs.store.columns import read_table, write_table
from refavs.store.folders import open_folder
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.commits import (
    CommitRecord,
    ShardJson,
    SumsJson,
    read_records,
    seal,
    short_digest,
    unseal,
    write_record,
)
from refavs.store.format.mask_rows import LABELLED, object_arrays
from refavs.store.format.schema import HALF_UPGRADED, OBJECTS, StoreSchema, root_attributes
from refavs.store.format.shard import ShardFacts, ShardFile, shard_name
from refavs.store.format.zarr_metadata import group_metadata
from refavs.store.lease import Lease
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter

JOURNAL = "upgrade.json"
PROGRAM = "refavs-store"
SILENCE = "silence"  # the extraction's key for missing audio
Progress = Callable[[int, int, str], None]
_RECORD = re.compile(r"commits/(clips|objects|text)-(\d{5,9})\.json")
_VISUAL = {
    "swin_base_patch4_window12_384, mask2former pixel decoder": "mask2former-swin-base-ade",
    "swin_base_patch4_window12_384 of timm, ImageNet": "swin-base-imagenet",
    "tiny swin, mask2former pixel decoder": "tiny-swin",
}
_REPAIR = "repair the store with the refavs that wrote it, then upgrade it"
_NOTED = ("source", "silent", "repeated_from_s", "notes")
_COLUMNS = ("clips/visual_row", "clips/audio_row", "text/string")  # columns that version 3 does not have


class _Tables(TypedDict):
    tables: dict[str, dict[str, Any]]


class _Attributes(TypedDict):
    refavs_schema: _Tables
    encoders: dict[str, dict[str, Any]]
    source: str
    T: Count
    input_size: Count
    mask_rule: NotRequired[str | None]
    extraction: NotRequired[dict[str, Any]]
    fingerprint: NotRequired[str]


class _Record(TypedDict):
    table: str
    index: Count
    rows: dict[str, Count]
    meta: dict[str, dict[str, Any]]
    arrays: dict[str, ShardJson]
    statistics: dict[str, SumsJson]
    failures: dict[str, str]
    shares: dict[str, dict[str, str]]
    seconds: float


class _Journal(TypedDict):
    """The remaining work of an upgrade.

    `moves` has the new path of each old array, and `expressions` the record of the old table, if any. `finished` says
    whether the extraction was finished, `tables_done` whether the plain tables have been upgraded.
    """

    attributes: dict[str, Any]
    moves: dict[str, str]
    expressions: dict[str, Any]
    finished: bool
    tables_done: bool


def upgrade(location: str | Path, progress: Progress = lambda done, total, note: None) -> str:
    """Upgrades a store from version 2 to 3; call it again after an interruption.

    Args:
        progress: called with the number of shard files moved, their total, and the last one moved.

    Returns:
        The store's fingerprint.

    Raises:
        StoreError: there is no store, or it has another version, is damaged, or is held by another process.
    """
    folder = open_folder(location)
    found = root_attributes(folder)["refavs_schema"]
    version = found.get("version") if isinstance(found, dict) else None
    if version not in (2, 3, HALF_UPGRADED):
        raise StoreError(f"{folder.location} has schema version {version!r}, refavs-store upgrade accepts version 2; "
                         "extract into a new store, or use the refavs that wrote it")
    with Lease(folder, PROGRAM) as lease:
        if version == 2:
            folder.sweep()
            _prepare(folder)
        lease.check()
        if version != 3:
            _complete(folder, progress)
        if folder.exists(JOURNAL):
            if not unseal(folder, JOURNAL)["finished"]:
                StoreWriter.attach(location).unfinish()
            folder.remove(JOURNAL)
    return FeatureStore(location).fingerprint


def _prepare(folder: Folder) -> None:
    """Writes the new records, which do not affect the old store, then the journal, which starts the upgrade."""
    try:
        told: _Attributes = shaped(root_attributes(folder), _Attributes, "attributes")
        schema, moves = _schema(told, f"store {folder.location}")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"store {folder.location} has a damaged zarr.json ({error}); restore that file") from error
    old = _old_records(folder)
    expressions = read_table(folder, "expressions")
    for table in schema.tables:
        folder.remove_all(f"commits/{table}")  # left by an upgrade that was interrupted before the journal
    for record in _records(folder, schema, moves, old):
        write_record(folder, record)
    journal = _Journal(
        attributes=schema.to_attributes(), moves=moves, expressions=expressions[1] if expressions else {},
        finished="fingerprint" in told, tables_done=False,
    )
    folder.write(JOURNAL, seal(dict(journal)))
    folder.write("zarr.json", group_metadata({"refavs_schema": {"version": HALF_UPGRADED}}))


def _complete(folder: Folder, progress: Progress) -> None:
    """Does the work left in the journal."""
    journal: _Journal = shaped(unseal(folder, JOURNAL), _Journal, "the journal")
    schema = StoreSchema.from_attributes(journal["attributes"], f"the store in {folder.where(JOURNAL)}")
    if not journal["tables_done"]:
        _write_tables(folder, schema, journal["expressions"])
        folder.write(JOURNAL, seal({**journal, "tables_done": True}))
    old_paths = {new: old for old, new in journal["moves"].items() if new != old}
    moves = [
        (name.replace(spec.path, old_paths[spec.path], 1), name)
        for record in read_records(folder, schema) for spec in schema.tables[record.table].arrays
        if spec.path in old_paths and (name := shard_name(spec, record.index))
    ]  # fmt: skip
    for done, (old, new) in enumerate(moves, 1):
        if folder.exists(old):
            folder.move(old, new)
        progress(done, len(moves), new)
    for name in folder.names("commits"):
        if _RECORD.fullmatch(name):
            folder.remove(name)
    for column in _COLUMNS:
        folder.remove_all(column)
    for old in old_paths.values():
        for name in folder.names(old):
            if name.rpartition("/")[0] == old:  # its description, and shards whose rows are all in other shards
                folder.remove(name)
        group = old.rpartition("/")[0]
        if not any(f"{path}/".startswith(f"{group}/") for path in schema.specs):
            folder.remove_all(group)
    StoreWriter(folder, schema).finalise()


def _schema(told: _Attributes, where: str) -> tuple[StoreSchema, dict[str, str]]:
    """The schema for version 3, and the new path of each old array."""
    tables = told["refavs_schema"]["tables"]
    streams: dict[str, dict[str, Any]] = {}
    moves: dict[str, str] = {}
    for name, table in tables.items():
        if name == OBJECTS:
            continue
        for array in table["arrays"]:
            stream, facts, last = _new_place(array["path"], told["encoders"])
            moves[array["path"]] = f"{'' if name == 'text' else 'clips/'}{stream}/{last}"
            one = streams.setdefault(stream, {"fingerprint": facts, "rows_per_shard": table["rows_per_shard"],
                                              "arrays": []})  # fmt: skip
            valid = array.get("valid")
            one["arrays"].append({**{key: value for key, value in array.items() if key != "path"}, "name": last,
                                  "valid": valid and valid.rpartition("/")[2]})  # fmt: skip
    masks = [spec.told() for spec in object_arrays(told["T"], told["input_size"])]
    schema = StoreSchema.from_attributes({
        "refavs_schema": {"version": 3, "streams": streams, OBJECTS: {
            "rows_per_shard": tables[OBJECTS]["rows_per_shard"] if OBJECTS in tables else 64,
            "arrays": [{**spec, "shape": list(spec["shape"]), "axes": list(spec["axes"])} for spec in masks],
        }},
        "source": told["source"], "seconds": told["T"], "fps": 1.0, "mask_size": told["input_size"],
        "mask_rule": told.get("mask_rule"), "extraction": told.get("extraction", {}),
    }, where)  # fmt: skip
    return schema, moves


def _new_place(path: str, encoders: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, Any], str]:
    """Stream, fingerprint and name of an old array: `clips/visual/LEVEL/MAP`, `clips/audio/NAME`, `text/NAME/ARRAY`."""
    facts = next((facts for stream, facts in sorted(encoders.items(), reverse=True)
                  if path.startswith((f"{stream}/", f"clips/{stream}/"))), {})  # fmt: skip
    parts = path.removeprefix("clips/").split("/")
    tiny = any(_VISUAL.get(one.get("name", "")) == "tiny-swin" for one in encoders.values())
    name = str(facts.get("name", parts[1]))
    if name == "vggish":
        back_to_back = ".96t" in str(facts.get("preprocessing"))
        encoder = "tiny-vggish" if tiny else "vggish-back-to-back" if back_to_back else name
    elif name == "roberta":
        layers = (facts.get("sizes") or {}).get("num_layers")
        encoder = "tiny-roberta" if tiny else "distilroberta-base" if layers == 6 else "roberta-base"
    else:
        encoder = _VISUAL.get(name) or re.sub(r"\W+", "-", name, flags=re.ASCII).strip("-") or "encoder"
    facts = {**facts, "name": encoder}
    if parts[0] == "visual":
        return f"visual/{encoder}/{parts[1]}", facts, parts[-1]
    return f"{parts[0]}/{encoder}", facts, parts[-1] if len(parts) > 2 else "features"


def _old_records(folder: Folder) -> list[_Record]:
    """The old commit records, by table and index."""
    found: list[_Record] = []
    for name in filter(_RECORD.fullmatch, folder.names("commits")):
        try:
            found.append(shaped(unseal(folder, name), _Record, "the record"))
        except ValueError as error:
            raise StoreError(f"commit record {folder.where(name)} cannot be used ({error}); {_REPAIR}") from error
    return sorted(found, key=lambda record: (record["table"], record["index"]))


def _records(
    folder: Folder, schema: StoreSchema, moves: Mapping[str, str], old: Sequence[_Record]
) -> Iterator[CommitRecord]:
    """The version 3 records; keeps the first of several rows with the same content."""
    seen: dict[str, set[str]] = {table: set() for table in schema.tables}
    for record in old:
        of_stream: dict[str, list[str]] = {}
        for path in record["arrays"]:
            of_stream.setdefault(schema.specs[moves.get(path, path)].table, []).append(path)
        for table, paths in of_stream.items():
            spec, own = schema.tables[table], _own_rows(table, record)
            rows = {key: row for key, (row, _) in own.items() if key not in seen[table]}
            seen[table].update(rows)
            if not rows:
                continue
            places = {row - record["index"] * spec.rows_per_shard for row in rows.values()}
            arrays = {moves.get(path, path).rpartition("/")[2]: _shard(folder, schema, path, moves, record, places)
                      for path in paths}  # fmt: skip
            if table == OBJECTS:
                arrays["labelled"] = _all_labelled(folder, schema, record["index"], sorted(places))
            yield CommitRecord(
                table=table, index=record["index"], rows=rows, meta={key: own[key][1] for key in rows}, arrays=arrays,
                fingerprint=short_digest(spec.fingerprint), seconds=record["seconds"],
                statistics={moves[path].rpartition("/")[2]: ChannelSums.from_json(sums)
                            for path, sums in record["statistics"].items() if path in paths},
                failures={} if table.startswith(("visual/", "audio/")) else record["failures"],
            )  # fmt: skip


def _own_rows(table: str, record: _Record) -> dict[str, tuple[int, dict[str, Any]]]:
    """The first row and the facts for each content key in the record of a table."""
    modality = table.split("/")[0]
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for key, row in sorted(record["rows"].items(), key=lambda item: item[1]):
        facts = record["meta"].get(key, {})
        if modality in ("visual", "audio"):
            if f"clips/{modality}" in record["shares"].get(key, {}):
                continue
            key, facts = _content(key, facts)[modality], _noted(facts)
        found.setdefault(key, (row, {} if modality == "text" else facts))
    return found


def _content(clip_id: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """The content keys of a clip, as an extraction computes them."""
    frames = facts.get("visual_input") or f"clip {clip_id}"
    return {"visual": frames, "audio": (facts.get("audio_input") or SILENCE) if "visual_input" in facts else frames}


def _noted(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in ("visual_input", "audio_input", "num_frames")}


def _shard(
    folder: Folder, schema: StoreSchema, path: str, moves: Mapping[str, str], record: _Record, places: set[int]
) -> ShardFacts:
    """The old record's facts about a shard file, for the rows that are kept."""
    spec, told = schema.specs[moves.get(path, path)], record["arrays"][path]
    name = shard_name(spec, record["index"]).replace(spec.path, path, 1)
    if not folder.exists(name) or folder.open(name).num_bytes != told["bytes"]:
        raise StoreError(f"shard {folder.where(name)} is missing or its length differs from its record; {_REPAIR}")
    rows = {int(place): crc for place, crc in told["rows"].items() if int(place) in places}
    return ShardFacts(num_bytes=told["bytes"], crc32c=told["crc32c"], rows=rows)


def _all_labelled(folder: Folder, schema: StoreSchema, index: int, places: Sequence[int]) -> ShardFacts:
    """Marks every step of these objects as labelled, as version 2 implied."""
    spec = schema.specs[LABELLED]
    file = ShardFile(folder, shard_name(spec, index), schema.objects_per_shard)
    try:
        for place in places:
            file.append(place, np.ones(spec.shape, bool))
        facts = file.finish()
        file.publish()
    finally:
        file.discard()
    return facts


def _write_tables(folder: Folder, schema: StoreSchema, old_expressions: Mapping[str, Any]) -> None:
    """Writes the clips, the texts and the expressions, which now refer to places in the other two tables."""
    old = _old_records(folder)
    rows = {row: (key, record) for record in old if record["table"] == "clips" for key, row in record["rows"].items()}
    here = {key for key, _ in rows.values()}
    clips = [(row, key, record) for row, (key, record) in sorted(rows.items())
             if here.issuperset(record["shares"].get(key, {}).values())]  # fmt: skip
    frame = pd.DataFrame([_clip(schema, key, record["meta"].get(key, {})) for _, key, record in clips],
                         columns=["id", "frames", "sound", "seconds", *_NOTED])  # fmt: skip
    texts = sorted((row, key, str(record["meta"][key]["text"])) for record in old if record["table"] == "text"
                   for key, row in record["rows"].items())  # fmt: skip
    write_table(folder, "clips", frame)
    write_table(folder, "text", pd.DataFrame({"key": [key for _, key, _ in texts], "text": [t for *_, t in texts]}))
    found = read_table(folder, "expressions")
    if found is None:
        return
    expressions, facts = found
    if facts == old_expressions:
        for column, order in (("clip", clips), ("text", texts)):
            place = {row: place for place, (row, *_) in enumerate(order)}
            expressions[column] = [place[row] for row in expressions[column]]
    write_table(folder, "expressions", expressions)


def _clip(schema: StoreSchema, clip_id: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a clip in the table, as an extraction writes it."""
    keys, ended = _content(clip_id, facts), facts.get("repeated_from_s")
    return {
        "id": clip_id, "frames": keys["visual"], "sound": keys["audio"],
        "seconds": schema.seconds if ended is None else min(int(ended), schema.seconds), "source": clip_id,
        "silent": bool(facts.get("silent")), "repeated_from_s": float("nan") if ended is None else float(ended),
        "notes": str(facts.get("notes") or ""),
    }  # fmt: skip
