"""Trials that share a GPU: the arithmetic, and the requests to a fake Ray, since there is no GPU."""

import contextlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.cli import main
from experiments.cluster import packing
from experiments.cluster.packing import CONTEXT_BYTES, MARGIN, expected_bytes, packed, share
from experiments.cluster.resources import Resources
from experiments.grid.expand import expand
from refavs.errors import ConfigError
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store

GIB = 2**30
GRID = {"base": {"model": {"num_heads": 2, "num_layers": 1, "visual_downsample": 2}},
        "cases": {"small": {}, "wide": {"model.num_queries": 4000}, "again": {"train.batch_size": 4}}}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("packing") / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})


@pytest.mark.parametrize("total", [8 * GIB, 24 * GIB, 80 * GIB])
@pytest.mark.parametrize("reserved", [1, GIB // 2, 3 * GIB, 7 * GIB, 100 * GIB])
def test_share_lets_as_many_on_a_gpu_as_fit_with_a_margin(reserved: int, total: int) -> None:
    found = share(reserved, total)
    at_once = int(1 / found + 1e-9)
    needed = reserved * (1 + MARGIN) + CONTEXT_BYTES
    assert 0 < found <= 1 and at_once * found <= 1
    assert at_once == 1 or at_once * needed <= total
    assert (at_once + 1) * needed > total, "one more would have fitted"
    assert found == round(found, 4), "Ray has four decimals"


class FakeRay(types.ModuleType):
    """Stands for Ray on a node with so many GPUs; a task runs here."""

    def __init__(self, gpus: float) -> None:
        super().__init__("ray")
        self.gpus, self.asked = gpus, {}
        self.exceptions = types.SimpleNamespace(RayTaskError=FakeTaskError)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "GPU": self.gpus} if self.gpus else {"CPU": 2.0}

    def remote(self, **asked: Any) -> Any:
        self.asked = asked
        return lambda work: types.SimpleNamespace(remote=lambda *given: (work, given))

    def get(self, task: Any) -> Any:
        work, given = task
        try:
            return work(*given)
        except torch.OutOfMemoryError as error:
            raise FakeTaskError(error) from error


class FakeTaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


@pytest.fixture
def ray_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    @contextlib.contextmanager
    def ray_for(*given: Any) -> Iterator[None]:
        yield

    def install(gpus: float) -> FakeRay:
        found = FakeRay(gpus)
        monkeypatch.setitem(sys.modules, "ray", found)
        monkeypatch.setitem(sys.modules, "ray.exceptions", found.exceptions)
        monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", types.SimpleNamespace(ray_for=ray_for))
        return found

    return install


def test_the_largest_trial_is_tried_on_a_whole_gpu(
    store: FeatureStore, ray_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def probe(config: Any, location: str, weights_dir: Path | None) -> tuple[int, int]:
        tried.append((config.model.num_queries, location))
        return 5 * GIB, 24 * GIB

    ray = ray_with(1.0)
    monkeypatch.setattr(packing, "probe", probe)
    trials = expand("g", GRID, "g.yaml", {}).trials
    found = packed(Resources(pack_gpus=True, gpus_per_trial=1, max_concurrent=5), trials, store)
    assert found == Resources(gpus_per_trial=share(5 * GIB, 24 * GIB), max_concurrent=5) and found.gpus_per_trial < 1
    assert tried == [(4000, store.location)] and ray.asked["num_gpus"] == 1
    sizes = {trial.name: expected_bytes(trial.config, store) for trial in trials}
    assert sizes["wide"] > sizes["small"] > sizes["again"] > 0


def test_unpackable_sweeps_are_refused(store: FeatureStore, ray_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = expand("g", GRID, "g.yaml", {}).trials
    ray_with(0)
    with pytest.raises(ConfigError, match="Ray found no GPU on any node; leave it out"):
        packed(Resources(pack_gpus=True), trials, store)
    with pytest.raises(ConfigError, match="give --gpus-per-trial a number, or leave --fuse out"):
        packed(Resources(pack_gpus=True, fuse=2), trials, store)

    def probe(*given: Any) -> tuple[int, int]:
        raise torch.OutOfMemoryError("no 90 GiB")

    ray_with(1.0)
    monkeypatch.setattr(packing, "probe", probe)
    with pytest.raises(ConfigError, match=r"'wide, seed 0' does not fit on a GPU \(no 90 GiB\); lower"):
        packed(Resources(pack_gpus=True), trials, store)


def test_command_takes_auto_and_refuses_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["smoke", "--store", "s", "--gpus-per-trial", "many"])
    assert ended.value.code == 2 and "'many'; accepted: a number from 0, or auto" in capsys.readouterr().err
    assert main(["smoke", "--store", "nowhere", "--gpus-per-trial", "auto"]) == 2
    assert "no feature store at" in capsys.readouterr().err


def test_worker_of_several_is_tried_with_its_share_of_the_batch() -> None:
    cases = {"one": {}, "three": {"resources.workers": 3, "model.beta": 0}}
    content = {"base": {"train.batch_size": 10, "train.accumulate": 2}, "cases": cases}
    shares = [packing.share_of(trial.config).train for trial in expand("g", content, "g.yaml", {}).trials]
    assert [(share.batch_size, share.accumulate) for share in shares] == [(10, 2), (4, 2)]
