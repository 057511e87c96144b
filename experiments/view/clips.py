"""The clips of a store: a table with flags, search by text, and everything about one clip."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from experiments.report.clip_steps import HEIGHT, DrawnStep, data_uri, footage_of, steps_with
from experiments.view.shown import ShownStore
from extract.media.clip import read_media
from extract.media.forms import Frames
from extract.media.notes import NOTES, REPEATED, SILENT, oddities
from refavs.data.layouts import find_clip
from refavs.errors import DatasetError, StoreError
from refavs.steps import Steps
from refavs.store import FeatureStore
from refavs.store.derived_files import KEYS
from refavs.store.format.mask_rows import LABELLED

FAILED, MISSING, SHARED = "failed", "missing", "shared"
FLAGS = {
    SILENT: "no sound track", REPEATED: "the picture ends early; its last frame is repeated",
    FAILED: "a stream could not be computed", MISSING: "a stream has no row of it yet",
    SHARED: "another clip has the same frames or the same sound", **NOTES,
}  # fmt: skip
UNNAMED = ("The extraction has not written its table of clips yet, so names, pictures, sound and masks are not known. "
           "The features that are committed can be seen.")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Said:
    """One expression of a clip; `number` is the place of its object among the clip's objects, None for no mask."""

    text: str
    uid: str
    split: str
    grade: str
    dimension: str
    number: int | None


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """Everything about one clip except its features.

    Attributes:
        facts: names and values, such as its seconds and flags.
        objects: the number of each object within the clip (`fid`), in the order of the outlines, with whether it is
            ever visible.
        width: width of its pictures in pixels.
        sound: mono at `WAVE_HZ`; None if there is none to play.
        note: what is missing, and why.
    """

    id: str
    facts: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[DrawnStep, ...] = ()
    objects: tuple[tuple[int, bool], ...] = ()
    said: tuple[Said, ...] = ()
    width: int = 160
    sound: Float[np.ndarray, " s"] | None = None
    note: str = ""


def has_clips(store: FeatureStore) -> bool:
    """Whether the table of clips is written; the first extraction into a store writes it at its end."""
    return "clips" in store.tables


def clip_table(shown: ShownStore) -> pd.DataFrame:
    """One line per clip: `id`, `seconds`, `expressions`, `splits`, `flags`, and `text`, what a search looks through.

    Before the table of clips is written, each line is a committed row of frames or of sound, named by its key.
    """
    return shown.once("clips", lambda store: (_clip_table if has_clips(store) else _committed)(store))


def search(table: pd.DataFrame, text: str = "", flag: str = "", split: str = "") -> pd.DataFrame:
    """The clips whose id or expressions contain `text`, in any case, with a flag and a split; empty means any."""
    chosen = np.ones(len(table), bool)
    if wanted := text.strip().casefold():
        chosen &= table["text"].str.contains(wanted, regex=False).to_numpy(bool)
    for column, value in (("flags", flag), ("splits", split)):
        if value:
            chosen &= np.array([value in cell.split(", ") for cell in table[column]], bool)
    return table.loc[chosen]


def values_in(table: pd.DataFrame, column: str) -> list[str]:
    """The flags or splits that occur, sorted."""
    return sorted({value for cell in set(table[column]) for value in cell.split(", ")} - {""})


def clip_view(shown: ShownStore, clip_id: str) -> ClipView:
    """Reads one clip: its frames and sound from the source, its masks and expressions from the store.

    Raises:
        StoreError: the store has no such clip, or a mask is damaged.
    """
    store, table = shown.store, clip_table(shown)
    line = table[table["id"] == clip_id]
    if not len(line):
        raise StoreError(f"store {store.location} has no clip {clip_id!r}; choose one of its table")
    if not has_clips(store):
        return ClipView(id=clip_id, note=UNNAMED)
    objects = store.objects.loc[store.objects["clip_id"] == clip_id].sort_values(by="fid")
    masks = [mask.numpy() for row in objects.index if (mask := store.mask(row)) is not None]
    labelled = [store.read(LABELLED, row).numpy() for row in objects.index]
    footage = footage_of(store, clip_id)
    row = line.iloc[0]
    places = {int(index): place for place, index in enumerate(objects.index)}
    return ClipView(
        id=clip_id, steps=steps_with(footage, masks, labelled),
        objects=tuple((int(fid), bool(mask.any())) for fid, mask in zip(objects["fid"], masks, strict=True)),
        width=footage.width, sound=footage.sound, note=footage.note,
        facts={"seconds": str(row["seconds"]), "splits": row["splits"],
               "flags": "; ".join(f"{flag}: {FLAGS.get(flag, flag)}" for flag in row["flags"].split(", ") if flag)},
        said=tuple(_said(facts, places) for facts in _expressions(store, clip_id)),
    )  # fmt: skip


