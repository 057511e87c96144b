"""Writes the plain tables of a store (clips, texts and expressions) from a source and the committed rows."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from extract.pipeline.content import Content
from refavs.data.layouts import Source
from refavs.errors import StoreError
from refavs.store.format.schema import OBJECTS, object_key, text_key
from refavs.store.writer import StoreWriter

MOST_NAMED = 5


def refuse_replaced(writer: StoreWriter, contents: Mapping[str, Content]) -> None:
    """Checks that the store's clips were made from the same files as the source's clips with the same ids.

    Raises:
        StoreError: files differ; the message names the first clips.
    """
    known = writer.table("clips")
    if known is None:
        return
    there = {modality: committed_in(writer, modality) for modality in ("visual", "audio")}
    replaced = [
        row["id"] for row in known.to_dict("records") if row["id"] in contents and any(
            row[column] in there[modality] and row[column] != contents[row["id"]].key(modality)
            for modality, column in (("visual", "frames"), ("audio", "sound"))
        )
    ]  # fmt: skip
    if replaced:
        more = f" and {len(replaced) - MOST_NAMED} more" if len(replaced) > MOST_NAMED else ""
        raise StoreError(f"store {writer.location} holds features of other files under the same id for "
                         f"{', '.join(map(repr, replaced[:MOST_NAMED]))}{more}; name another STORE, or rename those "
                         "clips")


def committed_in(writer: StoreWriter, modality: str) -> set[str]:
    """Keys that have a row in some stream of a modality."""
    return {key for id in writer.schema.streams if id.startswith(f"{modality}/") for key in writer.committed(id)}


def write_tables(
    writer: StoreWriter, source: Source, contents: Mapping[str, Content], with_expressions: bool = True
) -> None:
    """Writes the clips, the texts and the expressions of a source; clips and texts of earlier sources stay."""
    clips = writer.write_clips(_clips(writer, source, contents))
    texts = {text_key(text): text for text in source.expressions["text"]}
    places = writer.write_texts(pd.DataFrame({"key": list(texts), "text": list(texts.values())}, dtype="str"))
    if with_expressions:
        frames, sounds = (committed_in(writer, modality) for modality in ("visual", "audio"))
        whole = {id: clips[id] for id, content in contents.items()
                 if _has(writer, "visual", frames, content.frames)
                 and _has(writer, "audio", sounds, content.sound)}  # fmt: skip
        encoded = committed_in(writer, "text")
        texts_there = {key: place for key, place in places.items() if _has(writer, "text", encoded, key)}
        writer.write_expressions(_expressions(source, whole, writer.committed(OBJECTS), texts_there))


def _has(writer: StoreWriter, modality: str, keys: Collection[str], key: str) -> bool:
    """Whether a key has a row in some stream of a modality, or the store has no such stream."""
    return key in keys or not any(id.startswith(f"{modality}/") for id in writer.schema.streams)


def _clips(writer: StoreWriter, source: Source, contents: Mapping[str, Content]) -> pd.DataFrame:
    """The readable clips, with the facts noted for them in any stream."""
    noted = {modality: [writer.noted(id) for id in writer.schema.streams if id.startswith(f"{modality}/")]
             for modality in ("visual", "audio")}  # fmt: skip
    steps, rows = writer.schema.steps, []
    for clip in source.clips:
        if clip.id not in contents:
            continue
        content = contents[clip.id]
        facts = [of_stream[key] for modality, of_streams in noted.items() for of_stream in of_streams
                 if (key := content.key(modality)) in of_stream]  # fmt: skip
        told: dict[str, Any] = {name: value for each in facts for name, value in each.items()}
        ended = told.get("repeated_from_s")
        length = steps.seconds if ended is None else ended
        notes = dict.fromkeys(note for each in facts for note in str(each.get("notes") or "").split(",") if note)
        rows.append({
            "id": clip.id, "frames": content.frames, "sound": content.sound,
            "seconds": int(length) if steps.rate == 1 else float(length),
            "source": clip.video.name if clip.video else clip.id, "silent": bool(told.get("silent")),
            "repeated_from_s": float("nan") if ended is None else float(ended), "notes": ",".join(notes),
        })  # fmt: skip
    columns = ("id", "frames", "sound", "seconds", "source", "silent", "repeated_from_s", "notes")
    return pd.DataFrame(rows, columns=list(columns))


def _expressions(
    source: Source, clips: Mapping[str, int], objects: Mapping[str, int], texts: Mapping[str, int]
) -> pd.DataFrame:
    """The source's expressions with the places of their clips, texts and objects; without those that failed."""
    table = source.expressions.copy()
    keys = [object_key(clip, fid) for clip, fid in zip(table["clip_id"], table["fid"], strict=True)]
    table["clip"] = [float(clips.get(clip, np.nan)) for clip in table["clip_id"]]
    table["object"] = [-1.0 if fid < 0 else float(objects.get(key, np.nan))
                       for key, fid in zip(keys, table["fid"], strict=True)]  # fmt: skip
    table["text"] = [float(texts.get(text_key(text), np.nan)) for text in table["text"]]
    whole = table.dropna(subset=["clip", "object", "text"]).drop(columns="clip_id")
    return whole.astype({"clip": "int64", "object": "int64", "text": "int64"}).reset_index(drop=True)
