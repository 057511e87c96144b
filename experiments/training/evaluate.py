"""Evaluates every metric of a head on the splits of a store, in total and by dimension."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.grid.config import TrainConfig
from refavs.data.batches import Batch, batches
from refavs.data.prefetch import Ahead, depth_for
from refavs.data.splits import Splits
from refavs.errors import RefAVSError
from refavs.finite import require_finite_probs
from refavs.machine.accelerator import resolved_precision
from refavs.metrics import Recorder, SegmentationMetrics, add_to_groups, batch_counts, write_statistics
from refavs.metrics.groups import group_names, named_values
from refavs.model.batch_cache import Once
from refavs.model.heads.protocol import Head
from refavs.store import FeatureStore


class Trained(NamedTuple):
    """A head to evaluate, and how it was trained."""

    config: TrainConfig
    model: Head


def evaluate_together(
    heads: Sequence[Trained], store: FeatureStore, splits: Sequence[str], device: torch.device,
    recorders: Sequence[Recorder | None],
) -> list[dict[str, float] | Exception]:
    """Metrics of each head as fractions by name: `test_s/J`, `test_s/acoustic/J`, and `mix/J` if there are several test
    splits. Every batch is read once.

    Splits without expressions and metrics that are undefined on a split are left out.

    Args:
        recorders: one for each head, or None; receives the statistics of each expression and frame, from which all
            other protocols are computed.

    Returns:
        For each head its metrics, or the error that its predictions caused.
    """
    groups: list[dict[str, SegmentationMetrics]] = [{} for _ in heads]
    errors: dict[int, Exception] = {}
    rows, named = rows_of(store, splits), Splits.of(store.attributes)
    place = 0
    for batch, found in predictions_together(heads, store, rows, device):
        assert batch.mask is not None
        names = [group_names(named, *places) for places in zip(batch.split, batch.dimension, strict=True)]
        for number, probs in found:
            if number in errors:
                continue
            recorder = recorders[number]
            try:
                if recorder is None:
                    counts = batch_counts(probs, batch.mask, batch.labelled)
                else:
                    counts = recorder.add(rows[place : place + len(batch)], probs, batch.mask, batch.labelled)
            except (RefAVSError, ValueError) as error:  # probabilities are NaN
                errors[number] = error
                continue
            add_to_groups(groups[number], counts, names)
        place += len(batch)
    values = [named_values({name: sums.compute() for name, sums in group.items()}, named) for group in groups]
    return [errors.get(number, value) for number, value in enumerate(values)]


def record_together(
    heads: Sequence[Trained], store: FeatureStore, splits: Sequence[str], device: torch.device, paths: Sequence[Path]
) -> list[dict[str, float] | Exception]:
    """As `evaluate_together`, and writes the statistics of the same inference to the path of each head; none for splits
    without masks. A failed write becomes the error of that head.
    """
    recorders = [Recorder(table=store.expressions, store=store.fingerprint) for _ in heads]
    found = evaluate_together(heads, store, splits, device, recorders)
    for number, (recorder, path) in enumerate(zip(recorders, paths, strict=True)):
        if found[number] and not isinstance(found[number], Exception):
            try:
                write_statistics(path, recorder.statistics())
            except Exception as error:
                found[number] = error
    return found


def predictions(
    config: TrainConfig, model: Head, store: FeatureStore, rows: Sequence[int], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Yields the batches of `rows` with the probability of each pixel at the size of the masks.

    Raises:
        StatisticsError: some probabilities were NaN; raised after the last batch.
    """
    finite = []
    for batch, found in predictions_together([Trained(config, model)], store, rows, device):
        for _, probs in found:
            finite.append(probs.isfinite().all())
            yield batch, probs
    if finite:
        require_finite_probs(f"{len(rows)} expressions", torch.stack(finite).all())


@torch.no_grad()
def predictions_together(
    heads: Sequence[Trained], store: FeatureStore, rows: Sequence[int], device: torch.device
) -> Iterator[tuple[Batch, Iterator[tuple[int, Tensor]]]]:
    """As `predictions` for heads that read the same maps: yields each batch with a head's number and its prediction.

    A head's probabilities are computed on demand, so that only one head's are in memory.
    """
    if not heads:
        return
    modes = [model.training for _, model in heads]
    for _, model in heads:
        model.eval()
    levels = all_levels(model for _, model in heads)
    read = batches(store, rows, heads[0].config.eval_batch_size, levels=levels, device=device)
    for on_its_way in Ahead(read, depth_for(device)):
        yield (batch := on_its_way.to(device)), _predicted(heads, batch)
    for mode, (_, model) in zip(modes, heads, strict=True):
        model.train(mode)


def all_levels(models: Iterable[Head]) -> list[str]:
    """The levels to read for models that share batches, i.e. those that any one of them needs."""
    return list(dict.fromkeys(level for model in models for level in model.sizes.levels))


@torch.no_grad()
def _predicted(heads: Sequence[Trained], batch: Batch) -> Iterator[tuple[int, Tensor]]:
    once = Once(keep=len(heads) > 1)
    assert batch.mask is not None
    height, width = batch.mask.shape[-2:]
    for number, (config, model) in enumerate(heads):
        with autocast(config, batch.audio.device):
            output = model(batch, once=once)
        yield number, model.probs(output, (height, width))


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The context in which the model runs at the precision of `config`."""
    precision = resolved_precision(config.precision, device)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def rows_of(store: FeatureStore, splits: Sequence[str]) -> list[int]:
    """The expressions of `splits` that have masks, grouped by clip so that each clip's maps are read once."""
    table = store.expressions
    rows = np.flatnonzero((table["split"].isin(list(splits)) & (table["object"] >= 0)).to_numpy())
    clips = table["clip"].to_numpy()[rows]
    return [int(row) for row in rows[np.argsort(clips, kind="stable")]]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Context with one torch thread, for many small operations: synchronising threads gains nothing there and takes 35
    times as long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
