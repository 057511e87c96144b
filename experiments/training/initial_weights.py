"""What the trials of a grid start from: pretrained decoders and trained heads, found before anything starts."""

import dataclasses
from pathlib import Path

from experiments.grid.expand import Grid
from experiments.grid.trial import Trial, refuse_twins
from refavs.config import replace
from refavs.errors import ConfigError
from refavs.model.checkpoint import checkpoint_digest, read_config
from refavs.model.heads.released import released_stamp
from refavs.model.pretrained import Mask2Former


def with_weights(grid: Grid, weights_dir: Path | None) -> Grid:
    """The grid with the files that its trials start from.

    Args:
        weights_dir: as refavs-extract takes it; trials that start from random weights need none.

    Raises:
        ConfigError: a trial starts from weights, and no folder is given.
        WeightsError: the folder has no such weights.
    """
    starting = [trial for trial in grid.kinds if trial.config.model.decoder_weights != "random"]
    if not starting:
        return grid
    if weights_dir is None:
        kind = starting[0].config.model.decoder_weights
        raise ConfigError(
            f"trial {starting[0].name!r} has model.decoder_weights={kind}; give the folder that has {kind}/ by "
            "--weights-dir, or take --set model.decoder_weights=random"
        )
    digests, folder = {"decoder_weights": Mask2Former.within(weights_dir).stamp}, weights_dir.absolute()

    def found(trial: Trial) -> Trial:
        starts = trial.config.model.decoder_weights != "random"
        return dataclasses.replace(trial, digests=digests, weights_dir=folder) if starts else trial

    return grid.with_kinds(found)


def with_checkpoints(grid: Grid, fingerprint: str, any_store: bool = False) -> Grid:
    """The grid with the trained heads that its trials start from.

    Args:
        fingerprint: of the features that the trials read.
        any_store: accept a head that was trained on other features.

    Raises:
        ConfigError: a head that was trained on other features.
        WeightsError: a folder without a checkpoint.
    """
    def found(trial: Trial) -> Trial:
        init = trial.config.train.init
        if init is None:
            return trial
        folder = Path(init).absolute()
        if trial.config.model.variant == "released":  # a file that knows no store
            return dataclasses.replace(
                trial, config=replace(trial.config, {"train.init": str(folder)}),
                digests={**trial.digests, "init": released_stamp(folder)},
            )  # fmt: skip
        known = read_config(folder)["facts"].get("store")
        own = trial.store.fingerprint if trial.store else fingerprint
        if known != own and not any_store:
            raise ConfigError(
                f"trial {trial.name!r}: the head in {init} was trained on the store {str(known)[:12]}, this one is "
                f"{own[:12]}; give the store that it knows, or --any-store to train it on other features"
            )
        digests = {**trial.digests, "init": checkpoint_digest(folder)}
        return dataclasses.replace(trial, config=replace(trial.config, {"train.init": str(folder)}), digests=digests)

    grid = grid.with_kinds(found)
    refuse_twins(f"grid {grid.name}", grid.trials)
    return grid
