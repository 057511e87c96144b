"""The memory available to a process, and lower bounds for training."""

from pathlib import Path

import pytest
import torch

from refavs.errors import ConfigError
from refavs.model import memory_budget as footprint
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.options import EEMCOptions
from refavs.model.memory_budget import batch_bytes, batches_held, memory_bytes, require_memory
from refavs.store import FeatureStore
from tests.experiments.small_store import CHANNELS, MAPS, make_store
from tests.refavs.test_processors import V2, process, write

CPU = torch.device("cpu")
V1 = "35 31 0:32 {root} {mount} rw,relatime - cgroup cgroup rw,memory\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", {"train": 1})


@pytest.mark.parametrize(("above", "own", "found"), [
    ("max", 3000, 3000), (2000, 3000, 2000), (4000, "max", 4000), (10**18, "max", None),
])  # fmt: skip
def test_tightest_memory_limit_of_the_groups_above_counts(
    tmp_path: Path, above: object, own: object, found: int | None
) -> None:
    top = tmp_path / "unified"
    write(top / "slice", memory_max=above)
    write(top / "slice" / "job", memory_max=own)
    write(top / "other", memory_max=1)
    there = memory_bytes(CPU, process(tmp_path, "0::/slice/job\n", V2.format(root="/", mount=top)))
    assert there == (memory_bytes(CPU, tmp_path / "nowhere") if found is None else found)


def test_memory_limit_of_version_1_is_that_of_the_memory(tmp_path: Path) -> None:
    memory, cpu = tmp_path / "memory", tmp_path / "cpu"
    write(memory / "docker" / "1f", memory_limit_in_bytes=5000)
    write(memory, memory_limit_in_bytes=9223372036854771712)
    write(cpu / "docker" / "1f", memory_limit_in_bytes=1)
    mounts = V1.format(root="/", mount=memory) + V1.replace("memory", "cpu").format(root="/", mount=cpu)
    groups = "4:memory:/docker/1f\n3:cpu:/docker/1f\n0::/\n"
    assert memory_bytes(CPU, process(tmp_path, groups, mounts)) == 5000


def test_batches_ahead_count_where_they_lie(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EEMCOptions(num_queries=1, num_heads=2)
    sizes = FeatureSizes.from_store(store, options.needs())
    of_batch = batch_bytes(store, sizes, num_clips=5, num_frames=3)
    assert of_batch == 5 * 3 * 2 * CHANNELS * sum(side * side for side in MAPS.values())
    assert (batches_held(CPU), batches_held(torch.device("cuda"))) == (2, 3)
    least = options.step_bytes(sizes, 1, 1)
    monkeypatch.setattr(footprint, "memory_bytes", lambda device: least + 2 * of_batch)
    require_memory(options, sizes, CPU, bytes_of_batch=of_batch)
    with pytest.raises(ConfigError, match="GB for masks and batches, and cuda has"):
        require_memory(options, sizes, torch.device("cuda"), bytes_of_batch=of_batch)
