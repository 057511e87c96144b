"""A store as datasets of `torch.utils.data`, for training loops that are not ours.

    from refavs.data.loaders import Expressions, StoreLoader

    loader = StoreLoader(Expressions("features/", split="train"), batch_size=8, seed=0, num_workers=2)
    for epoch in range(3):
        for batch in loader:  # a `Batch`: maps of the distinct clips, texts, masks
            ...
            torch.save({"loader": loader.state_dict(), ...}, "checkpoint.pt")

After `loader.load_state_dict(...)` the batches go on where they stopped, as if nothing had been interrupted.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from refavs.data.batches import Batch, collate, shuffled
from refavs.errors import ConfigError
from refavs.store.backends.base import LocalFolder
from refavs.store.format.quantised import values_of
from refavs.store.reader import FeatureStore, Sample

Item = TypeVar("Item")
Collated = TypeVar("Collated")


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """The features of one clip; maps that are not quantised are views of the store.

    Attributes:
        visual: maps of each step by name, e.g. `mask_features`.
        within: the steps before the clip's end.
    """

    id: str
    visual: dict[str, Float[Tensor, "t _ _ _"]]
    audio: Float[Tensor, "tokens _"]
    within: Bool[Tensor, "t"]


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """Clips, stacked."""

    ids: list[str]
    visual: dict[str, Float[Tensor, "b t _ _ _"]]
    audio: Float[Tensor, "b tokens _"]
    within: Bool[Tensor, "b t"]


class StoreDataset(Dataset[Item], Generic[Item, Collated]):
    """Rows of a store; a worker process that gets a copy opens the store itself.

    Attributes:
        store: the opened store.
        rows: the row of each item among the store's expressions or clips.
        clips: the clip of each item.
    """

    collate: Callable[[Sequence[Item]], Collated]

    def __init__(self, store: FeatureStore | str | Path, levels: Sequence[str] | None) -> None:
        self.store = store if isinstance(store, FeatureStore) else FeatureStore(store)
        self.levels = None if levels is None else list(levels)
        self.store.visual_paths(self.levels)
        self.rows = self.clips = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.rows)


class Expressions(StoreDataset[Sample, Batch]):
    """The expressions of a store, each with the features of its clip.

    Args:
        store: the store, its folder or its URL.
        split: only those of this split; None for all. Those with and without a mask cannot be in one batch.
        levels: visual levels or maps to read, as `FeatureStore.visual_paths` takes them; None reads all.

    Raises:
        ConfigError: no expression has this split.
        StoreError: as for `FeatureStore` and `FeatureStore.visual_paths`.
    """

    collate = staticmethod(collate)

    def __init__(
        self, store: FeatureStore | str | Path, split: str | None = None, levels: Sequence[str] | None = None
    ) -> None:
        super().__init__(store, levels)
        splits = self.store.expressions["split"]
        chosen = np.ones(len(splits), bool) if split is None else (splits == split).to_numpy()
        self.rows = np.flatnonzero(chosen)
        if not len(self.rows):
            raise ConfigError(f"{self.store.location} has no expression of split {split!r}; it has "
                              f"{', '.join(sorted(set(splits))) or 'none at all'}")
        self.clips = self.store.expressions["clip"].to_numpy(np.int64)[self.rows]

    def __getitem__(self, index: int) -> Sample:
        return self.store.sample(int(self.rows[index]), self.levels)


def collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    """Stacks clips."""
    return ClipBatch(
        ids=[sample.id for sample in samples], audio=torch.stack([sample.audio for sample in samples]),
        visual={name: torch.stack([sample.visual[name] for sample in samples]) for name in samples[0].visual},
        within=torch.stack([sample.within for sample in samples]),
    )  # fmt: skip


class Clips(StoreDataset[ClipSample, ClipBatch]):
    """The clips of a store, each once, without expressions.

    Args:
        store: the store, its folder or its URL.
        levels: visual levels or maps to read; None reads all.

    Raises:
        StoreError: as for `FeatureStore` and `FeatureStore.visual_paths`.
    """

    collate = staticmethod(collate_clips)

    def __init__(self, store: FeatureStore | str | Path, levels: Sequence[str] | None = None) -> None:
        super().__init__(store, levels)
        self.rows = self.clips = np.arange(len(self.store.clips))

    def __getitem__(self, index: int) -> ClipSample:
        store, visual = self.store, self.store.visual_paths(self.levels)
        paths = store.schema.with_scales(*visual.values(), store.audio_path)
        found = {path: store.read(path, store.rows(path, [index])[0]) for path in paths}
        values = {path: values_of(store.specs[path], found) for path in (*visual.values(), store.audio_path)}
        return ClipSample(
            id=str(store.clips["id"].iloc[index]), visual={name: values[path] for name, path in visual.items()},
            audio=values[store.audio_path], within=store.within([index])[0],
        )  # fmt: skip


class ClipReader:
    """Reads clips for a pipeline of `ray.data`, each of whose workers opens the store once.

    `ray.data.range(len(Clips(STORE))).map_batches(ClipReader, fn_constructor_args=(STORE,), concurrency=2)` has the
    clips of a store, with the columns `clip`, `audio`, `within` and one for each map.

    Args:
        store: the folder or URL of the store.
        levels: visual levels or maps to read; None reads all.
    """

    def __init__(self, store: str | Path, levels: Sequence[str] | None = None) -> None:
        self._clips = Clips(store, levels)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The clips whose numbers are in the column `id`."""
        found = collate_clips([self._clips[int(index)] for index in batch["id"]])
        maps = {name: values.numpy() for name, values in found.visual.items()}
        return {"clip": np.array(found.ids), "audio": found.audio.numpy(), "within": found.within.numpy(), **maps}


