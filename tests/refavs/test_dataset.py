"""Batches contain each clip once, depend only on seed and epoch, and reject samples that do not fit together."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from refavs.data.batches import (
    Batch,
    Recycler,
    batches,
    collate,
    default_levels,
    shuffled,
)
from refavs.errors import DatasetError
from refavs.store import FeatureStore
from tests.refavs import small_store as small


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Two expressions of each of five clips."""
    root = tmp_path_factory.mktemp("store") / "s"
    small.write_store(root)
    return FeatureStore(root)


def uids(found: list[Batch]) -> list[str]:
    return [uid for batch in found for uid in batch.uid]


def test_memory_is_reused_only_without_references() -> None:
    memory = Recycler()

    def take(value: float, num_rows: int = 4) -> torch.Tensor:
        return memory.empty((num_rows, 2, 3), torch.float16).fill_(value)

    first = take(1)
    kept = first[1, 1:]  # a view is enough to hold it
    places = {first.data_ptr(), (second := take(2)).data_ptr()}
    assert len(places) == 2 and (first == 1).all() and (second == 2).all()
    del first
    assert take(3).data_ptr() not in places and kept.tolist() == [[1.0] * 3]
    del kept
    third = take(4, 2)
    assert third.data_ptr() in places - {second.data_ptr()} and third.tolist() == [[[4.0] * 3] * 2] * 2
    assert take(5, 8).shape == (8, 2, 3) and memory.empty((1, 3), torch.bool).dtype == torch.bool


def test_batches_that_are_kept_stay_as_they_were(store: FeatureStore) -> None:
    order = [0, 2, 4, 6, 8, 1]
    kept = list(batches(store, order, 1))
    for index, batch in zip(order, kept, strict=True):
        assert torch.equal(batch.visual["mask_features"][0], store[index].visual["mask_features"])
    seen = [batch.visual["mask_features"].data_ptr() for batch in batches(store, order, 1)]
    assert len(set(seen)) == 2, "the batch in hand and the next one take turns"


def test_collate_takes_each_clip_once(store: FeatureStore) -> None:
    batch = collate([store[index] for index in (0, 2, 1, 4)])
    assert batch.uid == ["a_0", "b_0", "a_1", "c_0"] and batch.clip.tolist() == [0, 1, 0, 2] and len(batch) == 4
    assert batch.visual["mask_features"].shape == (3, 3, 4, 5, 6) and batch.audio.shape == (3, 3, 7)
    assert batch.text.shape == (4, 5, 6) and batch.valid.dtype == torch.bool
    assert batch.visual["mask_features"].dtype == torch.float16, "features are as stored"
    for place, index in enumerate((0, 2, 1, 4)):
        sample = store[index]
        assert torch.equal(batch.visual["s8"][batch.clip[place]], sample.visual["s8"])
        assert torch.equal(batch.audio[batch.clip[place]], sample.audio)
        assert torch.equal(batch.text[place], sample.text) and torch.equal(batch.valid[place], sample.valid)
        assert sample.mask is not None and batch.mask is not None and torch.equal(batch.mask[place], sample.mask)
        assert (batch.split[place], batch.dimension[place]) == (sample.split, sample.dimension)
        assert batch.text_string[place] == sample.text_string


@pytest.mark.parametrize("order", [[0, 2, 1, 4], [0, 1, 2, 3], [7, 7, 0]])
def test_batch_read_from_the_store_is_that_of_its_samples(store: FeatureStore, order: list[int]) -> None:
    (found,) = batches(store, order, len(order))
    wanted = collate([store[index] for index in order])
    for name, value in vars(wanted).items():
        other = vars(found)[name]
        if name == "groups":
            assert torch.equal(other.slot, value.slot) and other.size == value.size
        elif isinstance(value, torch.Tensor | np.ndarray):
            assert value.dtype == other.dtype and np.array_equal(value, other), name
        elif name == "visual":
            assert value.keys() == other.keys() and all(torch.equal(other[key], value[key]) for key in value)
        else:
            assert value == other, name


def test_batch_knows_its_groups_its_length_and_what_it_shows(store: FeatureStore) -> None:
    batch = collate([store[index] for index in (0, 2, 1, 4)])
    assert batch.mask is not None and batch.shown is not None
    assert batch.groups.size == 2 and batch.groups.num_clips == 3 and batch.groups.slot.tolist() == [0, 2, 1, 4]
    assert not batch.groups.in_order and collate([store[0], store[1], store[2], store[3]]).groups.in_order
    assert batch.text_length == int(batch.valid.any(dim=0).nonzero().max()) + 1
    assert np.array_equal(batch.shown, batch.mask.flatten(2).any(dim=2))
    mask = batch.mask.clone()
    mask[1, 0] = False
    changed = replace(batch, mask=mask, valid=torch.zeros_like(batch.valid))  # asked anew of what is new
    assert changed.text_length == 0 and changed.shown is not None and not changed.shown[1, 0]
    moved = batch.to("meta")  # where nothing could be asked
    assert moved.text_length == batch.text_length and moved.shown is batch.shown and moved.groups.size == 2


