"""The scheduler in isolation, with names for workers and no real time."""

import random
import time
from collections import deque
from collections.abc import Callable

import pytest

from extract.pipeline.schedule import FRUITLESS_DEATHS, GivenUp, Schedule, Task


def given(schedule: Schedule, worker: str, num_expected: int = 0) -> list[Task]:
    return list(schedule.assign(worker, num_expected))


def jobs_of(tasks: list[Task]) -> list[int]:
    return [task.job for task in tasks]


def test_workers_get_two_jobs_each_in_order() -> None:
    schedule = Schedule([("a",)] * 9)
    assert given(schedule, "early") == []  # it has not reported ready
    schedule.enlist("one")
    schedule.enlist("two")
    assert jobs_of(given(schedule, "one")) == [0, 1]
    first = given(schedule, "two")
    assert jobs_of(first) == [2, 3] and given(schedule, "two") == []
    schedule.done("two", first[0])
    assert jobs_of(given(schedule, "two")) == [4] and schedule.num_left == 8


def test_last_jobs_are_spread_over_the_workers() -> None:
    schedule = Schedule([("a",)] * 3)
    for worker in "xyz":
        schedule.enlist(worker)
    assert [jobs_of(given(schedule, worker)) for worker in "xyz"] == [[0], [1], [2]]
    schedule = Schedule([("a",)] * 2)
    schedule.enlist("x")
    first = given(schedule, "x", num_expected=1)
    assert jobs_of(first) == [0]  # the other is kept for the worker that is coming,
    schedule.done("x", first[0])
    assert jobs_of(given(schedule, "x", num_expected=1)) == [1]  # but not for ever


def test_jobs_of_a_lost_worker_are_run_alone_after_the_others() -> None:
    schedule = Schedule([("a", "b")] * 5)
    schedule.enlist("x")
    schedule.enlist("y")
    lost, kept = given(schedule, "x"), given(schedule, "y")
    assert jobs_of(lost) == [0, 1] and schedule.lost("x", "gone") == []
    schedule.done("y", kept[0])
    fourth = given(schedule, "y")
    assert jobs_of(fourth) == [4]
    schedule.done("y", kept[1])
    assert given(schedule, "y") == []
    schedule.done("y", fourth[0])
    assert given(schedule, "y") == [Task(0, alone=True)] and given(schedule, "y") == []
    schedule.done("y", Task(0, alone=True))
    assert given(schedule, "y") == [Task(1, alone=True)]
    schedule.done("y", Task(1, alone=True))
    assert schedule.num_left == 0


def simulate(
    keys: list[tuple[str, ...]], dies: Callable[[Task], bool], num_workers: int = 3, seed: int = 0
) -> tuple[dict[int, Task], list[GivenUp], int]:
    """Runs everything in a random order; a worker that dies is replaced. Returns how each job ended, and all deaths."""
    generator, schedule = random.Random(seed), Schedule(keys)
    running: list[tuple[int, Task]] = []
    ended, given_up, deaths = {}, [], 0
    workers = list(range(num_workers))
    for worker in workers:
        schedule.enlist(worker)
    while schedule.num_left:
        for worker in workers:
            running += [(worker, task) for task in schedule.assign(worker)]
        worker, task = running.pop(generator.randrange(len(running)))
        if dies(task):
            deaths += 1
            given_up += schedule.lost(worker, "killed")
            running = [(other, task) for other, task in running if other != worker]
            workers[workers.index(worker)] = deaths + num_workers
            schedule.enlist(deaths + num_workers)
        else:
            more = schedule.done(worker, task)
            given_up += [more] if more else []
            if task.probe is None:
                assert task.job not in ended
                ended[task.job] = task
        assert not schedule.hopeless
    return ended, given_up, deaths


@pytest.mark.parametrize("seed", range(5))
def test_key_that_kills_is_condemned_and_no_other(seed: int) -> None:
    keys = [tuple(f"{job}-{place}" for place in range(4)) for job in range(20)]

    def dies(task: Task) -> bool:
        computed = [task.probe] if task.probe else [key for key in keys[task.job] if key not in task.condemned]
        return "7-2" in computed or "19-0" in computed

    ended, given_up, deaths = simulate(keys, dies, seed=seed)
    assert set(ended) == set(range(20)) and not given_up and deaths == 8
    condemned = {key: reason for task in ended.values() for key, reason in task.condemned.items()}
    assert set(condemned) == {"7-2", "19-0"}
    assert condemned["7-2"] == "its worker process died each time it was computed (killed)"


def test_job_of_which_every_key_kills_is_given_up_by_name() -> None:
    ended, given_up, deaths = simulate([("a", "b"), ("c",), ("d",)], lambda task: task.job < 2)
    assert set(ended) == {2} and deaths == 2 + 4 + 3
    failures = {key: reason for job in given_up for key, reason in job.failures.items()}
    assert set(failures) == {"a", "b", "c"} and failures["c"] == "its worker process died 3 times (killed)"
    assert "each time it was computed" in failures["a"]


def test_job_that_dies_only_as_a_whole_is_given_up() -> None:
    _, given_up, deaths = simulate([("a", "b")], lambda task: task.probe is None)
    assert deaths == 3 and given_up == [
        GivenUp(0, dict.fromkeys("ab", "its worker process died 3 times (killed), although each key alone passed"))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_random_deaths_lose_and_condemn_nothing(seed: int) -> None:
    generator = random.Random(seed)
    ended, given_up, deaths = simulate(
        [("a", "b", "c")] * 200, lambda task: generator.random() < 0.03, num_workers=4, seed=seed
    )
    assert deaths and not given_up and set(ended) == set(range(200))
    assert not any(task.condemned for task in ended.values())


def test_deaths_without_end_are_hopeless() -> None:
    schedule = Schedule([("a", "b")] * 100)
    for death in range(FRUITLESS_DEATHS + 2):
        assert not schedule.hopeless
        schedule.enlist(death)
        assert given(schedule, str(death)) == [] and list(schedule.assign(death))
        schedule.lost(death, "no memory")
    assert schedule.hopeless


def test_a_hundred_thousand_jobs_cost_less_than_a_millisecond_each() -> None:
    schedule = Schedule([("a", "b", "c", "d")] * 100_000)
    running: deque[tuple[int, Task]] = deque()
    for worker in range(64):
        schedule.enlist(worker)
        running.extend((worker, task) for task in schedule.assign(worker))
    started = time.process_time()
    while schedule.num_left:
        worker, task = running.popleft()
        schedule.done(worker, task)
        running.extend((worker, task) for task in schedule.assign(worker))
    assert (time.process_time() - started) / 100_000 < 1e-3
