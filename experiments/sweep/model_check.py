"""Checks the trials of a grid against a store before anything runs."""

import contextlib

import torch

from experiments.grid.expand import Grid
from experiments.records.stores import store_of
from experiments.sweep.search import refuse_unmeasured
from experiments.training.loop import load_start
from refavs.errors import RefAVSError
from refavs.model.heads.registry import implementation_of
from refavs.store import FeatureStore


def check_models(grid: Grid, store: FeatureStore) -> list[str]:
    """Builds the head of each distinct kind of trial once, to refuse settings that do not fit the store early.

    Returns:
        Parts of pretrained decoders that start from random weights nevertheless.

    Raises:
        ConfigError: unusable settings, with the trial's name.
        WeightsError: initial weights that are damaged, of another size, or do not belong to the store's features.
    """
    if grid.search:
        refuse_unmeasured(grid.search.plan, store)
    known, fresh = set(), {}
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
                fresh |= dict.fromkeys(load_start(trial.config, model, own, trial.weights_dir))
        except RefAVSError as error:
            raise type(error)(f"trial {trial.name!r}: {error}") from error
    return list(fresh)
