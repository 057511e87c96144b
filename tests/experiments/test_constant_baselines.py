"""Constant predictions on a store: their names and values, in one process and in several."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.baselines import compute as constant_baselines
from experiments.baselines.compute import Computation, StoppedError, control_results_of, worth
from experiments.training.evaluate import rows_of
from refavs.data.splits import Splits
from refavs.errors import RefAVSError
from refavs.metrics.groups import canonical_values
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store")


def test_constants_name_every_constant_on_every_split(store: FeatureStore) -> None:
    found = canonical_values(control_results_of(store), Splits.of({}))
    assert set(found) == {
        "all background", "all foreground", "mean training mask", "mean training mask, best threshold",
        "centred disc", "text only",
    }  # fmt: skip
    assert found["all background"]["test_n/S"] == 0 and found["all background"]["test_s/J"] == 0
    assert found["all foreground"]["test_n/S"] == 1
    masks = [store[row].mask for row in rows_of(store, ("test_s",))]
    area = np.mean([mask.float().mean().item() for mask in masks if mask is not None])
    assert found["all foreground"]["test_s/J"] == pytest.approx(area)
    assert {"mix/J", "test_u/F", "test_s/spatial/J"} <= set(found["mean training mask"])
    assert found["text only"] == found["mean training mask, best threshold"], "no null in training, none in the text"


@pytest.mark.long
def test_steps_without_a_label_change_no_constant(tmp_path: Path) -> None:
    one, other = (make_store(tmp_path / name, unlabelled=value) for name, value in (("one", False), ("other", True)))
    assert not bool(one.read("objects/labelled", 0).all())
    found, same = (canonical_values(control_results_of(each), Splits.of({})) for each in (one, other))
    assert found == same
    areas = [sample.mask[sample.labelled].float().mean().item() for row in rows_of(one, ("test_s",))
             if (sample := one[row]).mask is not None and sample.labelled is not None and sample.labelled.any()]
    assert len(areas) < len(rows_of(one, ("test_s",)))
    assert found["all foreground"]["test_s/J"] == pytest.approx(np.mean(areas))


def test_constants_without_training_masks_are_none(tmp_path: Path) -> None:
    assert canonical_values(control_results_of(make_store(tmp_path / "store", {"test_s": 1})), Splits.of({})) == {}


@pytest.mark.process
@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_other_processes_give_bitwise_the_same_values(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    monkeypatch.setattr(constant_baselines, "TRAINING_AT_ONCE", 5)
    monkeypatch.setattr(constant_baselines, "TEST_AT_ONCE", 2)
    progress = Computation()
    here = control_results_of(store, progress, num_processes=0)
    there = control_results_of(store, num_processes=num_processes)
    assert list(here) == list(there) and progress.done == progress.total > 0
    for name, results in here.items():
        assert results.expressions.equals(there[name].expressions)
        for found, expected in ((there[name].values, results.values), (there[name].curves, results.curves)):
            assert list(found) == list(expected)
            for key, values in expected.items():
                np.testing.assert_array_equal(found[key], values, strict=True)


def test_computation_that_is_to_stop_ends_after_a_part(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant_baselines, "TRAINING_AT_ONCE", 2)
    progress = Computation()
    progress.stop.set()
    with pytest.raises(StoppedError):
        control_results_of(store, progress, num_processes=0)
    assert progress.done == 2


@pytest.mark.process
def test_process_that_is_killed_is_one_line(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant_baselines, "_of_mean", _die)
    with pytest.raises(RefAVSError, match="a process that computes the constant predictions was killed"):
        control_results_of(store, num_processes=1)


def _die(store: FeatureStore, part: object, mean: object) -> None:
    os._exit(9)


@pytest.mark.process
def test_process_ends_with_the_sweep_that_is_killed(store: FeatureStore) -> None:
    code = (
        "import sys; from experiments.baselines import compute as c; from refavs.store import FeatureStore\n"
        "from tests.experiments import test_constant_baselines as t; c._of_mean = t._sleep\n"
        "c.control_results_of(FeatureStore(sys.argv[1]), num_processes=1)"
    )
    command = [sys.executable, "-c", code, store.location]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout is not None
        process = Path("/proc") / sweep.stdout.readline().strip()
        assert process.is_dir() and process.name.isdigit()
        sweep.kill()
        end = time.monotonic() + 120
        while process.is_dir():
            assert time.monotonic() < end, "it outlives the sweep"
            time.sleep(0.05)


def _sleep(store: FeatureStore, part: object, mean: object) -> None:
    print(os.getpid(), flush=True)
    time.sleep(600)


def test_few_masks_are_worth_no_process_and_many_are(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant_baselines.os, "sched_getaffinity", lambda _: set(range(64)))
    assert worth(store, 1000, 100) == 0
    assert worth(store, 10**7, 10**6) == constant_baselines.MOST_PROCESSES
