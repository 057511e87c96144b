"""Batches of stored expressions, in which each clip's maps occur once."""

import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from refavs.config import nearest
from refavs.errors import DatasetError
from refavs.store.reader import FeatureStore, Sample

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Expressions and the distinct clips they speak of; features are as stored, not standardised.

    Attributes:
        visual: maps of the distinct clips by their name, e.g. `mask_features`.
        valid: True where a text has a token.
        clip: which of the distinct clips each expression speaks of.
        mask: the referred object, all False where there is none; None where the store holds no masks.
    """

    visual: dict[str, Float[Tensor, "u t _ _ _"]]
    audio: Float[Tensor, "u t _"]
    text: Float[Tensor, "b l _"]
    valid: Bool[Tensor, "b l"]
    clip: Int[Tensor, "b"]
    mask: Bool[Tensor, "b t h w"] | None
    uid: list[str]
    split: list[str]
    dimension: list[str]
    text_string: list[str]

    def __len__(self) -> int:
        return len(self.uid)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on `device`."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, non_blocking=True)
        visual = {name: value.to(device, non_blocking=True) for name, value in self.visual.items()}
        return replace(self, visual=visual, **moved)


class StoreDataset(Dataset[Sample]):
    """Some expressions of a store, for `torch.utils.data.DataLoader(..., collate_fn=collate)`.

    Args:
        store: where the features lie.
        splits: which expressions; None takes all.
        levels: visual levels to read; None reads what the model reads.

    Raises:
        DatasetError: the store has no expressions of a split.
    """

    def __init__(
        self, store: FeatureStore, splits: Sequence[str] | None = None, levels: Sequence[str] | None = None
    ) -> None:
        self.store = store
        self.levels = default_levels(store) if levels is None else list(levels)
        self.indices = split_indices(store, splits)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.store.sample(self.indices[index], self.levels)


def split_indices(store: FeatureStore, splits: Sequence[str] | None) -> list[int]:
    """Expressions of `splits` in the store's order; all of them for None.

    Raises:
        DatasetError: the store has no expressions of a split.
    """
    found = store.expressions["split"].tolist()
    for split in splits or ():
        if split not in found:
            raise DatasetError(
                f"store {store.location} has no expressions of split {split!r}; {nearest(split, {*found})}"
            )
    return [row for row, split in enumerate(found) if splits is None or split in splits]


def default_levels(store: FeatureStore) -> list[str]:
    """The visual level that the model reads: the pixel decoder's where the store has it, else all there are."""
    levels = {path.split("/")[2] for path in store.visual_paths().values()}
    return ["pixel_decoder"] if "pixel_decoder" in levels else sorted(levels)


class Recycler:
    """Stacks tensors in memory that is used again once nobody holds what was made of it.

    Pages that are new to a process cost several times what copying a batch of maps into old ones does.

    Args:
        pinned: take memory that a GPU reads without a copy in between. Who sends it there without waiting keeps the
            tensors until the copy is done.
    """

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned
        self._free: dict[tuple[torch.Size, torch.dtype], list[np.ndarray]] = {}

    def stack(self, rows: list[Tensor]) -> Tensor:
        """As `torch.stack`."""
        shape, dtype = rows[0].shape, rows[0].dtype
        free = self._free.setdefault((shape, dtype), [])
        memory = free.pop() if free else np.empty(0)
        if len(memory) < len(rows):
            memory = torch.empty(len(rows), *shape, dtype=dtype, pin_memory=self.pinned).numpy()
        lent = memory[: len(rows)]  # lives for as long as a tensor that shares its bytes
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.stack(rows, out=torch.from_numpy(lent))


