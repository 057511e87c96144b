"""A store as a dataset of torch: every item once an epoch, resumed to the bit, shared by processes."""

import json
from typing import Any

import pytest
import torch

from refavs.data.batches import Batch
from refavs.data.loaders import ClipBatch, ClipReader, Clips, Expressions, StoreLoader
from refavs.errors import ConfigError, StoreError
from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from tests.refavs import servers

endpoint, bucket, local = servers.endpoint, servers.bucket, servers.local


def tensors_of(batch: Batch | ClipBatch) -> list[torch.Tensor]:
    """Every tensor of a batch."""
    found = [*batch.visual.values(), batch.audio]
    return [*found, batch.within] if isinstance(batch, ClipBatch) else [*found, batch.text, batch.valid, batch.clip]


def names_of(batch: Batch | ClipBatch) -> list[str]:
    return batch.ids if isinstance(batch, ClipBatch) else batch.uid


def same(one: Batch | ClipBatch, other: Batch | ClipBatch) -> bool:
    return names_of(one) == names_of(other) and all(map(torch.equal, tensors_of(one), tensors_of(other)))


def masked(local: LocalFolder) -> Expressions:
    """Those expressions of the small store that one batch can have."""
    found = Expressions(local.path)
    kept = [row for row in found.rows if found.store.facts[row]["object"] >= 0]
    found.rows, found.clips = found.rows[kept], found.clips[kept]
    return found


@pytest.mark.parametrize("kind", ["expressions", "clips"])
def test_each_item_comes_once_an_epoch_in_an_order_of_its_own(local: LocalFolder, kind: str) -> None:
    dataset: Any = masked(local) if kind == "expressions" else Clips(local.path)
    loader = StoreLoader(dataset, 2, seed=3)
    epochs = [[name for batch in loader for name in names_of(batch)] for _ in range(3)]
    assert len(loader) == -(-len(dataset) // 2) and loader.epoch == 3
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(epochs[0]))}
    assert len(set(epochs[0])) == len(epochs[0]) == len(dataset)
    kept = [name for batch in StoreLoader(dataset, 2, seed=None) for name in names_of(batch)]
    assert kept == [name for batch in StoreLoader(dataset, 1, seed=None) for name in names_of(batch)]


