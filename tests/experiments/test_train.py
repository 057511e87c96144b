"""The training loop: it learns, every setting counts, a resume changes nothing, and a bad loss stops it."""

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.baselines.compute import control_results_of
from experiments.grid.config import TrainConfig, TrialConfig
from experiments.grid.expand import Grid, Trial, expand
from experiments.records.ledger import Ledger, read_metrics
from experiments.records.stores import features_in
from experiments.sweep.model_check import check_models
from experiments.training.evaluate import Trained
from experiments.training.initial_weights import with_checkpoints
from experiments.training.learner import NonFiniteError, learning_rate
from experiments.training.loop import build_model, train
from experiments.training.resume import SupersededError
from experiments.training.sampler import Sampler
from refavs.choices import Role
from refavs.config import leaves, replace
from refavs.data.splits import Splits
from refavs.errors import ConfigError, StoreError, WeightsError
from refavs.metrics.groups import canonical_values, shown
from refavs.model.checkpoint import load_model, save_model
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store

SMALL = {
    "model.num_layers": 1, "model.num_queries": 3, "model.num_heads": 2, "model.feedforward_channels": 16,
    "model.visual_downsample": 2, "model.decoder_layers": 0, "loss.num_points": 0, "train.epochs": 3,
    "train.steps_per_epoch": 3, "train.batch_size": 6, "train.learning_rate": 0.003, "train.precision": "fp32",
}  # fmt: skip
CLIPS = {"train": 6, "val": 1, "test_s": 1, "test_u": 1, "test_n": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", CLIPS)


@pytest.fixture(scope="module")
def losses(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of a training of one epoch with the settings of `SMALL`."""
    return losses_of(store, tmp_path_factory.mktemp("trial"))


def losses_of(store: FeatureStore, folder: Path, **overrides: Any) -> list[float]:
    train(small(**{"train__epochs": 1, **overrides}), store, folder)
    return [record["metrics"]["train/loss"] for record in read_metrics(folder)]


def small(**overrides: Any) -> TrialConfig:
    return replace(TrialConfig(), SMALL | {name.replace("__", "."): value for name, value in overrides.items()})


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"epoch": record["epoch"], "step": record["step"], "metrics": {
            name: value for name, value in record["metrics"].items()
            if name not in ("train/seconds_per_step", "train/wait_share")
        }}
        for record in records
    ]  # fmt: skip


@pytest.mark.long
def test_train_beats_the_best_constant(store: FeatureStore, tmp_path: Path) -> None:
    config = small(train__epochs=1, train__steps_per_epoch=50, train__learning_rate=0.02, train__decay_start=0.5)
    result = train(config, store, tmp_path)["metrics"]
    best = max(values["test_s/J"] for values in canonical_values(control_results_of(store), Splits.of({})).values())
    assert result["test_s/J"] > best + 0.1
    assert result["mix/J"] == pytest.approx((result["test_s/J"] + result["test_u/J"]) / 2)


@pytest.mark.long
def test_train_knows_splits_by_their_roles(tmp_path: Path) -> None:
    splits: dict[str, Role] = {"fit": "train", "dev": "validation", "exam": "test", "quiz": "test", "void": "null-test"}
    store = make_store(tmp_path / "store", {"fit": 4, "dev": 1, "exam": 1, "quiz": 1, "void": 1}, roles=splits)
    assert store.attributes["splits"] == splits
    config = small(train__epochs=1, train__steps_per_epoch=2, train__patience=2, train__sampling="dimension")
    metrics = train(config, store, tmp_path / "trial")["metrics"]
    groups = {name.partition("/")[0] for name in metrics if name.endswith("/J")}
    assert groups == {"exam", "quiz", "void", "mix"} and "val/J" in read_metrics(tmp_path / "trial")[0]["metrics"]
    controls = canonical_values(control_results_of(store), Splits.of(store.attributes))
    assert {"exam/J", "mix/J", "void/S"} <= next(iter(controls.values())).keys()
    pictures = [path.name for path in sorted((tmp_path / "trial" / "overlays").iterdir())]
    assert len(pictures) == 2 and all("exam" in name for name in pictures)
    columns = [f"{column.group}/{column.metric.name}" for column in shown(Splits.of(store.attributes))]
    assert columns == ["exam/J", "exam/F", "quiz/J", "quiz/F", "mix/J", "mix/F", "void/S", "exam/false_empty"]


@pytest.mark.long
def test_train_leaves_everything_a_run_needs(store: FeatureStore, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    result = train(small(), store, tmp_path, seen.extend)
    assert 0 <= seen[0]["metrics"]["train/wait_share"] < 1
    assert 0 < 3 * seen[0]["metrics"]["train/seconds_per_step"] < seen[0]["seconds"]
    assert read_metrics(tmp_path) == seen and [record["epoch"] for record in seen] == [1, 2, 3]
    assert {"train/loss", "train/bce", "train/dice", "train/classification", "train/grad_norm", "train/learning_rate",
            "val/J", "val/F", "val/S", "val/false_empty", "val/acoustic/J"} <= set(seen[0]["metrics"])  # fmt: skip
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert {"test_s/J", "test_u/F", "test_n/S", "test_s/spatial/J", "mix/F", "parameters", "seconds"} <= set(
        result["metrics"]
    )
    assert not any(math.isnan(value) for value in result["metrics"].values())
    assert len(list((tmp_path / "overlays").glob("*.png"))) == 2
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()


@pytest.mark.long
def test_train_resumed_equals_undisturbed(store: FeatureStore, tmp_path: Path) -> None:
    config = small(
        train__frames=2, model__dropout=0.1, train__sampling="dimension", loss__num_points=16, train__accumulate=2,
        train__ema_decay=0.9, train__patience=5,
    )  # fmt: skip
    whole = train(config, store, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill_at_two(records: list[dict[str, Any]]) -> None:
        if records[-1]["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(config, store, tmp_path / "cut", kill_at_two)
    torch.manual_seed(99)
    seen: list[dict[str, Any]] = []
    resumed = train(config, store, tmp_path / "cut", seen.extend)
    assert without_times(seen) == without_times(read_metrics(tmp_path / "whole"))
    for name, value in whole["metrics"].items():
        assert name == "seconds" or resumed["metrics"][name] == value, name


@pytest.mark.long
def test_process_whose_trial_was_resumed_elsewhere_writes_no_more(store: FeatureStore, tmp_path: Path) -> None:
    """A host that is cut off does not know that its trial goes on elsewhere."""
    whole, config = tmp_path / "whole", small(train__epochs=3, train__steps_per_epoch=1)
    seen: list[dict[str, Any]] = []

    def resumed_after_one(records: list[dict[str, Any]]) -> None:
        seen.extend(records)
        if records[-1]["epoch"] == 1:
            train(config, store, whole)

    with pytest.raises(SupersededError, match=f"another process has resumed the trial in {whole}, so this one stops"):
        train(config, store, whole, resumed_after_one)
    assert [record["epoch"] for record in read_metrics(whole)] == [1, 2, 3] and len(seen) == 1
    assert read_metrics(whole)[0] == seen[0] and (whole / "result.json").is_file()


@pytest.mark.long
@pytest.mark.parametrize("place", ["trial", "sweep"])
def test_trial_asked_to_stop_ends_after_its_epoch_and_goes_on_later(
    store: FeatureStore, tmp_path: Path, place: str
) -> None:
    ledger = Ledger(tmp_path / "g")
    (entry,) = ledger.entries((Trial(name="a", config=small()),), lambda trial: "store")
    ledger.enter(entry, "store")

    def stop_at_two(records: list[dict[str, Any]]) -> None:
        if records[-1]["epoch"] == 2:
            (entry if place == "trial" else ledger).ask_to_stop()

    assert train(entry.trial.config, store, entry.folder, stop_at_two) == {} and entry.result is None
    assert train(entry.trial.config, store, entry.folder) == {} and len(read_metrics(entry.folder)) == 2
    assert (entry if place == "trial" else ledger).asked_to_stop
    with ledger.locked():
        ledger.enter(entry, "store")
        result = train(entry.trial.config, store, entry.folder)
    assert result["epoch"] == 3 and entry.result == result


@pytest.mark.long
def test_train_twice_is_equal_to_the_bit(store: FeatureStore, tmp_path: Path) -> None:
    config = small(model__dropout=0.1, loss__num_points=16, train__frames=2, train__epochs=1)
    first, second = (train(config, store, tmp_path / name)["metrics"] for name in ("a", "b"))
    del first["seconds"], second["seconds"]
    assert first == second
    records = [without_times(read_metrics(tmp_path / name)) for name in ("a", "b")]
    assert records[0] == records[1]
    saved = [(tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert saved[0] == saved[1]


@pytest.mark.long
def test_training_that_gets_no_better_ends_and_keeps_the_best_epoch(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    weights = []

    def scored(heads: Sequence[Trained], *others: Any) -> list[dict[str, float]]:
        weights.extend({name: value.clone() for name, value in model.state_dict().items()} for _, model in heads)
        return [{"val/J": next(scores)}]

    monkeypatch.setattr("experiments.training.loop.evaluate_together", scored)
    config = small(train__epochs=5, train__patience=2, train__steps_per_epoch=1)

    def kill_at_three(records: list[dict[str, Any]]) -> None:
        if records[-1]["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, store, tmp_path, kill_at_three)
    result = train(config, store, tmp_path)
    assert result["epoch"] == 4 and result["metrics"]["best_epoch"] == 2
    kept = load_model(tmp_path / "checkpoint").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in weights[1].items())
    assert any(not torch.equal(kept[name], value) for name, value in weights[3].items())


def test_early_stopping_without_validation_is_refused(tmp_path: Path) -> None:
    bare = make_store(tmp_path / "store", {"train": 1, "test_s": 1})
    with pytest.raises(ConfigError, match=r"train.patience is 1, and .* has no validation split; set it to 0"):
        train(small(train__patience=1), bare, tmp_path / "trial")


@pytest.mark.long
def test_training_starts_from_a_trained_head(store: FeatureStore, tmp_path: Path) -> None:
    train(small(train__epochs=1), store, tmp_path / "first")
    head = tmp_path / "first" / "checkpoint"
    warm = small(train__epochs=1, train__init=str(head), train__learning_rate=1e-9)
    train(warm, store, tmp_path / "warm")
    wanted, found = load_model(head).state_dict(), load_model(tmp_path / "warm" / "checkpoint").state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in wanted.items())


@pytest.mark.long
def test_head_of_another_store_or_size_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    train(small(train__epochs=1, train__steps_per_epoch=1), store, tmp_path / "first")
    head = tmp_path / "first" / "checkpoint"

    def grid_of(init: Path, **settings: Any) -> Grid:
        base = SMALL | {"train.init": str(init), **settings}
        return expand("g", {"base": base}, "g.yaml", {})

    (trial,) = with_checkpoints(grid_of(head), features_in(store)).trials
    (moved,) = with_checkpoints(grid_of(head.rename(tmp_path / "moved")), features_in(store)).trials
    assert trial.key("") == moved.key("") != expand("g", {"base": SMALL}, "g.yaml", {}).trials[0].key("")
    with pytest.raises(ConfigError, match=r"trained on the features .*, these are other; .* or --any-store to"):
        with_checkpoints(grid_of(tmp_path / "moved"), lambda trial: "other")
    (other,) = with_checkpoints(grid_of(tmp_path / "moved"), lambda trial: "other", any_store=True).trials
    assert other.digests == trial.digests
    with pytest.raises(WeightsError, match="no checkpoint in"):
        with_checkpoints(grid_of(tmp_path / "none"), features_in(store))
    wider = grid_of(tmp_path / "moved", **{"model.feedforward_channels": 24})
    with pytest.raises(WeightsError, match=r"trial 'g': .* has the wrong size of"):
        check_models(wider, store)


def test_trials_of_a_grid_may_differ_by_the_head_they_start_from(store: FeatureStore, tmp_path: Path) -> None:
    for name, loss in (("a", 0.1), ("b", 0.2)):
        facts = {"store": features_in(store)(Trial(name="", config=small()))}
        save_model(tmp_path / name, build_model(small(model__beta=loss), store), facts)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")

    def grid_of(*names: str) -> Grid:
        cases = {"anew": {}} | {name: {"train.init": str(tmp_path / name)} for name in names}
        return with_checkpoints(expand("g", {"base": SMALL, "cases": cases}, "g.yaml", {}), features_in(store))

    assert len({trial.key("") for trial in grid_of("a", "b").trials}) == 3
    with pytest.raises(ConfigError, match="'a, seed 0' and 'copy, seed 0' have the same settings"):
        grid_of("a", "copy")


@pytest.mark.long
def test_train_killed_after_its_last_state_keeps_that_epoch(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(train__epochs=1, train__steps_per_epoch=1)

    def killed(path: Path, history: list[dict[str, Any]]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("experiments.training.resume.write_history", killed)
        train(config, store, tmp_path)
    train(config, store, tmp_path)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1]


@pytest.mark.long
def test_train_again_returns_the_result_that_is_there(store: FeatureStore, tmp_path: Path) -> None:
    first = train(small(train__epochs=1), store, tmp_path)
    assert train(small(train__epochs=1), store, tmp_path) == first


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 2), ("steps_per_epoch", 2), ("batch_size", 5), ("expressions_per_clip", 3), ("frames", 1),
        ("sampling", "dimension"), ("order_seed", 5), ("learning_rate", 0.001), ("weight_decay", 0.5),
        ("warmup_steps", 5), ("decay_start", 0.9), ("clip_norm", 0.01), ("precision", "bf16"), ("precision", "fp16"),
    ],
)  # fmt: skip
def test_train_setting_changes_the_training(
    store: FeatureStore, losses: list[float], tmp_path: Path, name: str, value: Any
) -> None:
    assert losses_of(store, tmp_path, **{f"train__{name}": value}) != losses


@pytest.mark.long
@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_is_that_of_the_device_and_stays_that_of_the_trial(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr("refavs.machine.accelerator.bf16_is_fast", lambda device: fast)

    def trained(name: str, folder: Path, epochs: int) -> list[dict[str, Any]]:
        train(small(train__precision=name, train__epochs=epochs, train__decay_start=1.0), store, folder)
        return without_times(read_metrics(folder))

    expected = trained("bf16" if fast else "fp32", tmp_path / "named", 2)
    assert trained("auto", tmp_path / "auto", 1) == expected[:1]
    monkeypatch.setattr("refavs.machine.accelerator.bf16_is_fast", lambda device: not fast)  # as elsewhere
    (tmp_path / "auto" / "result.json").unlink()
    assert trained("auto", tmp_path / "auto", 2) == expected
    kept = json.loads((tmp_path / "auto" / "checkpoint" / "config.json").read_text())["facts"]["trial"]
    assert kept["train"]["precision"] == ("bf16" if fast else "fp32")


@pytest.mark.long
def test_eval_batch_size_changes_no_number(store: FeatureStore, tmp_path: Path) -> None:
    results = [
        train(small(train__eval_batch_size=size, train__epochs=1), store, tmp_path / str(size))["metrics"]
        for size in (1, 16)
    ]
    for name, value in results[0].items():
        assert name == "seconds" or results[1][name] == pytest.approx(value, abs=1e-6), name


def test_every_training_setting_is_tested() -> None:
    marks = [mark for mark in test_train_setting_changes_the_training.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    tested = {values[0] for values in marks[0].args[1]} | {
        "eval_batch_size", "accumulate", "ema_decay", "patience", "compile", "init", "acoustic_temporal_weight",
        # in test_learner.py and below
    }  # fmt: skip
    assert tested == set(leaves(TrainConfig()))


def test_loss_that_is_not_finite_names_the_batch(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(small(train__learning_rate=1e30), store, tmp_path)
    message = str(caught.value)
    assert "at epoch 1, step" in message and "lower train.learning_rate" in message
    assert message.count("train") >= 6 and "_thing_" in message
    assert not (tmp_path / "state").exists()


@pytest.mark.long
def test_picture_that_cannot_be_drawn_is_a_note_of_a_finished_trial(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ValueError("image file is truncated")

    monkeypatch.setattr("experiments.training.overlays.frame_pictures", broken)
    result = train(small(train__epochs=1), store, tmp_path)
    assert result["note"] == "overlays: ValueError: image file is truncated" and "test_s/J" in result["metrics"]
    assert json.loads((tmp_path / "result.json").read_text()) == result


@pytest.mark.long
def test_trial_whose_store_was_exchanged_keeps_no_result(tmp_path: Path) -> None:
    ours, other = (make_store(tmp_path / name, {"train": 2, "val": 1, "test_s": 1}, noise=noise)
                   for name, noise in (("s", 0), ("other", 1)))

    def exchange(records: list[dict[str, Any]]) -> None:
        if (tmp_path / "other").exists():
            (tmp_path / "s").rename(tmp_path / "away")
            (tmp_path / "other").rename(tmp_path / "s")

    with pytest.raises(StoreError):
        train(small(train__epochs=1), ours, tmp_path / "trial", exchange)
    assert not (tmp_path / "trial" / "result.json").exists()
    assert not (tmp_path / "trial" / "checkpoint").exists() and other.fingerprint != ours.fingerprint


def test_store_without_training_expressions_is_refused(tmp_path: Path) -> None:
    bare = make_store(tmp_path / "store", {"test_s": 1})
    with pytest.raises(StoreError, match=r"to train on with masks \(it has test_s 3\); extract a source"):
        train(small(), bare, tmp_path / "trial")


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [("epochs", 0, "a whole number from 1"), ("frames", -1, "0 or more"), ("learning_rate", 0.0, "a number above 0"),
     ("clip_norm", math.inf, "a number above 0"), ("decay_start", 1.5, "a share of all steps from 0 to 1"),
     ("ema_decay", 1.0, "from 0 .none. to below 1, as 0.999"),
     ("accumulate", 0, "a whole number from 1"), ("patience", -1, "0 or more")],
)  # fmt: skip
def test_setting_out_of_range_is_refused(name: str, value: float, accepted: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is {value}; accepted: {accepted}"):
        TrainConfig(**{name: value})


def test_learning_rate_warms_up_stays_and_decays() -> None:
    config = TrainConfig(learning_rate=2.0, warmup_steps=4, decay_start=0.5)
    rates = [learning_rate(config, step, 20) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and set(rates[4:11]) == {2.0}
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[15] == pytest.approx(1.0) and learning_rate(config, 20, 20) == pytest.approx(0.0)


def test_sampler_shows_each_training_expression_once_an_epoch(store: FeatureStore) -> None:
    sampler = Sampler(small(train__steps_per_epoch=0), store)
    rows = np.flatnonzero(store.expressions["split"] == "train").tolist()
    assert sampler.num_steps == math.ceil(len(rows) / 6)
    assert sorted(sampler.rows(0)) == rows and sampler.rows(0) != sampler.rows(1)
    assert sampler.rows(1) == Sampler(small(train__steps_per_epoch=0), store).rows(1)
    assert sampler.rows(1) != Sampler(small(train__steps_per_epoch=0, seed=1), store).rows(1)
    assert sum(len(part) for parts in sampler.batches(0) for _, part in parts) == len(rows)


def test_sampler_gives_each_worker_its_parts_of_the_same_batches(store: FeatureStore) -> None:
    whole = Sampler(small(), store)
    parts = Sampler(small(train__accumulate=2), store)
    wanted = [[batch.uid for _, batch in batch] for batch in whole.batches(1)]
    shares = [list(parts.batches(1, rank, 2)) for rank in (0, 1)]
    for (uids,), *batches in zip(wanted, *shares, strict=True):
        numbered = sorted((number, part.uid) for share in batches for number, part in share)
        assert [number for number, _ in numbered] == [0, 1, 2, 3]
        assert [uid for _, part in numbered for uid in part] == uids
    assert [number for number, _ in shares[1][0]] == [1, 3]


def test_sampler_balances_dimensions(store: FeatureStore) -> None:
    sampler = Sampler(small(train__sampling="dimension", train__steps_per_epoch=10), store)
    counts = store.expressions["dimension"].iloc[sampler.rows(0)].value_counts()
    assert counts.to_dict() == {"spatial": 30, "acoustic": 30}


def test_sampler_draws_the_hardest_dimension_more_often(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(train__sampling="dimension", train__steps_per_epoch=10, train__acoustic_temporal_weight=2.0)
    monkeypatch.setattr("experiments.training.sampler.ACOUSTIC_TEMPORAL", "acoustic")
    counts = store.expressions["dimension"].iloc[Sampler(config, store).rows(0)].value_counts()
    assert counts.to_dict() == {"acoustic": 40, "spatial": 20}
    with pytest.raises(ConfigError, match=r"acoustic_temporal_weight is 2\.0 with train\.sampling uniform"):
        small(train__acoustic_temporal_weight=2.0)