def test_batch_gives_each_expression_what_its_clip_has(store: FeatureStore) -> None:
    shared, single = collate([store[index] for index in (0, 2, 1, 4)]), collate([store[0], store[2]])
    assert torch.equal(shared.of_expressions(shared.audio), shared.audio[[0, 1, 0, 2]])
    assert single.of_expressions(single.audio) is single.audio
    swapped = replace(single, clip=single.clip.flip(0))
    assert torch.equal(swapped.of_expressions(swapped.audio), swapped.audio.flip(0))


def test_batch_moves_as_a_whole(store: FeatureStore) -> None:
    batch = collate([store[0], store[1]]).to("meta")
    tensors = [batch.audio, batch.text, batch.valid, batch.clip, batch.mask, *batch.visual.values()]
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)
    assert batch.uid == ["a_0", "a_1"]


def test_batches_without_a_seed_keep_the_order(store: FeatureStore) -> None:
    found = list(batches(store, [5, 0, 9, 3, 0], 2))
    assert [len(batch) for batch in found] == [2, 2, 1] and uids(found) == ["c_1", "a_0", "e_1", "b_1", "a_0"]


@pytest.mark.long
@pytest.mark.parametrize("expressions_per_clip", [1, 2, 5])
def test_batches_follow_from_seed_and_epoch(store: FeatureStore, expressions_per_clip: int) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        found = batches(store, range(10), 3, seed=seed, epoch=epoch, expressions_per_clip=expressions_per_clip)
        return uids(list(found))

    assert order(1, 0) == order(1, 0) and sorted(order(1, 0)) == store.expressions["uid"].tolist()
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_expressions_of_a_clip_are_adjacent() -> None:
    clips = np.arange(40) // 8
    order = shuffled(range(40), clips, 4, np.random.default_rng(0))
    groups = [set(clips[order[start : start + 4]]) for start in range(0, 40, 4)]
    assert all(len(group) == 1 for group in groups) and len({tuple(group) for group in groups[:5]}) > 2
    single = shuffled(range(40), clips, 1, np.random.default_rng(0))
    assert np.mean(np.diff(clips[single]) == 0) < 0.5


def test_expression_named_twice_comes_twice(store: FeatureStore) -> None:
    found = list(batches(store, [0, 0, 1, 2, 2, 2], 4, seed=0, expressions_per_clip=2))
    assert Counter(uids(found)) == {"a_0": 2, "a_1": 1, "b_0": 3}


def test_levels_read_are_those_of_the_model(tmp_path: Path, store: FeatureStore) -> None:
    levels = {small.BACKBONE_STREAM: small.LEVEL}
    small.write_store(tmp_path / "both", clips=("a",), streams=small.STREAMS | levels)
    both = FeatureStore(tmp_path / "both")
    others = {name: stream for name, stream in small.STREAMS.items() if name != small.VISUAL}
    small.write_store(tmp_path / "one", clips=("a",), streams=others | levels)
    one = FeatureStore(tmp_path / "one")
    assert default_levels(both) == ["pixel_decoder"] and default_levels(one) == ["backbone"]
    assert set(next(batches(both, [0], 1)).visual) == {"mask_features", "s8"}
    assert set(next(batches(both, [0], 1, levels=["backbone"])).visual) == {"res2"}
    assert set(both.sample(0, ["backbone"]).visual) == {"res2"}


def test_store_feeds_a_data_loader(store: FeatureStore) -> None:
    some = Subset(store, range(4))  # pyright: ignore[reportArgumentType]
    (batch,) = DataLoader(some, batch_size=4, collate_fn=collate)
    assert batch.uid == ["a_0", "a_1", "b_0", "b_1"] and batch.audio.shape[0] == 2


def test_batch_says_which_steps_are_labelled(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s")
    writer.write_clips(small.clip_table(small.CLIPS).assign(seconds=[3, 1, 3, 3, 3]))
    writer.finalise()
    store = FeatureStore(tmp_path / "s")
    (batch,) = batches(store, [0, 2, 3], 3)
    known = [small.row_of(f"{clip}/1", store.schema.tables["objects"].arrays)["labelled"] for clip in "abb"]
    assert batch.labelled is not None and batch.labelled[0].tolist() == known[0].tolist()
    assert batch.labelled[1:].tolist() == [[bool(known[1][0]), False, False]] * 2, "clip b has one step"
    collated = collate([store[index] for index in (0, 2, 3)]).labelled
    assert collated is not None and torch.equal(collated, batch.labelled)


def test_masks_for_some_expressions_only_are_refused(tmp_path: Path) -> None:
    writer = small.write_store(tmp_path / "s", clips=("a",))
    frame = small.expressions(writer, ("a",))
    writer.write_expressions(frame.assign(object=[0, -1], split=["train", "predict"]))
    store = FeatureStore(tmp_path / "s")
    with pytest.raises(DatasetError, match=r"1 of 2 expressions of a batch have no mask, e.g. 'a_1' of split"):
        collate(list(store))
    assert collate([store[1]]).mask is None
