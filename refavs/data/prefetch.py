"""Batches read while the present one is used, and sent to the device beside what is computed there."""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Takes the next items in a thread while the present one is used; their order stays.

    Args:
        depth: items that are taken before they are asked for.

    Attributes:
        waited_s: seconds in which the user of the items waited for one.
    """

    def __init__(self, items: Iterable[Item], depth: int = 1) -> None:
        self.items, self.depth = items, depth
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Item]:
        items = iter(self.items)
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
            coming = deque(thread.submit(_next_of, items) for _ in range(self.depth))
            try:
                while True:
                    started = time.perf_counter()
                    item = coming.popleft().result()
                    self.waited_s += time.perf_counter() - started
                    if not item:
                        return
                    coming.append(thread.submit(_next_of, items))
                    yield item.pop()
            finally:
                for future in coming:
                    future.cancel()


def _next_of(items: Iterator[Item]) -> list[Item]:
    """The next item, or nothing."""
    return list(itertools.islice(items, 1))


def depth_for(device: torch.device) -> int:
    """How many batches to be ahead of their use: one is read while one is on its way to a device that has its own
    memory."""
    return 1 if device.type == "cpu" else 2


@dataclass(frozen=True)
class Arrival:
    """A batch's copy to a device, which may not be done yet."""

    device: torch.device
    event: Any

    def wait(self, tensors: Iterable[Tensor]) -> None:
        """Has the device's current stream wait for the copy of `tensors`; the processor does not wait."""
        stream = torch.get_device_module(self.device).current_stream(self.device)
        stream.wait_event(self.event)
        for tensor in tensors:  # whose memory is not to be used again before this stream is done with them
            tensor.record_stream(stream)


class Sender:
    """Sends batches to a device on a stream of its own, so that they travel while the one before is computed.

    It holds a batch until its copy is done: the memory of one that nobody holds is used again.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device)
        self._under_way: deque[tuple[Any, Any]] = deque()

    @classmethod
    def to(cls, device: torch.device) -> "Sender | None":
        """What sends to `device`; None where it has no streams."""
        streams = device.type != "cpu" and all(
            hasattr(torch.get_device_module(device), name) for name in ("Stream", "Event", "current_stream")
        )
        return cls(device) if streams else None

    def send(self, batch: Any) -> Any:
        """A `Batch` on the device; `Batch.to` makes it safe to use."""
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        with self._module.stream(self._stream):
            moved = batch.to(self.device)
        event = self._module.Event()
        event.record(self._stream)
        self._under_way.append((event, batch))
        return moved.same(moved.groups, arrival=Arrival(self.device, event))

    def finish(self) -> None:
        """Waits for the copies that are under way."""
        while self._under_way:
            self._under_way.popleft()[0].synchronize()
