"""Batches are prefetched, copied on a separate stream, and keep their memory until the copy is done."""

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from refavs.data.batches import Batch, Recycler, batches
from refavs.data.prefetch import Ahead, Sender, depth_for
from refavs.errors import DatasetError
from refavs.store import FeatureStore
from tests.refavs import small_store as small

META = torch.device("meta")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Two expressions of each of five clips."""
    root = tmp_path_factory.mktemp("store") / "s"
    small.write_store(root)
    return FeatureStore(root)


@dataclass
class Device:
    """What `torch.cuda` is to a GPU, for tensors of the device `meta`; `log` has what streams and events were asked.

    Attributes:
        sent: the places in this machine's memory of each batch that was sent.
    """

    log: list[tuple[Any, ...]] = field(default_factory=list)
    events: list["Event"] = field(default_factory=list)
    sent: list[set[int]] = field(default_factory=list)
    current: str = "main"

    def Stream(self, device: torch.device) -> str:
        return "side"

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(wait_event=lambda event: self.log.append((self.current, "waits for", event.number)))

    @contextlib.contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def Event(self) -> "Event":
        self.events.append(Event(self, len(self.events)))
        return self.events[-1]


@dataclass
class Event:
    """A mark that the device passes when a test says so."""

    device: Device
    number: int
    done: bool = False

    def record(self, stream: str) -> None:
        self.device.log.append((stream, "marks", self.number))

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.device.log.append(("host", "waits for", self.number))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(torch, "get_device_module", lambda device: found)
    monkeypatch.setattr(Recycler, "_new", lambda self, shape, dtype: torch.empty(shape, dtype=dtype))

    def used(tensor: torch.Tensor, stream: SimpleNamespace) -> None:
        found.log.append((found.current, "uses", tuple(tensor.shape)))

    move = Batch.to

    def moved(batch: Batch, device: torch.device) -> Batch:
        found.log.append((found.current, "moves", batch.uid[0]))
        assert batch.mask is not None
        found.sent.append({one.data_ptr() for one in (batch.mask, batch.text, batch.audio, *batch.visual.values())})
        return move(batch, device)

    monkeypatch.setattr(torch.Tensor, "record_stream", used)
    monkeypatch.setattr(Batch, "to", moved)
    return found


def test_batch_travels_on_the_side_and_is_waited_for_where_it_is_used(store: FeatureStore, device: Device) -> None:
    reading = batches(store, [0, 2], 1, device=META)
    batch = next(reading)
    assert device.log == [("side", "moves", "a_0"), ("side", "marks", 0)]
    assert batch.mask is not None and {batch.mask.device, batch.text.device, batch.groups.slot.device} == {META}
    device.log.clear()
    found = batch.to(META)
    assert device.log[:2] == [("main", "moves", "a_0"), ("main", "waits for", 0)]
    tensors = [found.audio, found.text, found.valid, found.clip, found.mask, found.labelled, found.groups.slot,
               *found.visual.values()]  # fmt: skip
    used = [what[2] for what in device.log[2:]]
    assert sorted(used) == sorted(tuple(one.shape) for one in tensors if one is not None)
    assert all(what[:2] == ("main", "uses") for what in device.log[2:])


def test_memory_of_a_batch_is_kept_until_it_has_arrived(store: FeatureStore, device: Device) -> None:
    reading = batches(store, [0, 2, 4, 6, 8, 0, 2], 1, device=META)
    for _ in range(3):
        next(reading)
    first, second, third = device.sent
    assert not (first & second or first & third or second & third), "all three are on their way"
    device.events[0].done = True
    for _ in range(2):  # what has arrived is let go when the next one is sent
        next(reading)
    later = device.sent[3] | device.sent[4]
    assert first & later and not (second | third) & later
    device.log.clear()
    assert isinstance(reading, Generator)
    reading.close()
    assert device.log == [("host", "waits for", number) for number in (1, 2, 3, 4)]


def test_processor_gets_its_batches_as_they_are_read(store: FeatureStore) -> None:
    cpu = torch.device("cpu")
    assert Sender.to(cpu) is None and depth_for(cpu) == 1 and depth_for(torch.device("cuda")) == 2
    (batch,) = batches(store, [0], 1, device=cpu)
    assert batch.arrival is None and batch.to(cpu).text is batch.text


@pytest.mark.long
def test_reading_ahead_keeps_the_order_and_counts_only_the_waiting() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    waited, hidden = Ahead(slow()), Ahead(slow())
    assert list(waited) == [0, 1, 2] and waited.waited_s > 0.1
    for _ in hidden:
        time.sleep(0.2)
    assert 0.03 < hidden.waited_s < waited.waited_s


def test_prefetching_raises_an_error_after_the_earlier_items() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise DatasetError("damaged")

    taken = []
    with pytest.raises(DatasetError, match="damaged"):
        for number in Ahead(broken()):
            taken.append(number)
    assert taken == [1]


def test_prefetching_takes_exactly_its_depth() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    for depth in (1, 2, 3):
        taken.clear()
        coming = iter(Ahead(items(), depth))
        wait_for(taken, depth)
        for number in coming:
            wait_for(taken, min(number + 1 + depth, 9))
            if number == 4:
                break
        del coming  # ends its thread
        assert len(taken) <= 4 + 1 + depth


def wait_for(taken: list[int], wanted: int) -> None:
    ends = time.monotonic() + 60
    while len(taken) != wanted:
        assert time.monotonic() < ends
        time.sleep(0.001)


@pytest.mark.gpu
def test_device_receives_what_was_read(store: FeatureStore) -> None:
    device, order = torch.device("cuda"), list(range(10)) * 8
    for one, sent in zip(batches(store, order, 4), Ahead(batches(store, order, 4, device=device), 2), strict=True):
        found = sent.to(device)
        assert one.mask is not None and found.mask is not None
        assert torch.equal(found.mask.cpu(), one.mask) and torch.equal(found.text.cpu(), one.text)
        for name, value in one.visual.items():
            assert torch.equal(found.visual[name].cpu(), value)