def collate(samples: Sequence[Sample], stack: Callable[[list[Tensor]], Tensor] = torch.stack) -> Batch:
    """Stacks samples; expressions of the same clip share its row.

    Args:
        stack: what makes one tensor of the clips' maps.

    Raises:
        DatasetError: some of the samples have a mask and some have none.
    """
    place: dict[str, int] = {}
    distinct: list[Sample] = []
    for sample in samples:
        if sample.clip_id not in place:
            place[sample.clip_id] = len(distinct)
            distinct.append(sample)
    masks = [sample.mask for sample in samples if sample.mask is not None]
    if masks and len(masks) != len(samples):
        bare = next(sample for sample in samples if sample.mask is None)
        raise DatasetError(f"{len(samples) - len(masks)} of {len(samples)} expressions of a batch have no mask, e.g. "
                           f"{bare.uid!r} of split {bare.split!r}; choose splits that have masks, or only such as have "
                           "none")
    return Batch(
        visual={name: stack([sample.visual[name] for sample in distinct]) for name in distinct[0].visual},
        audio=torch.stack([sample.audio for sample in distinct]),
        text=torch.stack([sample.text for sample in samples]),
        valid=torch.stack([sample.valid for sample in samples]),
        clip=torch.tensor([place[sample.clip_id] for sample in samples]),
        mask=torch.stack(masks) if masks else None,
        uid=[sample.uid for sample in samples], split=[sample.split for sample in samples],
        dimension=[sample.dimension for sample in samples], text_string=[sample.text_string for sample in samples],
    )  # fmt: skip


class Ahead(Generic[Item]):
    """Takes the next item in a thread while the present one is used; their order stays.

    Attributes:
        waited_s: seconds in which the user of the items waited for one.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self.items = items
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Item]:
        items = iter(self.items)
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
            coming = thread.submit(lambda: list(itertools.islice(items, 1)))
            while True:
                started = time.perf_counter()
                item = coming.result()
                self.waited_s += time.perf_counter() - started
                if not item:
                    return
                coming = thread.submit(lambda: list(itertools.islice(items, 1)))
                yield item[0]


def batches(
    store: FeatureStore, indices: Sequence[int], batch_size: int, *, seed: int | None = None, epoch: int = 0,
    expressions_per_clip: int = 1, levels: Sequence[str] | None = None, pinned: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """Batches of the expressions `indices`, each taken as often as it is named; the last one may be smaller.

    The memory of a batch's maps serves a later batch as soon as nothing refers to it.

    Args:
        seed: together with `epoch` it decides the order; None keeps the order given.
        expressions_per_clip: shuffle groups of up to so many expressions of one clip instead of single ones, so that
            a batch reads fewer clips.
        levels: visual levels to read; None reads what the model reads.
        pinned: see `Recycler`.
    """
    rows = batch_rows(store, indices, batch_size, seed=seed, epoch=epoch, expressions_per_clip=expressions_per_clip)
    for (batch,) in read_batches(store, ([part] for part in rows), levels, pinned):
        yield batch


def batch_rows(
    store: FeatureStore, indices: Sequence[int], batch_size: int, *, seed: int | None = None, epoch: int = 0,
    expressions_per_clip: int = 1,
) -> list[list[int]]:  # fmt: skip
    """The expressions of each of the `batches` of `indices`."""
    order = list(indices)
    if seed is not None:
        clips = store.expressions["clip"].to_numpy()[np.array(order, int)]
        order = shuffled(order, clips, expressions_per_clip, np.random.default_rng([seed, epoch]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def read_batches(
    store: FeatureStore, wanted: Iterable[Sequence[Sequence[int]]], levels: Sequence[str] | None = None,
    pinned: bool = False,
) -> Iterator[list[Batch]]:  # fmt: skip
    """Batches in pieces, each piece read from the mapped shards straight into its place in memory that is used again.

    Args:
        wanted: for each batch, the expressions of each of its pieces.
    """
    levels = default_levels(store) if levels is None else levels
    memory = Recycler(pinned)
    for pieces in wanted:
        yield [collate([store.sample(index, levels) for index in piece], memory.stack) for piece in pieces]


def shuffled(
    indices: Sequence[int], clips: Int[np.ndarray, "b"], expressions_per_clip: int, rng: np.random.Generator
) -> list[int]:
    """A random order of `indices` in which up to `expressions_per_clip` of one clip stand together."""
    by_clip: dict[int, list[int]] = {}
    for place in rng.permutation(len(indices)):
        by_clip.setdefault(int(clips[place]), []).append(int(indices[place]))
    groups = [
        rows[start : start + expressions_per_clip]
        for _, rows in sorted(by_clip.items())
        for start in range(0, len(rows), expressions_per_clip)
    ]
    return [index for group in rng.permutation(len(groups)) for index in groups[group]]
