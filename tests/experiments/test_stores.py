"""Sweeps over several stores: which stores may be compared, and the names and keys of their trials."""

import dataclasses
from pathlib import Path

import pytest

from experiments.grid.expand import expand
from experiments.records.stores import contents_digest, facts_of, features_in, named_locations, store_of, with_stores
from refavs.errors import ConfigError, StoreError
from refavs.store import FeatureStore
from tests.experiments import small_store
from tests.experiments.small_store import make_store

CLIPS = {"train": 2, "val": 1, "test_s": 1, "test_n": 1}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    folder = tmp_path_factory.mktemp("stores")
    return {name: make_store(folder / name, CLIPS, noise=noise) for noise, name in enumerate(("swin", "vit"))}


def test_locations_have_names_where_there_are_several(tmp_path: Path) -> None:
    assert named_locations(["demo/store"]) == {"": "demo/store"}
    assert named_locations(["s3://bucket/a=b"]) == {"": "s3://bucket/a=b"}
    assert named_locations(["swin=a/b", "vit-b.16=s3://c/d"]) == {"swin": "a/b", "vit-b.16": "s3://c/d"}
    (tmp_path / "a=b").mkdir()
    assert named_locations([f"{tmp_path}/a=b"]) == {"": f"{tmp_path}/a=b"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b"], "--store a has no name, and there are 2; write --store NAME=a"),
        (["x=a", "b"], "--store b has no name, and there are 2"),
        (["x=a", "x=b"], "--store gives 'x' twice; give each store a name of its own"),
        (["x=a", "y=a"], "--store gives a under two names; give it once"),
    ],
)
def test_bad_locations_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        named_locations(given)
    assert message in str(caught.value)


def test_every_trial_runs_on_every_store(stores: dict[str, FeatureStore]) -> None:
    grid = expand("g", {"grid": {"model.beta": [0, 1]}, "seeds": [0, 1]}, "g.yaml", {})
    crossed = with_stores(grid, stores).trials
    features = features_in(stores["swin"])
    assert len(crossed) == 8 and len({trial.key(features(trial)) for trial in crossed}) == 8
    assert crossed[1].name == "beta 0, encoders vit"
    by_key = {trial.key(features(trial)) for trial in grid.trials}
    assert {trial.key(features(trial)) for trial in crossed if trial.store and trial.store.name == "swin"} == by_key
    assert store_of(crossed[0], stores["swin"]) is stores["swin"]
    assert store_of(crossed[1], stores["swin"]).fingerprint == stores["vit"].fingerprint
    assert store_of(grid.trials[0], stores["vit"]) is stores["vit"]
    assert with_stores(grid, {"": stores["vit"]}) is grid


def test_grid_without_axes_is_a_trial_a_store_and_seed(stores: dict[str, FeatureStore]) -> None:
    grid = expand("g", {"seeds": [0, 1, 2]}, "g.yaml", {})
    names = [trial.title for trial in with_stores(grid, stores).trials]
    assert names == [f"encoders {name}, seed {seed}" for seed in (0, 1, 2) for name in ("swin", "vit")]


def test_stores_of_other_expressions_or_masks_are_refused(stores: dict[str, FeatureStore], tmp_path: Path) -> None:
    swin, grid = stores["swin"], expand("g", {}, "g.yaml", {})

    def refused(other: FeatureStore) -> str:
        with pytest.raises(ConfigError) as caught:
            with_stores(grid, {"swin": swin, "other": other})
        return str(caught.value)

    assert contents_digest(swin) == contents_digest(stores["vit"]) and swin.fingerprint != stores["vit"].fingerprint
    assert refused(swin) == "the stores swin and other hold the same features; give one of them"
    more = refused(make_store(tmp_path / "more", {**CLIPS, "val": 2}))
    assert "the stores swin and other cannot be compared: of 15 and 18 expressions they share 15; extract" in more
    masks = refused(make_store(tmp_path / "masks", CLIPS, seed=1))
    assert "expressions with the same uids have different splits, words or masks" in masks


def test_search_reads_one_store(stores: dict[str, FeatureStore]) -> None:
    section = {"budget": 2, "ranges": {"model.beta": {"uniform": [0, 1]}}}
    grid = expand("s", {"search": section}, "s.yaml", {})
    with pytest.raises(ConfigError, match="grid s is a search, which reads one store, but --store names 2"):
        with_stores(grid, stores)
    assert {trial.store.name for trial in with_stores(grid, {"vit": stores["vit"]}).kinds if trial.store} == {"vit"}


def test_trial_names_its_encoders_and_an_added_one_makes_no_other_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_store(tmp_path / "s", CLIPS)
    content = {"base": {"model": {"visual": "made-up"}}, "grid": {"model.audio": [True, "other"]}}
    grid = expand("g", content, "g.yaml", {})
    first, second = grid.trials
    before = features_in(plain)(first)
    with pytest.raises(StoreError, match="has the audio encoders vggish, not 'other'; name one that it has"):
        features_in(plain)(second)
    with monkeypatch.context() as patch:
        trained = {"name": "trained", "weights": "0" * 64}
        other = {"audio/other": dataclasses.replace(small_store.STREAMS[small_store.AUDIO], fingerprint=trained)}
        patch.setattr(small_store, "STREAMS", small_store.STREAMS | other)
        more = make_store(tmp_path / "more", CLIPS)
    assert more.fingerprint != plain.fingerprint and features_in(more)(first) == before != features_in(more)(second)
    read = store_of(second, more)
    assert read.audio_path == "clips/audio/other/features" and read.use == {"visual": "made-up", "audio": "other"}
    assert store_of(first, more).audio_path == "clips/audio/vggish/features"
    random = [facts_of(more, trials)["random_features"] for trials in ([first], [second], [first, second])]
    assert random == [True, False, True], "vggish is random, whatever trial comes last"
    assert facts_of(more, [second])["encoders"]["audio/other"] == "trained"
