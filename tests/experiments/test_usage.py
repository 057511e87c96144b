"""Samples of resource usage over an epoch."""

from itertools import pairwise

import torch
from pytest import MonkeyPatch

from experiments.training import usage
from experiments.training.usage import MOST_SAMPLES, Usage


def test_usage_is_sampled_over_time(monkeypatch: MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr(usage.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(usage.time, "time", lambda: seconds[0])
    watched = Usage(torch.device("cpu"))
    for _ in range(100):  # steps of half a second
        seconds[0] += 0.5
        watched.sample()
    found = watched.take()
    assert [sample["time_ms"] for sample in found] == [10_000, 20_000, 30_000, 40_000, 50_000, 50_000]
    assert all(sample["system_memory_usage_megabytes"] > 1 for sample in found)
    assert len(watched.take()) == 1


def test_a_long_epoch_has_few_samples(monkeypatch: MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr(usage.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(usage.time, "time", lambda: seconds[0])
    watched = Usage(torch.device("cpu"))
    for _ in range(5_000):
        seconds[0] += 10.0
        watched.sample()
    times = [sample["time_ms"] for sample in watched.take()]
    assert MOST_SAMPLES // 2 <= len(times) <= MOST_SAMPLES + 1
    assert len({after - before for before, after in pairwise(times[:-1])}) == 1
