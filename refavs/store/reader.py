"""Reading a store: committed rows only, as views of mapped shards whose checksums are compared on first touch."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from refavs.config import nearest
from refavs.errors import StoreError
from refavs.store.backends.base import TRY_AGAIN, open_folder, out_of_reach
from refavs.store.derived_files import merged_statistics
from refavs.store.fill import Target, fill
from refavs.store.format.commits import CommitRecord, record_name, store_fingerprint
from refavs.store.format.schema import MASK, ArraySpec, unpack_mask
from refavs.store.format.shard import ShardReader, shard_name
from refavs.store.snapshot import read_snapshot

POLICIES = ("first", "always", "never")
MOST_OPEN = 2**14  # shards; Linux gives a process 65,530 mappings
Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
_THREAD_BYTES = 2**21  # less than this to copy is not worth a thread


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One expression with the features of its clip; the maps are views of the store.

    Attributes:
        visual: maps of each second by their name, e.g. `mask_features`.
        valid: True where the text has a token.
        mask: the referred object in each second, all False for an expression that refers to nothing; None where the
            store has no masks for it.
    """

    visual: dict[str, Float[Tensor, "t _ _ _"]]
    audio: Float[Tensor, "t _"]
    text: Float[Tensor, "l _"]
    valid: Bool[Tensor, "l"]
    mask: Bool[Tensor, "t h w"] | None
    uid: str
    clip_id: str
    text_string: str
    split: str
    dimension: str


