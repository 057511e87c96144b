"""Reading a store: committed rows only, as views of mapped shards whose checksums are checked on first read."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from refavs.config import nearest
from refavs.errors import StoreError
from refavs.steps import Steps
from refavs.store.backends.base import TRY_AGAIN, out_of_reach
from refavs.store.derived_files import KEYS, merged_statistics, rows_of_table, store_fingerprint
from refavs.store.fill import fill, targets_of
from refavs.store.folders import open_folder
from refavs.store.format.array_spec import ArraySpec, table_path
from refavs.store.format.commits import CommitRecord
from refavs.store.format.mask_rows import LABELLED, MASK, SIZE, MaskSize, mask_of_row, mask_shape, scaled
from refavs.store.format.quantised import values_of
from refavs.store.format.schema import MODALITIES, OBJECTS, says_random
from refavs.store.format.shard import ShardReader, shard_name
from refavs.store.snapshot import read_snapshot

POLICIES = ("first", "always", "never")
PAPERS = {"visual": "mask2former-swin-base-ade", "audio": "vggish", "text": "roberta-base"}
MOST_OPEN = 2**14  # shards; Linux allows a process 65,530 mappings
Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
Rows = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One expression with the features of its clip; maps that are not quantised are views of the store.

    Attributes:
        visual: maps of each step by name, e.g. `mask_features`.
        valid: True for the real tokens of the text.
        mask: the referred object in each step, all False if there is none; None if the store has no masks for it.
        labelled: the steps with a known mask; None if there is no mask.
    """

    visual: dict[str, Float[Tensor, "t _ _ _"]]
    audio: Float[Tensor, "tokens _"]
    text: Float[Tensor, "l _"]
    valid: Bool[Tensor, "l"]
    mask: Bool[Tensor, "t h w"] | None
    labelled: Bool[Tensor, "t"] | None
    uid: str
    clip_id: str
    text_string: str
    split: str
    dimension: str


