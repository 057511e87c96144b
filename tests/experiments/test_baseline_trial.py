"""Trials of the baselines on a store with a backbone's maps; the learner knows none of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.experiments.small_store as small_store
from experiments.cluster.grouping import reading
from experiments.grid.expand import Grid, expand, read_grid
from experiments.records.ledger import read_metrics
from experiments.records.stores import features_in
from experiments.sweep.model_check import check_models
from experiments.training.cost import measure
from experiments.training.initial_weights import with_checkpoints
from experiments.training.loop import Run, train, train_group
from refavs.choices import Role
from refavs.errors import StoreError
from refavs.model.checkpoint import load_model
from refavs.model.feature_sizes import FeatureSizes
from refavs.store import ArraySpec, FeatureStore, StreamSpec
from tests.experiments.test_fuse import require_equal
from tests.support.samples import sampled

SIDES = {"res2": 16, "res3": 8, "res4": 4, "res5": 2}
BACKBONE = {"visual/made-up/backbone": tuple(
    ArraySpec(name=name, shape=(small_store.SECONDS, 8 << index, side, side), dtype="float16",
              axes=("t", "c", "h", "w"), statistics=True) for index, (name, side) in enumerate(SIDES.items())
)}  # fmt: skip
CLIP_QUERIES = {"channels": 32, "num_queries": 2, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
                "feedforward_channels": 8}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "avsbench": {"channels": 8},
    "avsegformer": {"channels": 32, "num_queries": 3, "num_heads": 2, "generator_layers": 1, "encoder_layers": 1,
                    "decoder_layers": 1, "generator_feedforward_channels": 8, "feedforward_channels": 8,
                    "mask_channels": 8},
    "gavs": {"channels": 16, "num_heads": 2, "decoder_layers": 1, "feedforward_channels": 8},
    "referformer": CLIP_QUERIES, "r2vos": CLIP_QUERIES,
}  # fmt: skip
SIMTOKEN = {"channels": 16, "num_heads": 2, "fusion_layers": 1, "decoder_layers": 1, "feedforward_channels": 8,
            "tokens_per_side": 2, "decoder_feedforward_channels": 8}  # fmt: skip
ONE_OF_EACH_KIND = sampled(HEADS, lambda head: head in ("avsegformer", "referformer"))
STEPS = {"train.epochs": 1, "train.steps_per_epoch": 2, "train.batch_size": 3, "train.learning_rate": 0.001}


def made_up_store(
    path: Path, maps: dict[str, tuple[ArraySpec, ...]], roles: Mapping[str, Role] | None = None
) -> FeatureStore:
    """A store with random maps of these visual streams."""
    sound, text = small_store.AUDIO, small_store.TEXT
    streams = {stream: StreamSpec(fingerprint={"name": "made-up"}, arrays=arrays, rows_per_shard=4)
               for stream, arrays in maps.items()}  # fmt: skip
    streams |= {sound: small_store.STREAMS[sound], text: small_store.STREAMS[text]}

    def features(name: str, *others: Any) -> dict[str, dict[str, np.ndarray]]:
        rng = np.random.default_rng(len(name))
        made = {stream: {spec.name: (1 + rng.random(spec.shape)).astype(spec.dtype) for spec in arrays}
                for stream, arrays in maps.items()}  # fmt: skip
        return {**made, sound: {"features": rng.standard_normal((small_store.SECONDS, 4)).astype(np.float32)}}

    with pytest.MonkeyPatch().context() as patched:
        patched.setattr(small_store, "STREAMS", streams)
        patched.setattr(small_store, "clip_features", features)
        return small_store.make_store(path, {"train": 2, "val": 1, "test_s": 1, "test_n": 1}, roles=roles)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The four maps of a backbone."""
    return made_up_store(tmp_path_factory.mktemp("baselines") / "store", BACKBONE)


def grid_of(store: FeatureStore, head: str, **settings: Any) -> Grid:
    sizes = (HEADS | {"simtoken": SIMTOKEN})[head]
    base = {"model.head": head, **{f"model.{name}": value for name, value in sizes.items()}, **STEPS}
    return with_checkpoints(expand("g", {"base": base | settings}, "g.yaml", {}), features_in(store))


@pytest.mark.long
@pytest.mark.parametrize("head", ONE_OF_EACH_KIND)
def test_cost_of_a_baseline_is_counted(store: FeatureStore, head: str) -> None:
    (trial,) = grid_of(store, head).trials
    (alone,) = grid_of(store, head, **{"model.text": False}).trials
    whole, part = (measure(one.config, store, None).cost for one in (trial, alone))
    assert whole.step_flops > 2 * whole.forward_flops > 0
    assert sum(one.trained for one in whole.parts) > sum(one.trained for one in part.parts) > 0


@pytest.mark.parametrize("head", HEADS)
def test_store_without_the_maps_is_refused(tmp_path: Path, head: str) -> None:
    store = small_store.make_store(tmp_path / "store", {"train": 1, "val": 1})
    with pytest.raises(StoreError, match=rf"has no maps .*; {head} reads .*res4, res5; .* --levels backbone"):
        check_models(grid_of(store, head), store)