def _said(facts: Mapping[Any, Any], places: Mapping[int, int]) -> Said:
    names = ("text", "uid", "split", "grade", "dimension")
    return Said(**{name: str(facts.get(name, "")) for name in names}, number=places.get(int(facts["object"])))


def _expressions(store: FeatureStore, clip_id: str) -> list[dict[Any, Any]]:
    if "expressions" not in store.tables:
        return []
    table = store.expressions
    return table.loc[table["clip_id"] == clip_id].to_dict("records")


def _clip_table(store: FeatureStore) -> pd.DataFrame:
    clips = store.clips
    texts: dict[str, list[str]] = {}
    splits: dict[str, dict[str, None]] = {}
    if "expressions" in store.tables:
        columns = (store.expressions[name] for name in ("clip_id", "text", "split"))
        for clip_id, text, split in zip(*columns, strict=True):
            texts.setdefault(clip_id, []).append(text)
            splits.setdefault(clip_id, {})[split] = None
    return pd.DataFrame({
        "id": clips["id"], "seconds": clips["seconds"],
        "expressions": [len(texts.get(clip_id, ())) for clip_id in clips["id"]],
        "splits": [", ".join(splits.get(clip_id, ())) for clip_id in clips["id"]],
        "flags": [", ".join(flags) for flags in _flags(store)],
        "text": ["\n".join([clip_id, *texts.get(clip_id, ())]).casefold() for clip_id in clips["id"]],
    })  # fmt: skip


def _committed(store: FeatureStore) -> pd.DataFrame:
    """The committed rows of the visual stream with the most of them, or else of an audio stream."""
    keys: dict[str, list[str]] = {}
    for record in store.records:
        if record.table.startswith(("visual/", "audio/")):
            keys.setdefault(record.table, []).extend(record.rows)
    stream = max(keys, key=lambda name: (name.startswith("visual/"), len(keys[name])), default=None)
    ids = keys.get(stream or "", [])
    empty = [""] * len(ids)
    return pd.DataFrame({"id": ids, "seconds": store.seconds, "expressions": 0, "splits": empty, "flags": empty,
                         "text": ids}, columns=["id", "seconds", "expressions", "splits", "flags", "text"])  # fmt: skip


def _flags(store: FeatureStore) -> list[list[str]]:
    """The flags of each clip."""
    found = [oddities(facts) for facts in store.clips.to_dict("records")]
    rows: dict[str, set[str]] = {}
    failures: dict[str, set[str]] = {}
    for record in store.records:
        rows.setdefault(record.table, set()).update(record.rows)
        failures.setdefault(record.table, set()).update(record.failures)
    for modality in ("visual", "audio"):
        keys = store.clips[KEYS[modality][1]].tolist()
        shared = Counter(keys)
        streams = [stream for stream in store.streams if stream.startswith(f"{modality}/")]
        for place, key in enumerate(keys):
            lacking = [stream for stream in streams if key not in rows.get(stream, ())]
            failed = any(key in failures.get(stream, ()) for stream in lacking)
            flags = [SHARED] * (shared[key] > 1) + [FAILED if failed else MISSING] * bool(lacking)
            found[place] += [flag for flag in flags if flag not in found[place]]
    return found


def thumbnail(store: FeatureStore, clip_id: str) -> str:
    """The first frame of a clip as a data URI; empty if its source is gone."""
    clip = find_clip(store.attributes, clip_id)
    form = Frames(size=HEIGHT)
    try:
        return "" if clip is None else data_uri(read_media(clip, Steps(1), [form], []).frames[form][0], HEIGHT)
    except DatasetError:
        return ""
