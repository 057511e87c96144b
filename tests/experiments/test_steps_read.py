"""Training reads the steps that it decodes, and of those before only what the memory needs; the result is the same."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.grid.config import TrialConfig
from experiments.training.evaluate import all_levels
from experiments.training.learner import Learner
from experiments.training.loop import build_model
from experiments.training.sampler import Sampler, steps_read
from refavs.config import replace
from refavs.data.batches import Recycler, read_batch
from refavs.model.heads.protocol import Head
from refavs.store import ArraySpec, FeatureStore, StoreSchema, StoreWriter, StreamSpec
from refavs.store import reader as store_reader
from refavs.store.fill import Target, fill
from refavs.store.fingerprints import fingerprint_of
from refavs.store.pooled import pooled
from tests.experiments.small_store import CHANNELS, SECONDS, STREAMS, VISUAL, make_store, write_rows
from tests.experiments.test_learner import SMALL

POOLED = "visual/made-up/pooled2"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store")


@pytest.fixture(scope="module")
def with_pooled(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return add_pooled(store, tmp_path_factory.mktemp("pooled") / "store")


def add_pooled(store: FeatureStore, root: Path, without: Sequence[str] = (), **facts: Any) -> FeatureStore:
    """A copy of the store with the pooled mask features of its clips, except those `without`."""
    shutil.copytree(store.location, root)
    fingerprint = {**STREAMS[VISUAL].fingerprint, "pooled": 2, **facts}
    spec = ArraySpec(name="mask_features_pooled", shape=(SECONDS, CHANNELS, 4, 4), dtype="float32",
                     axes=("t", "c", "h", "w"))  # fmt: skip
    streams = {**STREAMS, POOLED: StreamSpec(fingerprint=fingerprint, arrays=(spec,), rows_per_shard=4)}
    writer = StoreWriter.open(root, StoreSchema(
        streams=streams, source="nowhere", seconds=SECONDS, fps=1.0, mask_size=32, objects_per_shard=8,
    ))  # fmt: skip
    rows = {name: {spec.name: pooled(store.read(f"clips/{VISUAL}/mask_features", int(row)), None, 2).numpy()}
            for name, row in zip(store.clips["id"], store.rows_of(VISUAL), strict=True)
            if name not in without}  # fmt: skip
    write_rows(writer, POOLED, rows)
    writer.finalise()
    return FeatureStore(root)


def learner_of(store: FeatureStore, **overrides: Any) -> Learner:
    settings = SMALL | {"train.frames": 1} | {name.replace("__", "."): value for name, value in overrides.items()}
    torch.manual_seed(0)
    config = replace(TrialConfig(), settings)
    return Learner(config, build_model(config, store))


def trained(learner: Learner, store: FeatureStore, heads: Sequence[Head]) -> dict[str, torch.Tensor]:
    """The weights and losses after two epochs."""
    sampler = Sampler(learner.config, store)
    found: dict[str, torch.Tensor] = {}
    for epoch in range(2):
        for index, parts in enumerate(sampler.batches(epoch, heads=heads)):
            step = epoch * sampler.num_steps + index
            losses = learner.step(parts, step, 9)
            found |= {f"{name} {step}": value.detach() for name, value in losses.items()}
    return found | learner.model.state_dict()


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"model__memory": False}, {"train__frames": 2}, {"train__frames": 0}])
def test_training_on_the_chosen_steps_gives_the_same_bits(
    store: FeatureStore, with_pooled: FeatureStore, settings: dict[str, Any]
) -> None:
    expected = trained(learner_of(store, **settings), store, ())
    for each in (store, with_pooled):
        learner = learner_of(each, **settings)
        found = trained(learner, each, [learner.model])
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def read_bytes(monkeypatch: pytest.MonkeyPatch, store: FeatureStore, heads: Sequence[Head], frames: list[int]) -> Any:
    """Bytes read of each map of a clip."""
    found: dict[str, int] = {}

    def noted(of: FeatureStore, targets: Sequence[Target]) -> None:
        for target in targets:
            name = target.path.rpartition("/")[2]
            found[name] = found.get(name, 0) + target.out.nbytes * ("visual" in target.path)
        fill(of, targets)

    monkeypatch.setattr(store_reader, "fill", noted)
    batch = read_batch(store, [0], all_levels(heads) or ["pixel_decoder"], Recycler(), steps_read(heads, frames))
    return {name: size for name, size in found.items() if size}, batch


def test_step_reads_the_bytes_of_its_clip_steps(
    monkeypatch: pytest.MonkeyPatch, store: FeatureStore, with_pooled: FeatureStore
) -> None:
    of_step = {name: CHANNELS * side**2 * 2 for name, side in (("mask_features", 8), ("s8", 4), ("s16", 2), ("s32", 1))}
    head = learner_of(store, model__decoder_layers=3).model
    levels = {name: of_step[name] for name in ("s8", "s16", "s32")}
    found, batch = read_bytes(monkeypatch, store, [head], [1])
    assert found == levels | {"mask_features": 2 * of_step["mask_features"]}, "of steps 0 and 1, for the memory"
    assert batch.visual.stored["mask_features"].shape[:2] == (1, 2)
    found, batch = read_bytes(monkeypatch, with_pooled, [head], [1])
    tokens = CHANNELS * 4**2 * 4
    assert found == of_step | {"mask_features_pooled": 2 * tokens}
    found, _ = read_bytes(monkeypatch, with_pooled, [learner_of(store, model__memory=False).model], [2])
    assert found == {name: size for name, size in of_step.items() if name in found} and "mask_features" in found
    found, _ = read_bytes(monkeypatch, with_pooled, [], [1])
    assert found == {name: SECONDS * size for name, size in of_step.items()}


def test_heads_that_share_a_batch_read_what_any_of_them_reads(store: FeatureStore) -> None:
    one, other = (learner_of(store, model__visual_downsample=by).model for by in (2, 4))
    alone = learner_of(store, model__memory=False).model
    found = steps_read([one, other, alone], [1, 2])
    assert found["mask_features"] == [1, 2] and found["mask_features/2"] == found["mask_features/4"] == [0, 1, 2]

    class Whole(type(one)):
        def steps_read(self, steps: Sequence[int]) -> dict[str, Sequence[int]]:
            return {}

    one.__class__ = Whole
    assert steps_read([one, other], [1]).keys().isdisjoint({"mask_features", "s32"})
    assert steps_read([one], [1]) == {} and steps_read([other], None) == {}


@pytest.mark.parametrize("why", ["another encoder", "another clip"])
def test_map_itself_is_read_where_the_pooled_one_is_not_its_own(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    clip = store.facts[0]["clip_id"]
    other = (add_pooled(store, tmp_path / "s", weights="1" * 64) if why == "another encoder"
             else add_pooled(store, tmp_path / "s", without=[clip]))  # fmt: skip
    head = learner_of(other).model
    found, batch = read_bytes(monkeypatch, other, [head], [2])
    assert "mask_features_pooled" not in found and batch.visual.stored["mask_features"].shape[1] == 3


def test_pooled_maps_are_in_no_key(store: FeatureStore, with_pooled: FeatureStore) -> None:
    paths = learner_of(with_pooled).model.sizes.paths
    assert fingerprint_of(with_pooled, paths) == fingerprint_of(store, paths)
    sizes = learner_of(store).model.sizes
    assert sizes.paths == paths and np.all(with_pooled.rows_of(POOLED) >= 0)