class StoreLoader(Generic[Collated]):
    """Batches of a dataset, epoch after epoch, in an order that depends on the seed and the epoch alone.

    Each pass over it is one epoch; its length is the number of batches in an epoch.

    Args:
        dataset: `Expressions` or `Clips`.
        batch_size: items in a batch; the last one of an epoch may be smaller.
        seed: determines the order together with the epoch; None keeps that of the store.
        expressions_per_clip: up to so many expressions of one clip stay together, so that a batch reads fewer clips.
        rank: number of this process among `world_size` that share each epoch. All get the same number of batches: the
            first of an epoch are repeated at its end if they do not divide evenly.
        num_workers: processes that read ahead; 0 reads in this one. Those of a remote store are spawned, as a forked
            process cannot use the connections of its parent; then the program needs `if __name__ == "__main__":`.
        start: `fork`, `spawn` or `forkserver`, instead of the default for the store.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self, dataset: StoreDataset[Any, Collated], batch_size: int, *, seed: int | None = 0,
        expressions_per_clip: int = 1, rank: int = 0, world_size: int = 1, num_workers: int = 0,
        start: str | None = None,
    ) -> None:  # fmt: skip
        if min(batch_size, expressions_per_clip, world_size) < 1 or not 0 <= rank < world_size:
            raise ConfigError(f"batch_size {batch_size}, expressions_per_clip {expressions_per_clip}, rank {rank} of "
                              f"{world_size}; accepted: numbers from 1, and a rank from 0 below world_size")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.expressions_per_clip, self.rank, self.world_size = expressions_per_clip, rank, world_size
        self.num_workers, self.epoch, self._done = num_workers, 0, 0
        self._start = start or (None if isinstance(dataset.store.folder, LocalFolder) else "spawn")

    def __len__(self) -> int:
        return -(-self._num_batches // self.world_size)

    def __iter__(self) -> Iterator[Collated]:
        """Yields the batches of this epoch that have not been used, then goes on to the next epoch."""
        mine = self._batches()[self.rank :: self.world_size]
        loader = DataLoader(
            self.dataset, batch_sampler=mine[self._done :], collate_fn=type(self.dataset).collate,
            num_workers=self.num_workers, multiprocessing_context=self._start if self.num_workers else None,
        )  # fmt: skip
        for batch in loader:
            self._done += 1  # before it is used: a state that is taken meanwhile goes on with the next
            yield batch
        self.epoch, self._done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, in plain numbers; the same for every rank after the same number of batches."""
        return {"epoch": self.epoch, "batches": self._done * self.world_size, "facts": self._facts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken, also with another number of processes if it divides what was done.

        Raises:
            ConfigError: the state is of another store, batch size or order, or the number of processes does not fit.
        """
        other = [f"{name} {old} (now {self._facts.get(name)})" for name, old in dict(state["facts"]).items()
                 if self._facts.get(name) != old]  # fmt: skip
        if other:
            raise ConfigError(f"the state is of a loader with {', '.join(other)}; load it into one with the same")
        if state["batches"] % self.world_size:
            raise ConfigError(f"the state was taken after {state['batches']} batches, which {self.world_size} "
                              "processes cannot have used evenly; go on with as many processes as before")
        self.epoch, self._done = int(state["epoch"]), int(state["batches"]) // self.world_size

    @property
    def _num_batches(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    @property
    def _facts(self) -> dict[str, Any]:
        """What determines the batches."""
        rows = f"{len(self.dataset)} {type(self.dataset).__name__} {zlib.crc32(self.dataset.rows.tobytes()):08x}"
        return {"rows": rows, "batch_size": self.batch_size, "seed": self.seed,
                "expressions_per_clip": self.expressions_per_clip,
                "store": self.dataset.store.fingerprint}  # fmt: skip

    def _batches(self) -> list[list[int]]:
        """The items of each batch of this epoch, of all processes."""
        order = list(range(len(self.dataset)))
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, self.epoch])
            order = shuffled(order, self.dataset.clips, self.expressions_per_clip, rng)
        found = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return [*found, *itertools.islice(itertools.cycle(found), -len(found) % self.world_size)]
