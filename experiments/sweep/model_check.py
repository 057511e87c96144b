"""Checks the trials of a grid against a store before anything runs."""

import contextlib

import torch

from experiments.grid.expand import Grid
from experiments.records.stores import store_of
from experiments.sweep.search import refuse_unmeasured
from experiments.training.loop import load_start
from refavs.data.splits import Splits, refers_to_nothing
from refavs.errors import RefAVSError
from refavs.model.heads.registry import implementation_of
from refavs.store import FeatureStore


def check_models(grid: Grid, store: FeatureStore) -> list[str]:
    """Builds the head of each distinct kind of trial once, to refuse settings that do not fit the store early.

    Returns:
        What the user should know, one line each: parts of pretrained decoders that start from random weights
        nevertheless, and heads that lack expressions they learn from.

    Raises:
        ConfigError: unusable settings, with the trial's name.
        WeightsError: initial weights that are damaged, of another size, or do not belong to the store's features.
    """
    if grid.search:
        refuse_unmeasured(grid.search.plan, store)
    known, remarks = set(), {}
    for trial in grid.kinds:
        options, init, own = trial.config.model, trial.config.train.init, store_of(trial, store)
        kind = (options.same_cost(), init, own.fingerprint)
        if kind in known:
            continue
        known.add(kind)
        try:
            plain = init is None and trial.weights_dir is None
            with torch.device("meta") if plain else contextlib.nullcontext():
                model = implementation_of(options).from_store(own, options)
            if not plain:
                for part in load_start(trial.config, model, own, trial.weights_dir):
                    remarks[f"starts from random weights, not from the checkpoint: {part}"] = None
        except RefAVSError as error:
            raise type(error)(f"trial {trial.name!r}: {error}") from error
        if (told := options.needs().without_null) and trial.config.train.epochs and not _trains_on_null(own):
            remarks[f"trial {trial.name!r}: no expression to train on refers to nothing; {told}"] = None
    return list(remarks)


def _trains_on_null(store: FeatureStore) -> bool:
    """Whether an expression to train on refers to nothing."""
    table = store.expressions
    return bool(refers_to_nothing(table)[table["split"].isin(Splits.of(store.attributes).train)].any())
