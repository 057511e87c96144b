"""Groups trials that train together in one process and share one read of the store."""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch

from experiments.cluster.resources import Resources
from experiments.grid.config import TrialConfig, TrialResources
from experiments.records.ledger import Entry
from experiments.training.batch_size import bytes_of_batch
from refavs.errors import RefAVSError
from refavs.model.heads.registry import implementation_of
from refavs.model.memory_budget import batches_held, memory_bytes, training_bytes
from refavs.model.options import HeadOptions
from refavs.store import FeatureStore

MOST = 8  # trials in an automatic group; with more, a failure costs more than the saved reads
MEMORY_SHARE = 0.5  # of a process's memory without batches; the rest is for one trial's step


def reading(config: TrialConfig) -> Hashable:
    """Key of trials that read the same batches in the same order, in training and evaluation."""
    train, model = config.train, config.model
    return (
        config.order_seed, model.head, tuple(model.use.items()),
        model.needs().maps[0][:1],  # one read loads all maps of a level
        train.steps_per_epoch, train.batch_size, train.accumulate, train.expressions_per_clip, train.frames,
        train.sampling, train.acoustic_temporal_weight, train.eval_batch_size, config.resources,
    )  # fmt: skip


def groups(
    entries: Sequence[Entry],
    fuse: int | Literal["auto"],
    places: Callable[[TrialResources], int],
    limit: Callable[[TrialConfig], int] = lambda config: MOST,
) -> list[list[Entry]]:
    """Groups trials to run together, ordered by the first trial of each; a trial with several workers stays alone.

    Args:
        fuse: maximum size of a group; `auto` makes groups as large as `limit` allows while every slot has work.
        places: number of trials with given resources that run at the same time.
        limit: maximum number of trials like a given one in a group.
    """
    alike: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        alone = fuse == 1 or entry.trial.config.resources.workers > 1
        alike.setdefault(entry.key if alone else (entry.trial.store, reading(entry.trial.config)), []).append(entry)
    least = {key: math.ceil(len(like) / _largest(like, fuse, limit)) for key, like in alike.items()}
    counts = dict(least)
    if fuse == "auto":
        wanted = max((places(like[0].trial.config.resources) for like in alike.values()), default=0)
        while sum(counts.values()) < wanted and (wide := [key for key in counts if counts[key] < len(alike[key])]):
            counts[max(wide, key=lambda key: len(alike[key]) / counts[key])] += 1
    order = {entry.key: index for index, entry in enumerate(entries)}
    found = [group for key, like in alike.items() for group in _split(like, counts[key])]
    return sorted(found, key=lambda group: order[group[0].key])


def groups_on(
    store: FeatureStore, entries: Sequence[Entry], resources: Resources, places: Callable[[TrialResources], int]
) -> list[list[Entry]]:
    """As `groups`, limited by memory."""
    if not entries:
        return []
    num_places = max(places(entry.trial.config.resources) for entry in entries)
    return groups(entries, resources.fuse, places, memory_limit(store, num_places, resources))


def memory_limit(
    store: FeatureStore, num_places: int, resources: Resources | None = None
) -> Callable[[TrialConfig], int]:
    """Returns a function for the number of equal trials that fit into this machine's memory, shared by `num_places`.

    Args:
        resources: default resources of trials.
    """
    resources = resources or Resources()

    def limit(config: TrialConfig) -> int:
        copies = int(config.train.ema_decay > 0) + int(config.train.patience > 0)
        try:
            taken = bytes_of_head(store, config.model, copies)
        except RefAVSError:  # this head fails in its own process, which reports the error
            return MOST
        gpus = resources.ask(config.resources).gpus
        device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
        of_place = memory_bytes(device) / max(1, num_places) - batches_held(device) * bytes_of_batch(config, store)
        return max(1, min(MOST, int(MEMORY_SHARE * of_place / taken)))

    return limit


@functools.lru_cache(maxsize=256)
def bytes_of_head(store: FeatureStore, options: HeadOptions, copies: int) -> int:
    """Bytes that a trial keeps in memory between steps, from a head without allocated weights."""
    with torch.device("meta"):
        model = implementation_of(options).from_store(store, options)
    trained = sum(p.numel() for p in model.trained_parameters())
    return training_bytes(trained, sum(p.numel() for p in model.parameters()), copies)


def _largest(like: Sequence[Entry], fuse: int | Literal["auto"], limit: Callable[[TrialConfig], int]) -> int:
    return min(limit(entry.trial.config) for entry in like) if fuse == "auto" and len(like) > 1 else _number(fuse)


def _number(fuse: int | Literal["auto"]) -> int:
    return MOST if fuse == "auto" else fuse


def _split(entries: Sequence[Entry], count: int) -> list[list[Entry]]:
    """Splits entries into parts of about the same size."""
    bounds = [len(entries) * part // count for part in range(count + 1)]
    return [list(entries[start:end]) for start, end in itertools.pairwise(bounds)]
