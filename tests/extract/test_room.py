"""The number of workers that fit on the nodes of a cluster, and their threads."""

import pytest

from extract.pipeline.ray_pool import threads_per_worker

NODE = {"CPU": 16.0}
GPU_NODE = {"CPU": 64.0, "GPU": 4.0}


@pytest.mark.parametrize(("num_workers", "gpus", "nodes", "threads"), [
    (1, 0.0, [NODE] * 10, 16),  # not the cluster's 160
    (4, 0.0, [NODE] * 2, 8),
    (3, 0.0, [NODE] * 2, 8),
    (20, 0.0, [NODE] * 2, 1),
    (160, 0.0, [NODE] * 10, 1),
    (2, 0.0, [{"CPU": 64.0}, {"CPU": 8.0}], 8),
    (72, 0.0, [{"CPU": 64.0}, {"CPU": 8.0}], 1),
    (8, 1.0, [{"CPU": 4.0}, GPU_NODE, GPU_NODE], 16),  # the head without a GPU has no worker
    (2, 1.0, [{"CPU": 4.0}, GPU_NODE, GPU_NODE], 64),
    (16, 0.5, [GPU_NODE, GPU_NODE], 8),
    (2, 2.0, [GPU_NODE], 32),
    (1, 0.0, [{"CPU": 0.0}, {}], 1),
    (4, 0.0, [], 1),  # nodes that are still to come
])  # fmt: skip
def test_workers_share_the_processors_of_their_own_node(
    num_workers: int, gpus: float, nodes: list[dict[str, float]], threads: int
) -> None:
    assert threads_per_worker(num_workers, gpus, nodes) == threads