def test_items_are_those_of_the_store(local: LocalFolder) -> None:
    store, clips = FeatureStore(local.path), Clips(local.path, levels=["pixel_decoder/s8"])
    assert [sample.id for sample in clips] == store.clips["id"].tolist()
    for expression in range(len(store)):
        sample, clip = store.sample(expression), clips[store.facts[expression]["clip"]]
        assert [*clip.visual] == ["s8"] and torch.equal(clip.visual["s8"], sample.visual["s8"])
        assert torch.equal(clip.audio, sample.audio) and clip.within.tolist() == [True] * 3
    split = store.expressions["split"].iloc[0]
    own = Expressions(store, split)
    assert [own[index].uid for index in range(len(own))] == store.expressions["uid"][
        store.expressions["split"] == split].tolist()  # fmt: skip


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("kind", ["expressions", "clips"])
def test_resumed_loader_gives_the_batches_of_an_unbroken_one(local: LocalFolder, kind: str, stop: int) -> None:
    dataset: Any = masked(local) if kind == "expressions" else Clips(local.path)

    def stream(loader: StoreLoader[Any]) -> Any:
        while True:
            yield from loader

    unbroken, broken = (StoreLoader(dataset, 2, seed=1, expressions_per_clip=2) for _ in range(2))
    expected = stream(unbroken)
    for _, batch in zip(range(stop), stream(broken), strict=False):
        assert same(batch, next(expected))
    state = json.loads(json.dumps(broken.state_dict()))
    resumed = StoreLoader(dataset, 2, seed=1, expressions_per_clip=2)
    resumed.load_state_dict(state)
    for _, batch in zip(range(6), stream(resumed), strict=False):
        assert same(batch, next(expected))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_share_an_epoch(local: LocalFolder, world_size: int) -> None:
    alone = [batch.ids for batch in StoreLoader(Clips(local.path), 2, seed=5)]
    ranks = [StoreLoader(Clips(local.path), 2, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    shared = [[batch.ids for batch in loader] for loader in ranks]
    assert {len(own) for own in shared} == {len(ranks[0])} == {-(-3 // world_size)}
    in_turn = [own[step] for step in range(len(ranks[0])) for own in shared]
    assert in_turn[:3] == alone and all(batch in alone for batch in in_turn)


def test_state_fits_another_number_of_processes_or_is_refused(local: LocalFolder) -> None:
    pair = [StoreLoader(Clips(local.path), 1, seed=5, rank=rank, world_size=2) for rank in range(2)]
    for loader in pair:
        next(iter(loader))
    assert pair[0].state_dict() == pair[1].state_dict()
    alone = StoreLoader(Clips(local.path), 1, seed=5)
    alone.load_state_dict(pair[0].state_dict())
    expected = [batch.ids for batch in StoreLoader(Clips(local.path), 1, seed=5)][2:]
    assert [batch.ids for batch in alone] == expected
    three = StoreLoader(Clips(local.path), 1, seed=5, world_size=3)
    with pytest.raises(ConfigError, match="3 processes cannot have used evenly"):
        three.load_state_dict(pair[0].state_dict())
    for other in (StoreLoader(Clips(local.path), 2, seed=5), StoreLoader(Clips(local.path), 1, seed=6),
                  StoreLoader(masked(local), 1, seed=5)):  # fmt: skip
        with pytest.raises(ConfigError, match="the state is of a loader with"):
            other.load_state_dict(pair[0].state_dict())


def test_what_does_not_exist_is_named(local: LocalFolder) -> None:
    with pytest.raises(ConfigError, match="no expression of split 'tets'; it has test_n"):
        Expressions(local.path, "tets")
    with pytest.raises(StoreError, match="no level 's9'"):
        Clips(local.path, ["s9"])
    refused: list[dict[str, Any]] = [
        {"batch_size": 0}, {"batch_size": 1, "rank": 2, "world_size": 2}, {"batch_size": 1, "rank": -1},
    ]
    for wrong in refused:
        with pytest.raises(ConfigError, match="accepted: numbers from 1"):
            StoreLoader(Clips(local.path), **wrong)


@pytest.mark.process
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_give_the_same_batches(local: LocalFolder, start: str) -> None:
    dataset = masked(local)
    expected = [*StoreLoader(dataset, 2, seed=2)]
    found = [*StoreLoader(dataset, 2, seed=2, num_workers=2, start=start)]
    assert len(found) == len(expected) and all(map(same, found, expected))


@pytest.mark.process
def test_workers_of_a_remote_store_are_spawned(bucket: str, local: LocalFolder) -> None:
    servers.write_small(bucket)
    expected = [*StoreLoader(Clips(local.path), 2, seed=2)]
    found = [*StoreLoader(Clips(bucket), 2, seed=2, num_workers=1)]
    assert len(found) == len(expected) and all(map(same, found, expected))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of ray.data about itself
def test_ray_data_reads_a_store(local: LocalFolder) -> None:
    import ray
    import ray.data

    from extract.pipeline.local_ray import ray_at

    clips = Clips(local.path)
    with ray_at(None, num_cpus=2):
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.range(len(clips)).map_batches(
            ClipReader, fn_constructor_args=(str(local.path),), batch_size=2, concurrency=1)  # fmt: skip
        rows = {row["clip"]: row for row in data.iter_rows()}
    assert sorted(rows) == [sample.id for sample in clips]
    for sample in clips:
        assert torch.equal(torch.tensor(rows[sample.id]["audio"]), sample.audio)
        assert torch.equal(torch.tensor(rows[sample.id]["s8"]), sample.visual["s8"])
