"""Batches of stored expressions, in which the maps of each clip occur once."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refavs.data.clip_groups import ClipGroups
from refavs.data.maps import Maps
from refavs.data.prefetch import Arrival, Sender
from refavs.errors import DatasetError
from refavs.store.format.mask_rows import LABELLED, MASK, SIZE
from refavs.store.format.quantised import values_of
from refavs.store.pooled import pooled_path
from refavs.store.reader import FeatureStore, Sample

StepsRead = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Expressions and the distinct clips they refer to; features are not standardised.

    Attributes:
        visual: maps of the distinct clips by name, e.g. `mask_features`. A batch from a store has a `Maps`, which
            computes the values of quantised maps on access.
        valid: True for the real tokens of a text.
        clip: the distinct clip that each expression refers to.
        mask: the referred object, all False if there is none; None if the store has no masks.
        labelled: the steps whose mask is known; the others do not count in losses and metrics.
        arrival: the pending copy of a batch that was sent to a device; `to` waits for it.
    """

    visual: Mapping[str, Float[Tensor, "u _ ..."]]
    audio: Float[Tensor, "u tokens _"]
    text: Float[Tensor, "b l _"]
    valid: Bool[Tensor, "b l"]
    clip: Int[Tensor, "b"]
    mask: Bool[Tensor, "b t h w"] | None
    uid: list[str]
    split: list[str]
    dimension: list[str]
    text_string: list[str]
    labelled: Bool[Tensor, "b t"] | None = None
    arrival: Arrival | None = None

    def __len__(self) -> int:
        return len(self.uid)

    @cached_property
    def groups(self) -> ClipGroups:
        """The expressions grouped by clip."""
        return ClipGroups.of(self.clip.tolist(), len(self.audio))

    def of_expressions(self, features: Float[Tensor, "u ..."]) -> Float[Tensor, "b ..."]:
        """The features of each expression's clip; not a copy where each clip has one expression."""
        one_each = self.groups.in_order and self.groups.size == 1
        return features if one_each else features[self.clip]

    @cached_property
    def text_length(self) -> int:
        """Length of the longest text in tokens."""
        places = np.flatnonzero(self.valid.numpy(force=True).any(axis=0))
        return int(places[-1]) + 1 if len(places) else 0

    @cached_property
    def shown(self) -> Bool[np.ndarray, "b t"] | None:
        """The steps in which each object is visible."""
        if self.mask is None:
            return None
        pixels = np.ascontiguousarray(self.mask.flatten(2).numpy(force=True))
        return np.any(pixels.view(np.uint64 if pixels.shape[-1] % 8 == 0 else np.bool_), axis=-1)

    @cached_property
    def counted(self) -> Bool[np.ndarray, "b t"] | None:
        """`labelled` on the CPU."""
        return None if self.labelled is None else self.labelled.numpy(force=True)

    def known(self) -> "Batch":
        """Caches the facts that a training step needs, so that it does not wait for a device; returns the batch."""
        _ = self.groups, self.text_length, self.shown, self.counted
        return self

    def to(self, device: torch.device | str) -> "Batch":
        """Moves the tensors to `device`, safe to use on its current stream."""
        self.known()
        names = [field.name for field in fields(self) if isinstance(getattr(self, field.name), Tensor)]
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        visual = Maps.of(self.visual).to(device)
        groups = self.groups.to(device)
        if self.arrival is not None:
            self.arrival.wait([*visual.tensors, *moved.values(), groups.slot])
        return self.same(groups, visual=visual, **moved)

    def same(self, groups: ClipGroups, **changes: Any) -> "Batch":
        """A copy of the batch with `changes`, which must not change its values; keeps the cached facts."""
        batch = replace(self, **changes)
        vars(batch).update(groups=groups, text_length=self.text_length, shown=self.shown, counted=self.counted)
        return batch


def default_levels(store: FeatureStore) -> list[str]:
    """The visual level that the model reads: that of the pixel decoder if the store has it, else all levels."""
    levels = {path.split("/")[3] for path in store.visual_paths().values()}
    return ["pixel_decoder"] if "pixel_decoder" in levels else sorted(levels)