@pytest.mark.long
def test_r2vos_says_that_nothing_to_train_on_refers_to_nothing(store: FeatureStore, tmp_path: Path) -> None:
    roles: dict[str, Role] = {"train": "train", "val": "validation", "test_s": "test", "test_n": "train"}
    nulls = made_up_store(tmp_path / "store", BACKBONE, roles)
    assert check_models(grid_of(nulls, "r2vos"), nulls) == []
    ((_, told),) = (line.split(": ") for line in check_models(grid_of(store, "r2vos"), store))
    assert told.startswith("no expression to train on refers to nothing; r2vos then judges that every expression fits")
    assert check_models(grid_of(store, "r2vos", **{"model.negatives": "batch"}), store) == []
    assert check_models(grid_of(store, "referformer"), store) == []


@pytest.mark.long
def test_baselines_read_the_maps_of_a_pixel_decoder(tmp_path: Path) -> None:
    store = small_store.make_store(tmp_path / "store", {"train": 1, "val": 1})
    for head in HEADS:
        (trial,) = grid_of(store, head, **{"model.level": "pixel_decoder"}).trials
        maps = FeatureSizes.from_store(store, trial.config.model.needs()).maps
        assert [size.name for size in maps] == list(small_store.MAPS)[2 if head == "gavs" else 0 :]
    train(grid_of(store, "gavs", **{"model.level": "pixel_decoder"}).trials[0].config, store, tmp_path / "trial")
    with pytest.raises(StoreError, match=r"has no maps .*; gavs reads s16, s32; .* --levels pixel_decoder"):
        other = made_up_store(tmp_path / "other", BACKBONE)
        check_models(grid_of(other, "gavs", **{"model.level": "pixel_decoder"}), other)


@pytest.mark.long
def test_gavs_reads_the_map_of_sam_and_which_part_is_picture(tmp_path: Path) -> None:
    arrays = (
        ArraySpec(name="map", shape=(small_store.SECONDS, 16, 4, 4), dtype="float16", axes=("t", "c", "h", "w"),
                  statistics=True),
        ArraySpec(name="extent", shape=(small_store.SECONDS, 2), dtype="float32", axes=("t", "yx")),
    )  # fmt: skip
    store = made_up_store(tmp_path / "store", {"visual/sam-vit-base": arrays})
    (trial,) = grid_of(store, "gavs").trials
    train(trial.config, store, tmp_path / "trial")
    head = load_model(tmp_path / "trial" / "checkpoint")
    assert [size.name for size in head.sizes.maps] == ["map", "extent"]


@pytest.mark.long
def test_simtoken_reads_the_maps_of_sam2(tmp_path: Path) -> None:
    arrays = {
        "image": (ArraySpec(name="map", shape=(small_store.SECONDS, 16, 4, 4), dtype="float16",
                            axes=("t", "c", "h", "w"), statistics=True),
                  ArraySpec(name="no_memory", shape=(16,), dtype="float16", axes=("c",))),
        "high_resolution": tuple(
            ArraySpec(name=name, shape=(small_store.SECONDS, width, side, side), dtype="float16",
                      axes=("t", "c", "h", "w"), statistics=True) for name, width, side in (("s4", 2, 16), ("s8", 4, 8))
        ),
    }  # fmt: skip
    streams = {f"visual/sam2.1-hiera-tiny/{level}": maps for level, maps in arrays.items()}
    store = made_up_store(tmp_path / "store", streams)
    (trial,) = grid_of(store, "simtoken", **{"train.frames": 2}).trials
    train(trial.config, store, tmp_path / "trial")
    assert {"train/object", "train/dice"} <= read_metrics(tmp_path / "trial")[0]["metrics"].keys()
    head = load_model(tmp_path / "trial" / "checkpoint")
    assert [size.name for size in head.sizes.maps] == ["s4", "s8", "map"]


@pytest.mark.long
@pytest.mark.parametrize("head", sampled(HEADS, lambda head: head == "avsegformer"))
def test_forms_of_a_baseline_fused_equal_their_unfused_selves(store: FeatureStore, tmp_path: Path, head: str) -> None:
    forms = {"both": {}, "text": {"model.audio": False, "train.precision": "bf16"}}
    shared = {"train.frames": 2, "train.ema_decay": 0.9}
    configs = {name: grid_of(store, head, **shared, **form).trials[0].config for name, form in forms.items()}
    train_group([Run(config=config, folder=tmp_path / "fused" / name) for name, config in configs.items()], store)
    for name, config in configs.items():
        result = train(config, store, tmp_path / "alone" / name)
        assert 0 <= result["metrics"]["test_s/J"] <= 1 and "test_n/S" in result["metrics"]
        require_equal(tmp_path / "fused" / name, tmp_path / "alone" / name)
        assert load_model(tmp_path / "alone" / name / "checkpoint").options == config.model


def test_forms_of_a_head_in_table3_share_a_read() -> None:
    heads: dict[Any, set[str]] = {}
    for trial in read_grid("table3").trials:
        heads.setdefault(reading(trial.config), set()).add(f"{trial.config.model.head} {trial.config.seed}")
    assert len(heads) == 6 * 3 and all(len(names) == 1 for names in heads.values())


def test_simtoken_refuses_a_store_without_the_maps_of_sam2(store: FeatureStore) -> None:
    with pytest.raises(StoreError, match=r"has no maps s4, s8, map; simtoken reads .*--streams sam2.1-hiera-tiny"):
        check_models(grid_of(store, "simtoken"), store)
