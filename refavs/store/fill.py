"""Reads rows of arrays into existing memory: from a memory map, from disk with several readers, or from a server."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from refavs.store.backends.base import Folder, LocalFolder
from refavs.store.format.shard import ShardReader

READERS = 4  # threads for rows that are not in memory; disks serve several requests at once
THREAD_BYTES = 2**21  # a copy of less is not worth a thread


@runtime_checkable
class RowSource(Protocol):
    """What is needed of a `FeatureStore`."""

    folder: Folder
    verify: str

    def read(self, path: str, row: int, part: range | None = None) -> Tensor:
        """One row of an array, or the entries `part` of its first axis."""
        ...

    def shard_of(self, path: str, row: int) -> AbstractContextManager[tuple[ShardReader, int]]:
        """The shard that contains a row, and the row's place in it."""
        ...


class FillTarget(NamedTuple):
    """A row, or a part of it, and the memory to read it into.

    Attributes:
        part: consecutive entries of the row's first axis; None for the whole row.
    """

    path: str
    row: int
    out: np.ndarray
    part: range | None = None

    @property
    def flat(self) -> UInt8[np.ndarray, " b"]:
        """The memory as bytes."""
        return self.out.reshape(-1).view(np.uint8)


def targets_of(path: str, row: int, out: np.ndarray, chosen: Sequence[int], whole: int) -> list[FillTarget]:
    """What to read for the `chosen` ones of the `whole` entries of a row's first axis: a target per run of them."""
    if len(chosen) == whole:
        return [FillTarget(path, row, out)]
    starts = [place for place, entry in enumerate(chosen) if place == 0 or chosen[place - 1] + 1 != entry]
    return [FillTarget(path, row, out[start:stop], range(chosen[start], chosen[stop - 1] + 1))
            for start, stop in itertools.pairwise([*starts, len(chosen)])]  # fmt: skip


def fill(store: RowSource, targets: Sequence[FillTarget]) -> None:
    """Reads rows into their targets.

    Raises:
        StoreError: as for `FeatureStore.read`; the content of the targets is then undefined.
    """
    if not isinstance(store.folder, LocalFolder):
        store.folder.together([partial(_copy, store, [target]) for target in targets])
        return
    found = [(target, _readers(store, target)) for target in targets]
    warm = [target for target, calls in found if not calls]
    num_threads = min(torch.get_num_threads(), len(warm), 1 + sum(target.out.nbytes for target in warm) // THREAD_BYTES)
    _at_once(partial(_copy, store, iter(warm)), num_threads)
    cold = [(target, call) for target, calls in found for call in calls]
    _at_once(partial(_read, store, iter(cold)), min(READERS, len(cold)))
    for target in [target for target, calls in found if calls]:
        with store.shard_of(target.path, target.row) as (shard, place):
            shard.check_copy(place, target.flat, store.verify, target.part)


def _readers(store: RowSource, target: FillTarget) -> list[Callable[[], None]]:
    """Calls that read the row from disk; empty if it is in memory or the target is not contiguous."""
    if not target.out.flags.c_contiguous:
        return []
    with store.shard_of(target.path, target.row) as (shard, place):
        return shard.readers(place, target.flat, target.part)


def _copy(store: RowSource, targets: Iterable[FillTarget]) -> None:
    """Copies rows one after the other; several threads may share an iterator."""
    for path, row, out, part in targets:
        np.copyto(out, store.read(path, row, part).numpy())


def _read(store: RowSource, calls: Iterator[tuple[FillTarget, Callable[[], None]]]) -> None:
    for target, call in calls:
        with store.shard_of(target.path, target.row):  # names the shard in errors
            call()


def _at_once(work: Callable[[], None], num_threads: int) -> None:
    """Runs `work` in this thread and in others at the same time."""
    if num_threads < 2:
        work()
        return
    with ThreadPoolExecutor(num_threads - 1) as pool:
        others = [pool.submit(work) for _ in range(num_threads - 1)]
        work()
    for other in others:
        other.result()