class Recycler:
    """Allocates tensors whose memory is reused once nothing refers to them.

    Touching new pages costs a process several times as much as copying a batch of maps into pages it already has.

    Args:
        pinned: allocate pinned memory for copies to a GPU. The caller of a non-blocking copy must keep the tensors
            until it is done.
    """

    def __init__(self, pinned: bool = False) -> None:
        self.pinned = pinned
        self._free: dict[tuple[tuple[int, ...], torch.dtype], list[np.ndarray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns an uninitialised tensor."""
        num_rows, of_row = shape[0], tuple(shape[1:])
        free = self._free.setdefault((of_row, dtype), [])
        memory = free.pop() if free else np.empty(0)
        if len(memory) < num_rows:
            memory = self._new((num_rows, *of_row), dtype).numpy()
        lent = memory[:num_rows]  # lives as long as any tensor that shares its bytes
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.from_numpy(lent)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.pinned)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples; expressions of the same clip share one row of features.

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
    labelled = [sample.labelled for sample in samples if sample.labelled is not None]
    _refuse_bare([(sample.uid, sample.split) for sample in samples if sample.mask is None], len(samples))
    return Batch(
        visual={name: torch.stack([sample.visual[name] for sample in distinct]) for name in distinct[0].visual},
        audio=torch.stack([sample.audio for sample in distinct]),
        text=torch.stack([sample.text for sample in samples]),
        valid=torch.stack([sample.valid for sample in samples]),
        clip=torch.tensor([place[sample.clip_id] for sample in samples]),
        mask=torch.stack(masks) if masks else None, labelled=torch.stack(labelled) if labelled else None,
        uid=[sample.uid for sample in samples], split=[sample.split for sample in samples],
        dimension=[sample.dimension for sample in samples], text_string=[sample.text_string for sample in samples],
    ).known()  # fmt: skip


def read_batch(
    store: FeatureStore, indices: Sequence[int], levels: Sequence[str], memory: Recycler,
    steps: StepsRead | None = None,
) -> Batch:  # fmt: skip
    """As `collate` of the expressions' samples, but reads each clip, text and mask once, directly into the batch.

    Args:
        steps: by map, those to read, as `Head.steps_read` names them; the other maps are read whole.

    Raises:
        DatasetError: some of the expressions have a mask and some have none.
        StoreError: as for `FeatureStore.read`.
    """
    facts = [store.facts[index] for index in indices]
    _refuse_bare([(fact["uid"], fact["split"]) for fact in facts if fact["object"] < 0], len(facts))
    clips, texts, objects = ([fact[name] for fact in facts] for name in ("clip", "text_row", "object"))
    visual, chosen = _chosen(store, store.visual_paths(levels), clips, steps or {})
    masked = objects[0] >= 0
    wanted = [(store.schema.with_scales(*visual.values(), store.audio_path), clips),
              (store.schema.with_scales(store.text_path, store.valid_path), texts)]  # fmt: skip
    wanted += [(store.schema.object_paths, objects)] * masked
    slots = [{place: slot for slot, place in enumerate(dict.fromkeys(own))} for _, own in wanted]
    found = store.read_rows(
        {path: store.rows(path, list(slot)) for (paths, _), slot in zip(wanted, slots, strict=True) for path in paths},
        memory.empty, {path: chosen[name] for name, path in visual.items() if name in chosen},
    )

    def each(distinct: Sequence[Tensor], own: Sequence[int], slot: Mapping[int, int]) -> Tensor:
        """The row of each expression."""
        rows = [distinct[slot[place]] for place in own]
        return torch.stack(rows, out=memory.empty((len(rows), *rows[0].shape), rows[0].dtype))

    text, sound = (values_of(store.specs[path], found) for path in (store.text_path, store.audio_path))
    scales = {name: found[scale] for name, path in visual.items() if (scale := store.specs[path].scale_path)}
    places = {name: Maps.places_of(own, len(store.steps)) for name, own in chosen.items()
              if [*own] != [*range(len(own))]}  # fmt: skip
    labelled = each(list(found[LABELLED]), objects, slots[2]) if masked else None
    return Batch(
        visual=Maps({name: found[path] for name, path in visual.items()}, scales, places), audio=sound,
        text=each(list(text), texts, slots[1]),
        valid=each(list(found[store.valid_path]), texts, slots[1]),
        clip=torch.tensor([slots[0][place] for place in clips]),
        mask=each(_masks(store, found), objects, slots[2]) if masked else None,
        labelled=None if labelled is None else labelled.logical_and_(store.within(clips)),
        uid=[fact["uid"] for fact in facts], split=[fact["split"] for fact in facts],
        dimension=[fact["dimension"] for fact in facts], text_string=[fact["text"] for fact in facts],
    ).known()  # fmt: skip


def _masks(store: FeatureStore, found: Mapping[str, Tensor]) -> list[Tensor]:
    sizes = found[SIZE] if SIZE in found else [None] * len(found[MASK])
    return [store.unpacked(mask, size) for mask, size in zip(found[MASK], sizes, strict=True)]


def _chosen(
    store: FeatureStore, visual: Mapping[str, str], clips: Sequence[int], steps: StepsRead
) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Paths of the maps to read, pooled ones included, and the steps of those that are not read whole.

    Where the store lacks a pooled map, or its row of a clip, the map itself is read in those steps too.
    """
    paths, wanted = dict(visual), {name: {*own} for name, own in steps.items() if name in visual}
    for name, own in steps.items():
        source, _, by = name.rpartition("/")
        if name in visual or source not in wanted:
            continue
        path = pooled_path(store, visual[source], int(by))
        if path is None or -1 in store.rows_of(store.specs[path].table)[[*clips]]:
            wanted[source] |= {*own}
        else:
            paths[name], wanted[name] = path, {*own}
    return paths, {name: sorted(own) for name, own in wanted.items() if len(own) < len(store.steps)}


def _refuse_bare(bare: Sequence[tuple[str, str]], num_expressions: int) -> None:
    """Checks that either all expressions of a batch have a mask or none has."""
    if 0 < len(bare) < num_expressions:
        uid, split = bare[0]
        raise DatasetError(f"{len(bare)} of {num_expressions} expressions of a batch have no mask, e.g. {uid!r} of "
                           f"split {split!r}; choose splits that all have masks, or splits that have none")


def batches(
    store: FeatureStore, indices: Sequence[int], batch_size: int, *, seed: int | None = None, epoch: int = 0,
    expressions_per_clip: int = 1, levels: Sequence[str] | None = None, device: torch.device | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Yields batches of the expressions `indices`, which may repeat; the last batch may be smaller.

    The memory of a batch's maps is reused for a later batch once nothing refers to it.

    Args:
        seed: determines the order together with `epoch`; None keeps the given order.
        expressions_per_clip: shuffle groups of up to this many expressions of one clip instead of single expressions,
            so that a batch reads fewer clips.
        levels: visual levels to read; None reads those that the model reads.
        device: see `read_batches`.
    """
    rows = batch_rows(store, indices, batch_size, seed=seed, epoch=epoch, expressions_per_clip=expressions_per_clip)
    for (batch,) in read_batches(store, (([part], {}) for part in rows), levels, device):
        yield batch


def batch_rows(
    store: FeatureStore, indices: Sequence[int], batch_size: int, *, seed: int | None = None, epoch: int = 0,
    expressions_per_clip: int = 1,
) -> list[list[int]]:  # fmt: skip
    """The expressions in each of the `batches` of `indices`."""
    order = list(indices)
    if seed is not None:
        clips = store.expressions["clip"].to_numpy()[np.array(order, int)]
        order = shuffled(order, clips, expressions_per_clip, np.random.default_rng([seed, epoch]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def read_batches(
    store: FeatureStore, wanted: Iterable[tuple[Sequence[Sequence[int]], StepsRead]],
    levels: Sequence[str] | None = None, device: torch.device | None = None,
) -> Iterator[list[Batch]]:  # fmt: skip
    """Yields batches in pieces, each read from the store directly into reused memory.

    Args:
        wanted: for each batch, the expressions of each of its pieces, and the steps to read; see `read_batch`.
        device: the device that will use the batches. If it has streams, batches are copied on a separate stream, and
            `Batch.to` makes the current stream wait for the copy.
    """
    levels = default_levels(store) if levels is None else levels
    sender = None if device is None else Sender.to(device)
    memory = Recycler(pinned=sender is not None)
    try:
        for pieces, steps in wanted:
            found = (read_batch(store, piece, levels, memory, steps) for piece in pieces)
            yield [*found] if sender is None else [sender.send(batch) for batch in found]
    finally:
        if sender is not None:
            sender.finish()


def shuffled(
    indices: Sequence[int], clips: Int[np.ndarray, "b"], expressions_per_clip: int, rng: np.random.Generator
) -> list[int]:
    """Shuffles `indices` in groups of up to `expressions_per_clip` expressions of one clip."""
    by_clip: dict[int, list[int]] = {}
    for place in rng.permutation(len(indices)):
        by_clip.setdefault(int(clips[place]), []).append(int(indices[place]))
    groups = [
        rows[start : start + expressions_per_clip]
        for _, rows in sorted(by_clip.items())
        for start in range(0, len(rows), expressions_per_clip)
    ]
    return [index for group in rng.permutation(len(groups)) for index in groups[group]]
