"""Constant predictions beside a sweep: computed once for the same masks, and never trusted when damaged."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.baselines import cache as baseline_cache
from experiments.baselines.cache import Baselines, cache_key
from refavs.errors import StoreError
from refavs.files.user_cache import user_cache
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store")


@pytest.fixture(autouse=True)
def computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, and the stores whose constant predictions were computed."""
    found: list[str] = []
    compute = baseline_cache.control_results_of

    def counted(store: FeatureStore, *args: Any) -> Any:
        found.append(store.location)
        return compute(store, *args)

    monkeypatch.setattr(baseline_cache, "control_results_of", counted)
    monkeypatch.setenv("REFAVS_CACHE", str(tmp_path / "cache"))
    return found


def values_in(out: Path, store: FeatureStore) -> dict[str, Any]:
    with Baselines(out, store) as baselines:
        return baselines.values()


def cached(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").rglob("*.json")
    return path


@pytest.mark.long
def test_second_sweep_on_the_same_masks_computes_nothing(
    store: FeatureStore, tmp_path: Path, computed: list[str]
) -> None:
    first = values_in(tmp_path / "one", store)
    assert len(computed) == 1 and first["all foreground"]["test_n/S"] == 1
    assert values_in(tmp_path / "one", store) == values_in(tmp_path / "two", store) == first
    other = make_store(tmp_path / "other", noise=1)  # other features of the same expressions
    assert other.fingerprint != store.fingerprint and values_in(tmp_path / "three", other) == first
    assert len(computed) == 1
    written = [json.loads((tmp_path / name / "controls.json").read_text()) for name in ("one", "two", "three")]
    assert written[0] == written[1] and written[2] == written[0] | {"store": other.fingerprint}
    assert "metrics" in written[0]
    values_in(tmp_path / "four", make_store(tmp_path / "fewer", {"train": 3, "test_s": 2}))
    assert len(computed) == 2


@pytest.mark.long
def test_metric_that_is_installed_later_is_computed_in_a_sweep_that_has_the_others(
    store: FeatureStore, tmp_path: Path, computed: list[str], install: Callable[..., None]
) -> None:
    assert "test_s/area_error" not in values_in(tmp_path, store)["all foreground"]
    install(("area_error", "other-package", "tests.refavs.small_metrics:AREA_ERROR"))
    assert 0 < values_in(tmp_path, store)["all foreground"]["test_s/area_error"] < 1
    values_in(tmp_path, store)
    assert len(computed) == 2


@pytest.mark.long
@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "another's", "no seal"])
def test_damaged_cache_is_recomputed(
    store: FeatureStore, tmp_path: Path, computed: list[str], damage: str
) -> None:
    first = values_in(tmp_path / "one", store)
    path = cached(tmp_path)
    text = path.read_text()
    sealed = json.loads(text)
    path.write_text({
        "truncated": text[: len(text) // 2], "empty": "", "another's": text.replace(sealed["seal"], "0" * 64),
        "changed": text.replace('"test_n/S": 1.0', '"test_n/S": 0.5'), "no seal": json.dumps(sealed["values"]),
    }[damage])  # fmt: skip
    assert values_in(tmp_path / "two", store) == first and len(computed) == 2
    assert path.read_text() == text
    (tmp_path / "one" / "controls.json").write_text(text[:100])
    assert values_in(tmp_path / "one", store) == first and len(computed) == 2


@pytest.mark.long
def test_cache_that_cannot_be_written_is_done_without(
    store: FeatureStore, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    first = values_in(tmp_path / "one", store)
    assert values_in(tmp_path / "one", store) == first and len(computed) == 1
    for name in ("REFAVS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert user_cache() is None and values_in(tmp_path / "two", store) == first and len(computed) == 2


def test_giving_up_returns_no_values_and_leaves_no_partial_file(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def endless(store: FeatureStore, progress: Any) -> Any:
        begun.set()
        while True:
            progress.stop.wait(0.01)
            progress.advance(0)

    monkeypatch.setattr(baseline_cache, "control_results_of", endless)
    with Baselines(tmp_path / "one", store) as baselines:
        assert begun.wait(60) and baselines.values(lambda: True) == {} and not baselines.there
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.long
def test_bar_is_shown_to_who_waits(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go, compute = threading.Event(), baseline_cache.control_results_of

    def waiting(store: FeatureStore, progress: Any) -> Any:
        progress.total = 7
        assert go.wait(60)
        return compute(store, progress)

    monkeypatch.setattr(baseline_cache, "control_results_of", waiting)
    monkeypatch.setattr(baseline_cache, "QUIET_S", 0)
    looks: list[None] = []

    def look() -> bool:
        looks.append(None)
        if len(looks) > 3:
            go.set()
        return False

    with Baselines(tmp_path / "one", store) as baselines:
        assert baselines.values(look)
    assert "constant predictions: " in capsys.readouterr().err


def test_damaged_masks_raise_in_the_waiting_thread(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(store: FeatureStore, progress: Any) -> Any:
        raise StoreError("objects/mask of 'a/1' cannot be used")

    monkeypatch.setattr(baseline_cache, "control_results_of", damaged)
    with Baselines(tmp_path / "one", store) as baselines, pytest.raises(StoreError, match="objects/mask of 'a/1'"):
        baselines.values()
    assert not (tmp_path / "one").exists()


def test_key_names_the_order_and_the_code(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = cache_key(store)
    assert key == cache_key(FeatureStore(store.location))
    changed = tmp_path / "constant_baselines.py"
    changed.write_bytes(Path(baseline_cache.constant_baselines.__file__).read_bytes() + b"\n")
    monkeypatch.setattr(baseline_cache.constant_baselines, "__file__", str(changed))
    assert cache_key(store) != key
