"""Which expressions a trial trains on in each epoch; every choice follows from the seed and the epoch."""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from experiments.evaluate import rows_of
from refavs.data.dataset import Batch, batches
from refavs.errors import StoreError
from refavs.model.sizes import FeatureSizes

if TYPE_CHECKING:
    import pandas as pd

    from experiments.config import TrialConfig
    from refavs.store import FeatureStore


def derived_seed(seed: int, *parts: object) -> int:
    """A seed of its own for each use, the same on every machine."""
    return zlib.crc32(repr((seed, *parts)).encode())


class Sampler:
    """Chooses the training expressions of each epoch; the choice follows from the seed and the epoch alone."""

    def __init__(self, config: "TrialConfig", store: "FeatureStore") -> None:
        self.config, self.store = config, store
        self.levels = FeatureSizes.from_store(store, config.model.trains_pixel_decoder).levels
        table = store.expressions
        rows = rows_of(store, ("train",))
        if not rows:
            counts = ", ".join(f"{name} {count}" for name, count in table["split"].value_counts().items())
            raise StoreError(
                f"{store.location} has no expressions of split train with masks (it has {counts or 'none at all'}); "
                "extract a source that has them, as refavs-synth writes it"
            )
        groups: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            groups["" if config.train.sampling == "uniform" else kind_of(table, row)].append(row)
        self.groups = [np.array(groups[name]) for name in sorted(groups)]
        self.num_steps = config.train.steps_per_epoch or math.ceil(len(rows) / config.train.batch_size)

    def rows(self, epoch: int) -> list[int]:
        """The expressions of an epoch: each group shuffled, and again when it is used up."""
        wanted = self.num_steps * self.config.train.batch_size
        if not self.config.train.steps_per_epoch and len(self.groups) == 1:
            wanted = len(self.groups[0])
        rng = np.random.default_rng(derived_seed(self.config.seed, "rows", epoch))
        share = math.ceil(wanted / len(self.groups))
        drawn = []
        for group in self.groups:
            rounds = [rng.permutation(group) for _ in range(math.ceil(share / len(group)))]
            drawn.append(np.concatenate(rounds)[:share])
        return [int(row) for row in rng.permutation(np.concatenate(drawn))[:wanted]]

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        train = self.config.train
        return batches(
            self.store, self.rows(epoch), train.batch_size, seed=self.config.seed, epoch=epoch,
            expressions_per_clip=train.expressions_per_clip, levels=self.levels,
        )


def kind_of(table: "pd.DataFrame", row: int) -> str:
    """The dimension of an expression, or `null` where it refers to nothing."""
    if str(table["clip_id"].iloc[row]).startswith("null_"):
        return "null"
    return str(table["dimension"].iloc[row])
