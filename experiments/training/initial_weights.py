"""Initial weights of the trials of a grid: pretrained decoders and trained heads, checked before anything starts."""

import dataclasses
import functools
from pathlib import Path

from experiments.grid.expand import Grid
from experiments.grid.trial import Trial, refuse_twins
from experiments.records.stores import Features
from refavs.config import replace
from refavs.errors import ConfigError
from refavs.model.checkpoint import checkpoint_digest, read_config
from refavs.model.heads.registry import default_options, implementation_of


def with_weights(grid: Grid, weights_dir: Path | None) -> Grid:
    """Adds to the grid the pretrained weights that its trials start from.

    Args:
        weights_dir: the same folder as for refavs-extract; not needed if all trials start from random weights.

    Raises:
        ConfigError: a trial starts from pretrained weights, but no folder is given.
        WeightsError: the folder lacks these weights.
    """
    starting = [trial for trial in grid.kinds if trial.config.model.pretrained]
    if starting and weights_dir is None:
        model = starting[0].config.model
        setting, folder = f"model.{model.weights_setting}", model.pretrained
        raise ConfigError(f"trial {starting[0].name!r} has {setting}={folder}; give the folder that has {folder}/ by "
                          f"--weights-dir, or take --set {setting}=random")  # fmt: skip

    @functools.cache
    def stamp(head: str, folder: Path) -> str:
        return implementation_of(default_options(head)).pretrained_stamp(folder)

    def found(trial: Trial) -> Trial:
        model = trial.config.model
        if model.pretrained is None or weights_dir is None:
            return trial
        digests = {model.weights_setting: stamp(model.head, weights_dir / model.pretrained)}
        return dataclasses.replace(trial, digests=digests, weights_dir=weights_dir.absolute())

    return grid.with_kinds(found)


def with_checkpoints(grid: Grid, features: Features, any_store: bool = False) -> Grid:
    """Adds to the grid the trained heads that its trials start from.

    Args:
        features: identifies the features that a trial reads, as `stores.features_in` does.
        any_store: accept a head that was trained on other features.

    Raises:
        ConfigError: a head was trained on other features.
        WeightsError: a folder has no checkpoint.
    """
    def found(trial: Trial) -> Trial:
        init = trial.config.train.init
        if init is None:
            return trial
        folder = Path(init).absolute()
        kind = implementation_of(trial.config.model)
        if not kind.own_format:  # a head's own format does not record a store
            known = read_config(folder)["facts"].get("store")
            own = features(trial)
            if known != own and not any_store:
                raise ConfigError(
                    f"trial {trial.name!r}: the head in {init} was trained on the features {str(known)[:12]}, these "
                    f"are {own[:12]}; give the store it was trained on, or --any-store to train it on other features"
                )
        digest = kind.own_stamp(folder) if kind.own_format else checkpoint_digest(folder)
        digests = {**trial.digests, "init": digest}
        return dataclasses.replace(trial, config=replace(trial.config, {"train.init": str(folder)}), digests=digests)

    grid = grid.with_kinds(found)
    refuse_twins(f"grid {grid.name}", grid.trials)
    return grid
