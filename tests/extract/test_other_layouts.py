"""Other data sets from their folders to trained heads: extraction, and an epoch of EEMC and of a baseline."""

from pathlib import Path

import pytest

from experiments.grid.expand import expand
from experiments.records.ledger import read_metrics
from experiments.records.stores import features_in
from experiments.training.initial_weights import with_checkpoints
from experiments.training.loop import train
from extract.cli import main
from refavs.data.batches import batches
from refavs.store import FeatureStore
from tests.experiments.test_baseline_trial import STEPS
from tests.experiments.test_train import SMALL
from tests.extract.command import in_this_process, run_with, tiny
from tests.support.other_datasets import WRITERS

pytestmark = pytest.mark.usefixtures("small_networks")
# How many of its seconds are labelled, for each expression with an object.
LABELLED = {"avsbench-s4": {1, 5}, "avsbench-ms3": {5}, "avss": {1, 5, 10}, "omniavs": {3}, "mevis": {4, 10},
            "ref-youtube-vos": {10}}  # fmt: skip
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in WRITERS if name != "avsbench-s4"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["avsbench-s4", *OTHERS])
def test_heads_train_on_another_data_set(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_with(monkeypatch, in_this_process)
    root, seconds = WRITERS[name](tmp_path / "data"), 5 if name.startswith("avsbench") else 10
    levels = ("--levels", "backbone,pixel_decoder", "--seconds", seconds, "--layout", name)
    assert main([*map(str, tiny(root, tmp_path / "store", *levels))]) == 0
    store = FeatureStore(tmp_path / "store")
    silent = set(store.clips.loc[store.clips["silent"], "id"])
    has_sound = name not in ("mevis", "ref-youtube-vos")
    assert silent == ({*store.clips["id"]} if not has_sound else {"test/dog_barking/test000"} & {*store.clips["id"]})
    labelled = {int(batch.counted.sum()) for batch in batches(store, range(len(store)), 1) if batch.counted is not None}
    assert labelled == LABELLED[name]
    eemc = {**SMALL, "train.epochs": 1, "train.steps_per_epoch": 2}
    baseline = {**STEPS, "model.head": "avsbench", "model.channels": 8}
    for number, settings in enumerate((eemc, baseline)):
        (trial,) = with_checkpoints(expand("g", {"base": settings}, "g.yaml", {}), features_in(store)).trials
        result = train(trial.config, store, tmp_path / f"trial{number}")
        (record,) = read_metrics(tmp_path / f"trial{number}")
        assert record["metrics"]["train/loss"] > 0
        assert "val/J" in record["metrics"] and set(store.attributes["splits"]) >= {"train"}
        assert result["metrics"]