class FeatureStore:
    """A store opened for reading.

    What is committed later is not seen; open it again for that. A store may be read from many processes, and pickling
    one opens it anew on the other side.

    Args:
        location: the store's folder, or its URL (`s3://bucket/prefix`).
        verify: compare each row with its checksum on its `first` read, `always` or `never`.

    Raises:
        StoreError: there is no store, it is damaged, or its table of expressions is half-written.
    """

    def __init__(self, location: str | Path, verify: str = "first") -> None:
        if verify not in POLICIES:
            raise StoreError(f"verify is {verify!r}; accepted: {', '.join(POLICIES)}")
        self.folder = open_folder(location)
        self.verify = verify
        found = read_snapshot(self.folder)
        self.attributes, self.schema, self.records = found.attributes, found.schema, found.records
        self._expressions = found.expressions
        self._places = {
            (record.table, row): (record, key) for record in self.records for key, row in record.rows.items()
        }
        self._rows = {(table, key): row for (table, row), (_, key) in self._places.items()}
        self._shards: dict[tuple[str, int], ShardReader] = {}
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore, (self.location, self.verify)

    @property
    def location(self) -> str:
        """The store's absolute path or URL."""
        return self.folder.location

    @property
    def encoders(self) -> dict[str, dict]:
        """Fingerprint of the encoder of each stream."""
        return self.schema.encoders

    @property
    def num_frames(self) -> int:
        """Frames per clip."""
        return self.schema.num_frames

    @property
    def input_size(self) -> int:
        """Side of the frames the visual encoder saw and of the masks, in pixels."""
        return self.schema.input_size

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """All arrays by path, e.g. `clips/audio/vggish`."""
        return self.schema.specs

    @cached_property
    def fingerprint(self) -> str:
        """Names the content: schema, encoders, rows with their checksums, statistics and expressions."""
        return store_fingerprint(self.schema, self.records, self._expressions and self._expressions[1])

    @property
    def finished(self) -> bool:
        """Whether the extraction came to its end, and nothing was committed since."""
        return self.attributes.get("fingerprint") == self.fingerprint

    @cached_property
    def statistics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean and deviation per channel, float32, of each array that keeps them."""
        return {path: sums.moments() for path, sums in merged_statistics(self.records).items()}

    @property
    def random_weights(self) -> bool:
        """Whether an encoder had random weights; tables made from such features must say so."""
        return any(says_random(fingerprint) for fingerprint in self.encoders.values())

    @cached_property
    def clips(self) -> pd.DataFrame:
        """Committed clips: column `id` and what was noted of each (e.g. `silent`); the index is the row."""
        return self._frame("clips", lambda key: {"id": key})

    @cached_property
    def objects(self) -> pd.DataFrame:
        """Committed objects: columns `clip_id`, `fid`; the index is the row."""
        return self._frame("objects", lambda key: dict(zip(("clip_id", "fid"), _clip_and_fid(key), strict=True)))

    @cached_property
    def texts(self) -> pd.DataFrame:
        """Committed texts: columns `key` (its hash) and `text`; the index is the row."""
        return self._frame("text", lambda key: {"key": key})

    @cached_property
    def expressions(self) -> pd.DataFrame:
        """One row per expression: uid, vid, clip_id, clip, object (-1 = none), text, text_row, split, fid, grade, ...

        Raises:
            StoreError: the extraction has not come to writing them.
        """
        if self._expressions is None:
            raise StoreError(f"store {self.location} has no table of expressions yet: its extraction did not finish; "
                             "run the same refavs-extract command again")
        frame = self._expressions[0].rename(columns={"text": "text_row"})
        ids, strings = self.clips["id"].to_dict(), self.texts["text"].to_dict()
        frame.insert(2, "clip_id", [ids[row] for row in frame["clip"]])
        frame.insert(5, "text", [strings[row] for row in frame["text_row"]])
        return frame

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(index) for index in range(len(self)))

    def sample(self, index: int, levels: Sequence[str] | None = None) -> Sample:
        """Expression `index` with the visual `levels` named, as `visual_paths` takes them; None reads all."""
        if not 0 <= index < len(self):
            raise IndexError(f"expression {index} of a store of {len(self)}")
        facts = self.facts[index]
        visual, text, valid = self.visual_paths(levels), self.text_path, self.valid_path
        wanted = [*((path, facts["clip"]) for path in (*visual.values(), self.audio_path)),
                  *((path, facts["text_row"]) for path in (text, valid))]  # fmt: skip
        if facts["object"] >= 0:
            wanted.append((MASK, facts["object"]))
        rows = self.folder.together([partial(self.read, path, row) for path, row in wanted])
        found = {path: row for (path, _), row in zip(wanted, rows, strict=True)}
        return Sample(
            visual={name: found[path] for name, path in visual.items()}, audio=found[self.audio_path],
            text=found[text], valid=found[valid], mask=self.unpacked(found[MASK]) if MASK in found else None,
            uid=facts["uid"], clip_id=facts["clip_id"], text_string=facts["text"], split=facts["split"],
            dimension=facts["dimension"],
        )  # fmt: skip

    def read(self, path: str, row: int) -> Tensor:
        """One row of an array as a view of its mapped shard.

        Raises:
            StoreError: there is no such array or committed row, or the row is damaged; the message names its key.
        """
        with self.shard_of(path, row) as (shard, place):
            return shard.read(place, self.verify)

    @contextlib.contextmanager
    def shard_of(self, path: str, row: int) -> Iterator[tuple[ShardReader, int]]:
        """The shard that has a row, and the row's place in it.

        Raises:
            StoreError: as for `read`, also for what goes wrong while the shard is used.
        """
        spec, record, key, row = self._found(path, row)
        size = self.schema.tables[spec.table].rows_per_shard
        try:
            yield self._shard(spec, record), row - record.index * size
        except StoreError as error:
            where = self.folder.where(record_name(record.table, record.index))
            remedy = f"remove {where} and run the same refavs-extract command again"
            raise StoreError(f"{path} of {key!r} (row {row} of {spec.table}) in {self.location} cannot be used: "
                             f"{error}; {TRY_AGAIN if out_of_reach(error.__cause__) else remedy}") from error

    def read_into(self, path: str, rows: Sequence[int], out: Shaped[Tensor, "b ..."]) -> None:
        """Copies rows of an array into `out`, memory that is there already: new memory costs more than the copy.

        As many threads copy as torch may use; those that wait for others, as torch's own do, stall on a busy machine.

        Raises:
            StoreError: as for `read`; what `out` then holds is not defined.
            ValueError: `out` is not of the rows' shape and type, or not in this machine's memory.
        """
        spec = self.specs.get(path)
        wanted = None if spec is None else ((len(rows), *spec.shape), getattr(torch, spec.dtype), "cpu")
        found = tuple(out.shape), out.dtype, out.device.type
        if wanted not in (None, found):
            raise ValueError(f"{len(rows)} rows of {path} are {wanted}, they were to be written into {found}")
        targets = [Target(path, int(row), place) for row, place in zip(rows, out.numpy(), strict=True)]
        fill(self, targets, min(torch.get_num_threads(), len(rows), 1 + out.nbytes // _THREAD_BYTES))

    def read_rows(self, wanted: Mapping[str, Sequence[int]], empty: Empty) -> dict[str, Shaped[Tensor, "_ ..."]]:
        """Rows of several arrays by path, all in one go; name a row once only, a server is asked for each.

        Args:
            empty: gives memory of a shape and a type.

        Raises:
            StoreError: as for `read`.
        """
        found = {}
        for path, rows in wanted.items():
            spec = self._spec(path)
            found[path] = empty((len(rows), *spec.shape), getattr(torch, spec.dtype))
        fill(self, [
            Target(path, row, place)
            for path, rows in wanted.items() for row, place in zip(rows, found[path].numpy(), strict=True)
        ])  # fmt: skip
        return found

    def _spec(self, path: str) -> ArraySpec:
        spec = self.specs.get(path)
        if spec is None:
            raise StoreError(f"store {self.location} has no array {path!r}; {nearest(path, self.specs)}")
        return spec

    def _found(self, path: str, row: int) -> tuple[ArraySpec, CommitRecord, str, int]:
        """Where a row lies: its array, the record of its shard, its key and its number, those of another row whose
        content it shares."""
        spec = self._spec(path)
        place = self._places.get((spec.table, int(row)))
        if place is None:
            raise StoreError(f"row {row} of {spec.table} is not committed in {self.location}; run the same "
                             "refavs-extract command again")
        record, key = place
        owner = record.owner(path, key)
        if owner != key:
            return self._found(path, self._row_of_owner(path, key, owner))
        if path not in record.arrays:
            raise StoreError(f"store {self.location} has no {path} of {key!r} yet; run refavs-extract with that level "
                             "again, from a source that has the clip")
        return spec, record, key, int(row)

    def _row_of_owner(self, path: str, key: str, owner: str) -> int:
        row = self._rows.get((path.split("/")[0], owner))
        if row is None:
            raise StoreError(f"{path} of {key!r} is that of {owner!r}, which is not committed in {self.location}; run "
                             "the same refavs-extract command again")
        if self._places[path.split("/")[0], row][0].owner(path, owner) != owner:
            raise StoreError(f"{path} of {key!r} is that of {owner!r}, which is again another one's, in "
                             f"{self.location}; no refavs wrote such a store, extract into a new one")
        return row

    def visual_paths(self, levels: Sequence[str] | None = None) -> dict[str, str]:
        """Paths of the visual maps by their short name, in the schema's order.

        Args:
            levels: as `pixel_decoder` or, for one map of it, `pixel_decoder/s32`; None names all.

        Raises:
            StoreError: the store has no such level or map.
        """
        parts = {path: path.split("/") for path in self.specs if path.startswith("clips/visual/")}
        known = {name for names in parts.values() for name in (names[2], "/".join(names[2:]))}
        for level in levels or ():
            if level not in known:
                raise StoreError(f"store {self.location} has no level {level!r}; {nearest(level, known)}")
        return {
            names[-1]: path for path, names in parts.items()
            if levels is None or names[2] in levels or "/".join(names[2:]) in levels
        }

    @property
    def audio_path(self) -> str:
        """Path of the audio features."""
        return self._only("clips/audio/", "")

    @property
    def text_path(self) -> str:
        """Path of the text features."""
        return self._only("text/", "/features")

    @property
    def valid_path(self) -> str:
        """Path of the valid places of the text features."""
        return self.text_path.replace("/features", "/valid")

    def text(self, row: int) -> tuple[Float[Tensor, "l _"], Bool[Tensor, "l"]]:
        """Features and valid places of a text."""
        return self.read(self.text_path, row), self.read(self.valid_path, row)

    def mask(self, row: int) -> Bool[Tensor, "t h w"] | None:
        """Mask of an object; None for the row -1."""
        if row < 0:
            return None
        return self.unpacked(self.read(MASK, row))

    def unpacked(self, mask: Tensor) -> Bool[Tensor, "t h w"]:
        """A mask as it is stored, as booleans."""
        return torch.from_numpy(unpack_mask(mask.numpy(), self.input_size))

    @cached_property
    def facts(self) -> list[dict[str, Any]]:
        """Of each expression uid, clip_id, clip, object, text, text_row, split and dimension."""
        names = ["uid", "clip_id", "clip", "object", "text", "text_row", "split", "dimension"]
        columns = [self.expressions[name].tolist() for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _only(self, start: str, end: str) -> str:
        found = [path for path in self.specs if path.startswith(start) and path.endswith(end)]
        if len(found) != 1:
            raise StoreError(f"store {self.location} has {len(found)} arrays {start}*{end} ({', '.join(found)}), a "
                             "sample needs one; extract into a new store")
        return found[0]

    def _shard(self, spec: ArraySpec, record: CommitRecord) -> ShardReader:
        name = spec.path, record.index
        shard = self._shards.get(name)
        if shard is None:
            size = self.schema.tables[spec.table].rows_per_shard
            file = shard_name(spec, record.index)
            shard = ShardReader(self.folder, file, spec, size, record.arrays[spec.path])
            with self._opening:
                while len(self._shards) >= MOST_OPEN:
                    del self._shards[next(iter(self._shards))]
                self._shards[name] = shard
        return shard

    def _frame(self, table: str, facts_of: Any) -> pd.DataFrame:
        rows = {
            row: {**record.meta[key], **facts_of(key)}
            for record in self.records if record.table == table
            for key, row in record.rows.items()
        }  # fmt: skip
        names = {"clips": ["id"], "objects": ["clip_id", "fid"], "text": ["key", "text"]}[table]
        order = sorted(rows)
        frame = pd.DataFrame([rows[row] for row in order], index=pd.Index(order, dtype="int64"))
        return frame.reindex(columns=[*names, *(name for name in frame.columns if name not in names)])


def _clip_and_fid(key: str) -> tuple[str, int]:
    clip_id, fid = key.rsplit("/", 1)
    return clip_id, int(fid)


def says_random(value: Any) -> bool:
    """Whether a fingerprint, or a part of one, names random weights."""
    if isinstance(value, dict):
        return any(map(says_random, value.values()))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return any(map(says_random, value))
    return isinstance(value, str) and value.startswith("random:")