class FeatureStore:
    """A store opened for reading.

    It does not see rows that are committed later; open it again to see them. Many processes may read a store, and
    unpickling one opens it again. What is read of a remote one is kept on the local disk if REFAVS_STORE_CACHE names a
    folder there (`refavs.store.backends.disk_cache`).

    Args:
        location: the store's folder or URL (`s3://bucket/prefix`).
        use: encoder to read for a modality (`{"audio": "clap"}`). The default is the store's only one, or the paper's
            among several.
        verify: when to compare a row with its checksum: on its `first` read, `always` or `never`.

    Raises:
        StoreError: there is no store, it is damaged, a plain table is incomplete, or it lacks an encoder in `use`.
    """

    def __init__(self, location: str | Path, use: Mapping[str, str] | None = None, verify: str = "first") -> None:
        if verify not in POLICIES:
            raise StoreError(f"verify is {verify!r}; accepted: {', '.join(POLICIES)}")
        self.folder = open_folder(location, cached=True)
        self.use, self.verify = dict(use or {}), verify
        found = read_snapshot(self.folder)
        self.attributes, self.schema = found.attributes, found.schema
        self.records, self.tables = found.records, found.tables
        for modality in self.use:
            self.streams_of(modality)
        self._places = {
            (record.table, row): (record, key) for record in self.records for key, row in record.rows.items()
        }
        self._rows: dict[str, np.ndarray] = {}
        self._shards: dict[tuple[str, int], ShardReader] = {}
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore, (self.location, self.use, self.verify)

    @property
    def location(self) -> str:
        """The store's absolute path or URL."""
        return self.folder.location

    @property
    def streams(self) -> list[str]:
        """Ids of all streams, e.g. `audio/vggish`."""
        return sorted(self.schema.streams)

    @property
    def seconds(self) -> int:
        """Length of a clip."""
        return self.schema.seconds

    @property
    def steps(self) -> Steps:
        """The steps of a clip; their number is T."""
        return self.schema.steps

    @property
    def mask_size(self) -> MaskSize:
        """Side of the masks in pixels; height and width of the largest if they keep their own size."""
        return self.schema.mask_size

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """All arrays by path, e.g. `clips/audio/vggish/features`."""
        return self.schema.specs

    def streams_of(self, modality: str) -> list[str]:
        """The streams in use for a modality: the stream of one encoder, or those of its levels.

        Raises:
            StoreError: the store has none, lacks the encoder in `use`, or has several and none is the paper's.
        """
        known = {name.split("/")[1] for name in self.streams if name.startswith(f"{modality}/")}
        name = self.use.get(modality) or (next(iter(known)) if len(known) == 1 else PAPERS.get(modality, ""))
        found = [stream for stream in self.streams if f"{stream}/".startswith(f"{modality}/{name}/")]
        if not found:
            there = f"has the {modality} encoders {', '.join(sorted(known))}" if known else f"has no {modality} encoder"
            raise StoreError(f"store {self.location} {there}{f', not {name!r}' if modality in self.use else ''}; name "
                             "one that it has, or add another with refavs-extract --streams")
        return found

    @property
    def in_use(self) -> dict[str, list[str]]:
        """The streams in use for each modality with an unambiguous choice."""
        found = {}
        for modality in MODALITIES:
            with contextlib.suppress(StoreError):  # `streams_of` raises the error for readers of that modality
                found[modality] = self.streams_of(modality)
        return found

    @property
    def encoders(self) -> dict[str, dict]:
        """The encoder's fingerprint for each stream in use, by stream id."""
        return {stream: self.schema.streams[stream].fingerprint for stream in itertools.chain(*self.in_use.values())}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content of the whole store; see `fingerprint_of` for the part that a trial reads."""
        return store_fingerprint(self.schema, self.records, self.tables)

    @property
    def finished(self) -> bool:
        """Whether the extraction was finished and nothing has been committed since."""
        return self.attributes.get("fingerprint") == self.fingerprint

    @cached_property
    def statistics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean and standard deviation per channel (float32) of each array that keeps them."""
        return merged_statistics(self.schema, self.records)

    @property
    def random_weights(self) -> bool:
        """Whether an encoder in use had random weights; tables made from its features must say so."""
        return any(says_random(fingerprint) for fingerprint in self.encoders.values())

    @property
    def clips(self) -> pd.DataFrame:
        """The clips: `id`, `frames` and `sound` (keys in the streams), valid `seconds`, and noted facts."""
        return self._table("clips")

    @property
    def texts(self) -> pd.DataFrame:
        """The distinct texts: `key` (its hash) and `text`."""
        return self._table("text")

    @cached_property
    def objects(self) -> pd.DataFrame:
        """Committed objects: columns `clip_id`, `fid`; the index is the row."""
        rows = {row: key.rpartition("/") for (table, row), (_, key) in self._places.items() if table == OBJECTS}
        order = sorted(rows)
        pairs = [(rows[row][0], int(rows[row][2])) for row in order]
        return pd.DataFrame(pairs, columns=["clip_id", "fid"], index=pd.Index(order, dtype="int64"))

    @cached_property
    def expressions(self) -> pd.DataFrame:
        """One row per expression: uid, vid, clip_id, clip, object (-1 = none), text, text_row, split, fid, grade, ...

        Raises:
            StoreError: the extraction has not written them yet.
        """
        frame = self._table("expressions").rename(columns={"text": "text_row"})
        ids, strings = self.clips["id"].tolist(), self.texts["text"].tolist()
        frame.insert(2, "clip_id", [ids[row] for row in frame["clip"]])
        frame.insert(5, "text", [strings[row] for row in frame["text_row"]])
        return frame

    def _table(self, name: str) -> pd.DataFrame:
        if name not in self.tables:
            raise StoreError(f"store {self.location} has no table of {name} yet: its extraction did not finish; run "
                             "the same refavs-extract command again")
        return self.tables[name][0]

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def sample(self, index: int, levels: Sequence[str] | None = None) -> Sample:
        """Expression `index` with the given visual `levels`, as accepted by `visual_paths`; None reads all."""
        if not 0 <= index < len(self):
            raise IndexError(f"expression {index} of a store of {len(self)}")
        facts = self.facts[index]
        visual, text, valid = self.visual_paths(levels), self.text_path, self.valid_path
        places = {path: int(facts["clip"]) for path in self.schema.with_scales(*visual.values(), self.audio_path)}
        places |= {path: int(facts["text_row"]) for path in self.schema.with_scales(text, valid)}
        if facts["object"] >= 0:
            places |= {path: int(facts["object"]) for path in self.schema.object_paths}
        calls = [partial(self.read, path, self.rows(path, [place])[0]) for path, place in places.items()]
        found = dict(zip(places, self.folder.together(calls), strict=True))
        found |= {path: values_of(self.specs[path], found) for path in (*visual.values(), self.audio_path, text)}
        return Sample(
            visual={name: found[path] for name, path in visual.items()}, audio=found[self.audio_path],
            mask=self.unpacked(found[MASK], found.get(SIZE)) if MASK in found else None,
            labelled=found[LABELLED] & self.within([facts["clip"]])[0] if LABELLED in found else None,
            uid=facts["uid"], clip_id=facts["clip_id"], text_string=facts["text"], split=facts["split"],
            dimension=facts["dimension"], text=found[text], valid=found[valid],
        )  # fmt: skip

    def rows_of(self, stream: str) -> Int[np.ndarray, "n"]:
        """The stream's row for each clip or text; -1 if it has none."""
        if stream not in self._rows:
            self._table(KEYS[stream.split("/")[0]][0])
            own = [record for record in self.records if record.table == stream]
            self._rows[stream] = rows_of_table(stream, own, self.tables)
        return self._rows[stream]

    def rows(self, path: str, places: Sequence[int]) -> list[int]:
        """Rows of an array for the clips, texts or objects at `places`.

        Raises:
            StoreError: there is no such array, or it lacks a row.
        """
        table = self._spec(path).table
        if table == OBJECTS:
            return list(places)
        rows = self.rows_of(table)[np.array(places, int)].tolist()
        if -1 in rows:
            place = places[rows.index(-1)]
            key = repr((self.texts["text"] if table.startswith("text/") else self.clips["id"]).iloc[place])
            raise StoreError(f"store {self.location} has no {path} of {key}; run refavs-extract with the stream "
                             f"{table} again, from a source that has it")
        return rows

    def read(self, path: str, row: int, part: range | None = None) -> Tensor:
        """One row of an array, or a part of it (consecutive steps), as a view of its mapped shard.

        Raises:
            StoreError: there is no such array or committed row, or the row is damaged; the message names its key.
        """
        with self.shard_of(path, row) as (shard, place):
            return shard.read(place, self.verify, part)

    @contextlib.contextmanager
    def shard_of(self, path: str, row: int) -> Iterator[tuple[ShardReader, int]]:
        """Yields the shard that contains a row, and the row's place in it.

        Raises:
            StoreError: as for `read`, also for errors while the shard is in use.
        """
        spec, row = self._spec(path), int(row)
        if (spec.table, row) not in self._places:
            raise StoreError(f"row {row} of {spec.table} is not committed in {self.location}; run the same "
                             "refavs-extract command again")
        record, key = self._places[spec.table, row]
        size = self.schema.tables[spec.table].rows_per_shard
        try:
            yield self._shard(spec, record), row - record.index * size
        except StoreError as error:
            where = self.folder.where(record.file)
            remedy = f"remove {where} and run the same refavs-extract command again"
            raise StoreError(f"{path} of {key!r} (row {row} of {spec.table}) in {self.location} cannot be used: "
                             f"{error}; {TRY_AGAIN if out_of_reach(error.__cause__) else remedy}") from error

    def read_rows(self, wanted: Rows, empty: Empty, steps: Rows | None = None) -> dict[str, Shaped[Tensor, "_ ..."]]:
        """Reads rows of several arrays, by path, together; do not repeat rows, since each is a request to a server.

        Args:
            empty: allocates a tensor of a shape and type.
            steps: those to read of a row, ascending, by path; other rows are read whole.

        Raises:
            StoreError: as for `read`.
        """
        found, targets = {}, []
        for path, rows in wanted.items():
            spec = self._spec(path)
            chosen = range(spec.shape[0]) if steps is None else steps.get(path, range(spec.shape[0]))
            found[path] = empty((len(rows), len(chosen), *spec.shape[1:]), getattr(torch, spec.dtype))
            for row, place in zip(rows, found[path].numpy(), strict=True):
                targets += targets_of(path, row, place, chosen, spec.shape[0])
        fill(self, targets)
        return found

    def _spec(self, path: str) -> ArraySpec:
        spec = self.specs.get(path)
        if spec is None:
            raise StoreError(f"store {self.location} has no array {path!r}; {nearest(path, self.specs)}")
        return spec

    def visual_paths(self, levels: Sequence[str] | None = None) -> dict[str, str]:
        """Paths of the visual maps of the encoder in use, by short name, in the schema's order.

        Args:
            levels: e.g. `pixel_decoder`, or `pixel_decoder/s32` for one map of it; None means all. If several levels
                have a map of the same name, its short name includes the level, e.g. `pixel_decoder/s32`.

        Raises:
            StoreError: the store has no such level or map.
        """
        specs = [spec for stream in self.streams_of("visual") for spec in self.schema.tables[stream].values]
        parts = {spec.path: spec.path.split("/")[3:] for spec in specs}
        known = {name for names in parts.values() for name in (names[0], "/".join(names))}
        for level in levels or ():
            if level not in known:
                raise StoreError(f"store {self.location} has no level {level!r}; {nearest(level, known)}")
        chosen = {path: names for path, names in parts.items()
                  if levels is None or names[0] in levels or "/".join(names) in levels}  # fmt: skip
        short = [names[-1] for names in chosen.values()]
        return {names[-1] if short.count(names[-1]) == 1 else "/".join(names): path for path, names in chosen.items()}

    @property
    def audio_path(self) -> str:
        """Path of the audio features."""
        return self._features("audio")

    @property
    def text_path(self) -> str:
        """Path of the text features."""
        return self._features("text")

    @property
    def valid_path(self) -> str:
        """Path of the array that marks real tokens of the text features."""
        return f"{self.text_path.rpartition('/')[0]}/valid"

    def mask(self, row: int) -> Bool[Tensor, "t h w"] | None:
        """Mask of an object at the size in which it is stored; None for the row -1."""
        found = [self.read(path, row) for path in (MASK, SIZE) if path in self.specs and row >= 0]
        return mask_of_row(self.mask_size, *found) if found else None

    def unpacked(self, mask: Tensor, size: Tensor | None = None) -> Bool[Tensor, "t h w"]:
        """Converts a stored mask to booleans, at the one size that the masks of a batch have."""
        return scaled(mask_of_row(self.mask_size, mask, size), mask_shape(self.mask_size))

    def within(self, clips: Sequence[int]) -> Bool[Tensor, "b t"]:
        """The valid steps of the clips at these places."""
        lengths = torch.tensor([self.steps.before(length) for length in self.clips["seconds"].iloc[list(clips)]])
        return torch.arange(len(self.steps)) < lengths[:, None]

    @cached_property
    def facts(self) -> list[dict[str, Any]]:
        """For each expression: uid, clip_id, clip, object, text, text_row, split and dimension."""
        names = ["uid", "clip_id", "clip", "object", "text", "text_row", "split", "dimension"]
        columns = [self.expressions[name].tolist() for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _features(self, modality: str) -> str:
        streams = self.streams_of(modality)
        found = [path for stream in streams if (path := f"{table_path(stream)}/features") in self.specs]
        if len(found) != 1:
            raise StoreError(f"store {self.location} has {len(found)} arrays called features in {', '.join(streams)}, "
                             f"a sample needs one; name it, as model.{modality}={streams[0].partition('/')[2]}")
        return found[0]

    def _shard(self, spec: ArraySpec, record: CommitRecord) -> ShardReader:
        name = spec.path, record.index
        shard = self._shards.get(name)
        if shard is None:
            size, file = self.schema.tables[spec.table].rows_per_shard, shard_name(spec, record.index)
            shard = ShardReader(self.folder, file, spec, size, record.arrays[spec.name])
            with self._opening:
                while len(self._shards) >= MOST_OPEN:
                    del self._shards[next(iter(self._shards))]
                self._shards[name] = shard
        return shard
