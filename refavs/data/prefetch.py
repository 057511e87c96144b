"""Prefetching: reads batches while the current one is in use, and copies them to the device during computation."""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Computes the next items in a thread while the current one is in use; keeps their order.

    The first ones are begun by `iter`.

    Args:
        depth: number of items to compute ahead.

    Attributes:
        waited_s: total time in seconds that the consumer waited for an item.
    """

    def __init__(self, items: Iterable[Item], depth: int = 1) -> None:
        self.items, self.depth = items, depth
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Item]:
        items, thread = iter(self.items), ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        return self._each(items, thread, deque(thread.submit(_next_of, items) for _ in range(self.depth)))

    def _each(
        self, items: Iterator[Item], thread: ThreadPoolExecutor, coming: deque[Future[list[Item]]]
    ) -> Iterator[Item]:  # fmt: skip
        with thread:
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
    """The next item in a list, or an empty list at the end."""
    return list(itertools.islice(items, 1))


def depth_for(device: torch.device) -> int:
    """Number of batches to prefetch. For a device with its own memory, one is read while another is being copied."""
    return 1 if device.type == "cpu" else 2


@dataclass(frozen=True)
class Arrival:
    """A batch's copy to a device, possibly still in progress."""

    device: torch.device
    event: Any

    def wait(self, tensors: Iterable[Tensor]) -> None:
        """Makes the device's current stream wait for the copy of `tensors`, without blocking the CPU."""
        stream = torch.get_device_module(self.device).current_stream(self.device)
        stream.wait_event(self.event)
        for tensor in tensors:  # keeps their memory from being reused before this stream is done with it
            tensor.record_stream(stream)


class Sender:
    """Copies batches to a device on a separate stream, in parallel with the computation on the previous batch.

    It keeps a reference to a batch until its copy is done, because memory without references is reused.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module = torch.get_device_module(device)
        self._stream = self._module.Stream(device)
        self._under_way: deque[tuple[Any, Any]] = deque()

    @classmethod
    def to(cls, device: torch.device) -> "Sender | None":
        """A sender to `device`; None if it has no streams."""
        streams = device.type != "cpu" and all(
            hasattr(torch.get_device_module(device), name) for name in ("Stream", "Event", "current_stream")
        )
        return cls(device) if streams else None

    def send(self, batch: Any) -> Any:
        """Returns the `Batch` on the device; `Batch.to` makes it safe to use."""
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        with self._module.stream(self._stream):
            moved = batch.to(self.device)
        event = self._module.Event()
        event.record(self._stream)
        self._under_way.append((event, batch))
        return moved.same(moved.groups, arrival=Arrival(self.device, event))

    def finish(self) -> None:
        """Waits for all pending copies."""
        while self._under_way:
            self._under_way.popleft()[0].synchronize()
