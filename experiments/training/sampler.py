"""Chooses the expressions that a trial trains on in each epoch, determined by the seed and the epoch."""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from experiments.grid.config import TrainConfig, TrialConfig
from experiments.training.evaluate import all_levels, rows_of
from refavs.data.batches import Batch, StepsRead, batch_rows, read_batches
from refavs.data.cues import ACOUSTIC_TEMPORAL
from refavs.data.splits import Splits, refers_to_nothing
from refavs.errors import StoreError
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.protocol import Head
from refavs.store import FeatureStore

NULL = "null"


def derived_seed(seed: int, *parts: object) -> int:
    """Derives a separate seed for each use, the same on every machine."""
    return zlib.crc32(repr((seed, *parts)).encode())


class Sampler:
    """Chooses the training expressions of each epoch; depends only on the seed and the epoch."""

    def __init__(self, config: TrialConfig, store: FeatureStore, device: torch.device | None = None) -> None:
        self.config, self.store, self.device = config, store, device or torch.device("cpu")
        self.levels = FeatureSizes.from_store(store, config.model.needs(), config.model.head).levels
        table = store.expressions
        rows = rows_of(store, Splits.of(store.attributes).train)
        if not rows:
            counts = ", ".join(f"{name} {count}" for name, count in table["split"].value_counts().items())
            raise StoreError(
                f"{store.location} has no expressions to train on with masks (it has {counts or 'none at all'}); "
                "extract a source that has them, e.g. one written by refavs-synth"
            )
        groups: dict[str, list[int]] = defaultdict(list)
        kinds = table["dimension"].where(~refers_to_nothing(table), NULL).astype(str).tolist()
        for row in rows:
            groups["" if config.train.sampling == "uniform" else kinds[row]].append(row)
        self.groups = [np.array(groups[name]) for name in sorted(groups)]
        hardest = config.train.acoustic_temporal_weight
        weights = [hardest if name == ACOUSTIC_TEMPORAL else 1.0 for name in sorted(groups)]
        self.shares = [weight / sum(weights) for weight in weights]
        self.num_steps = steps_per_epoch(config.train, len(rows))

    def rows(self, epoch: int) -> list[int]:
        """The expressions of an epoch; each group is shuffled, and reshuffled when it is used up."""
        wanted = self.num_steps * self.config.train.batch_size
        if not self.config.train.steps_per_epoch and len(self.groups) == 1:
            wanted = len(self.groups[0])
        rng = np.random.default_rng(derived_seed(self.config.order_seed, "rows", epoch))
        drawn = []
        for group, share in zip(self.groups, self.shares, strict=True):
            count = math.ceil(wanted * share)
            rounds = [rng.permutation(group) for _ in range(math.ceil(count / len(group)))]
            drawn.append(np.concatenate(rounds)[:count])
        return [int(row) for row in rng.permutation(np.concatenate(drawn))[:wanted]]

    def batches(
        self, epoch: int, rank: int = 0, num_workers: int = 1, heads: Sequence[Head] = ()
    ) -> Iterator[list[tuple[int, Batch]]]:
        """The batches of an epoch in numbered parts of about equal size; only the parts of worker `rank`.

        Args:
            heads: those that read the batches, which then have only the maps and steps that one of them reads.
        """
        train = self.config.train
        whole = batch_rows(
            self.store, self.rows(epoch), train.batch_size, seed=self.config.order_seed, epoch=epoch,
            expressions_per_clip=train.expressions_per_clip,
        )
        mine = [list(self._parts(rows, num_workers * train.accumulate))[rank :: num_workers] for rows in whole]
        wanted = (([rows for _, rows in parts], steps_read(heads, self.chosen_steps(epoch * self.num_steps + index)))
                  for index, parts in enumerate(mine))  # fmt: skip
        read = read_batches(self.store, wanted, all_levels(heads) or self.levels, self.device)
        for parts, found in zip(mine, read, strict=True):
            yield [(number, batch) for (number, _), batch in zip(parts, found, strict=True)]

    def chosen_steps(self, number: int) -> list[int] | None:
        """The steps of a clip that training step `number` decodes, for all parts of its batch; None means all."""
        return chosen_steps(self.config, number, len(self.store.steps))

    def _parts(self, rows: list[int], num_parts: int) -> Iterator[tuple[int, list[int]]]:
        """Splits rows into parts without empty ones; neighbours, which often share a clip, stay together."""
        for number in range(num_parts):
            part = rows[number * len(rows) // num_parts : (number + 1) * len(rows) // num_parts]
            if part:
                yield number, part


def chosen_steps(config: TrialConfig, number: int, num_steps: int) -> list[int] | None:
    """Which of the `num_steps` steps of a clip the training step `number` decodes; None means all."""
    wanted = config.train.frames
    if not wanted or wanted >= num_steps:
        return None
    rng = np.random.default_rng(derived_seed(config.order_seed, "frames", number))
    return sorted(rng.permutation(num_steps)[:wanted].tolist())


def steps_read(heads: Sequence[Head], chosen: Sequence[int] | None) -> StepsRead:
    """The steps to read of each map for heads that share a batch, by its name; the other maps are read whole."""
    if chosen is None or not heads:
        return {}
    each = [head.steps_read(chosen) for head in heads]
    read = {size.name for head in heads for size in head.sizes.maps}
    whole = {name for name in read for head, own in zip(heads, each, strict=True)
             if name not in own and any(size.name == name for size in head.sizes.maps)}  # fmt: skip
    names = dict.fromkeys(name for own in each for name in own)
    return {name: sorted({step for own in each for step in own.get(name, ())})
            for name in names if name not in whole}  # fmt: skip


def steps_per_epoch(train: TrainConfig, num_rows: int) -> int:
    """Number of steps in an epoch over `num_rows` expressions."""
    return train.steps_per_epoch or math.ceil(num_rows / train.batch_size)
