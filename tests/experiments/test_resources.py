"""Resource requests of trials, and whether they fit on the nodes."""

import pytest

from experiments.cli import few_per_worker
from experiments.cluster.resources import Ask, Resources, fit_together
from experiments.grid.config import TrialConfig, TrialResources
from experiments.grid.trial import Trial
from refavs.config import replace
from refavs.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "nodes", "message"),
    [
        ({"gpus_per_trial": 1}, [{"CPU": 2.0, "memory": 1e9}],
         "asks for 1 CPUs and 1 GPUs, and Ray found nodes with 2 CPUs and 0 GPUs; lower "
         "--gpus-per-trial, or"),
        ({"cpus_per_trial": 4}, [{"CPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}], "lower --cpus-per-trial, or"),
        ({"cpus_per_trial": 2, "gpus_per_trial": 0.5}, [{"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}],
         "1 CPUs and 1 GPUs; 2 CPUs and 0 GPUs; lower --cpus-per-trial or --gpus-per-trial, or"),
    ],
)  # fmt: skip
def test_trial_that_fits_on_no_node_is_refused(
    asked: dict[str, float], nodes: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Resources(**asked).places(nodes)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert Resources(**asked).places([*nodes, {"CPU": 4.0, "GPU": 1.0}]) >= 1  # type: ignore[arg-type]


def test_trials_of_several_workers_start_only_as_many_as_find_all_of_them() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 3.0, "GPU": 1.0}]
    assert Resources().places(nodes, 2) == 3 and Resources(max_concurrent=2).places(nodes, 2) == 2
    assert Resources(cpus_per_trial=2).places(nodes, 3) == 1 and Resources(gpus_per_trial=0.5).places(nodes, 2) == 1
    four = [{"CPU": 99.0, "GPU": 4.0}]  # a share lies on one of them
    assert Resources(gpus_per_trial=0.4).places(four) == 8 and Resources(gpus_per_trial=2).places(four) == 2
    with pytest.raises(ConfigError, match=r"8 workers with 1 CPUs and 0 GPUs each, .* lower resources.workers"):
        Resources().places(nodes, 8)


def test_ray_here_gets_the_processors_of_the_trials_places() -> None:
    found = [Resources(max_concurrent=n, cpus_per_trial=c).local_cpus(4) for n, c in ((1, 1.5), (3, 0.5), (9, 1))]
    assert found == [2, 2, 4] and Resources(max_concurrent=1).local_cpus(4, num_workers=3) == 3
    assert Resources().local_cpus(4) == 4


def test_trial_asks_for_its_own_amounts_and_else_for_those_of_the_command_line() -> None:
    resources = Resources(cpus_per_trial=2, gpus_per_trial=0.25)
    assert resources.ask(TrialResources()) == Ask(workers=1, cpus=2, gpus=0.25)
    assert resources.ask(TrialResources(workers=3, cpus=0.5, gpus=0)) == Ask(workers=3, cpus=0.5, gpus=0)
    with pytest.raises(ConfigError, match=r"cpus is 0; accepted: a number above 0, or null"):
        TrialResources(cpus=0)


def test_trials_of_other_sizes_fit_together_where_each_finds_its_node() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}]
    small, pair = Ask(workers=1, cpus=1, gpus=0), Ask(workers=2, cpus=1, gpus=0)
    wide, share = Ask(workers=1, cpus=2, gpus=0), Ask(workers=1, cpus=0.5, gpus=0.5)
    assert fit_together([small, pair], nodes) and not fit_together([pair, pair], nodes)
    assert fit_together([small, wide], nodes) and not fit_together([small, small, wide], nodes)
    assert fit_together([share, wide, share], nodes) and not fit_together([share, share, share], nodes)


def test_shares_of_gpus_fit_together_where_each_finds_a_gpu() -> None:
    two = [{"CPU": 9.0, "GPU": 2.0}]
    most, some, whole = (Ask(workers=1, cpus=1, gpus=gpus) for gpus in (0.6, 0.4, 1))
    assert fit_together([most, most, some, some], two) and not fit_together([most, most, most], two)
    assert fit_together([most, some, whole], two) and not fit_together([some, whole, whole], two)
    assert fit_together([Ask(workers=1, cpus=1, gpus=2)], two) and not fit_together([some, whole, most, some], two)


@pytest.mark.parametrize(
    ("workers", "batch_size", "warned"), [(1, 1, False), (8, 8, True), (8, 4, True), (8, 16, False), (2, 8, False)]
)
def test_workers_without_enough_of_a_batch_are_warned_of(workers: int, batch_size: int, warned: bool) -> None:
    changes = {"resources.workers": workers, "train.batch_size": batch_size}
    trials = [Trial(name=name, config=replace(TrialConfig(), changes)) for name in ("full", "other")]
    lines = few_per_worker(trials)
    assert len(lines) == warned
    if lines:
        assert f"'full' and 1 more shares a batch of {batch_size} expressions among {workers} workers" in lines[0]
        assert "--gpus-per-trial auto" in lines[0]
