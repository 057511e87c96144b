"""Counts a call's kernels and copies on an accelerator, and the places where the processor waits for it.

On a GPU torch's own tools count. Without one, `FakeAccelerator` stands for it: a device of its own whose tensors lie in
this machine's memory and whose operations are counted on their way there; what would wait on a GPU waits here as well.
Usage: python tests/benchmarks/sync_counter.py [--json] [--few] (small training steps and evaluation)
"""

import argparse
import collections
import contextlib
import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _foreach_utils
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = tuple(str(REPOSITORY / name) for name in ("refavs", "experiments", "extract"))
WAITING = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique_dim", "unique_consecutive", "_unique2",
    "equal", "bincount", "_assert_async",
}  # fmt: skip
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass
class Counts:
    """What was counted.

    Attributes:
        kernels: launches on the device; of a fake one, operations that compute, each of which launches one or more.
        syncs: waits of the processor for the device, by the line that waits.
        copies: transfers to the device and back, by direction (`HtoD`, `DtoH`).
    """

    kernels: int = 0
    syncs: collections.Counter[str] = field(default_factory=collections.Counter)
    copies: collections.Counter[str] = field(default_factory=collections.Counter)

    def __str__(self) -> str:
        places = ", ".join(f"{place} {number}x" for place, number in self.syncs.most_common())
        return f"{self.kernels} kernels, {self.syncs.total()} syncs ({places or 'none'}), copies {dict(self.copies)}"


def count(call: Callable[[], Any], device: torch.device) -> Counts:
    """What `call` asks of `device`, a GPU or the one that `FakeAccelerator` gives; call it once before, to warm up."""
    return _count_on_gpu(call) if device.type == "cuda" else FakeAccelerator.counting(call)


def _count_on_gpu(call: Callable[[], Any]) -> Counts:
    counts = Counts()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with mock.patch.object(warnings, "showwarning", lambda text, *_, **__: _note_sync(counts, str(text))):
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    for event in profile.events() or []:
        if str(event.device_type).endswith("CUDA"):
            copied = next((way for way in ("HtoD", "DtoH") if way in event.name), None)
            counts.copies.update([copied] if copied else [])
            counts.kernels += not copied
    return counts


def _note_sync(counts: Counts, text: str) -> None:
    if "synchroniz" in text:
        counts.syncs[here()] += 1


def here() -> str:
    """The line of this project that is being run, or `backward`."""
    for frame, line in traceback.walk_stack(None):
        name = frame.f_code.co_filename
        if name.startswith(PACKAGES):
            return f"{Path(name).relative_to(REPOSITORY)}:{line}"
        if name.endswith("torch/autograd/graph.py"):
            return "backward"
    return "elsewhere"


class FakeTensor(torch.Tensor):
    """A tensor of the fake device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "FakeTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=torch.device(FakeAccelerator.NAME, 0),
        )  # fmt: skip
        made.held = real
        return made

    def record_stream(self, s: Any) -> None:
        FakeAccelerator.log.append((s.name, "uses", 0))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return FakeAccelerator.run(func, args, kwargs or {})


class Stream(SimpleNamespace):
    """A queue of the fake device, whose work is done as soon as it is asked for; what was asked is noted."""

    def wait_event(self, event: "Event") -> None:
        FakeAccelerator.log.append((self.name, "waits", event.number))


class Event:
    """A mark in a stream."""

    number = 0

    def record(self, stream: Stream | None = None) -> None:
        Event.number += 1
        self.number = Event.number
        FakeAccelerator.log.append(((stream or FakeAccelerator.stream).name, "marks", self.number))

    def query(self) -> bool:
        return self.number in FakeAccelerator.done

    def synchronize(self) -> None:
        FakeAccelerator.note_sync()
        FakeAccelerator.done.add(self.number)


class Module(_DummyBackendModule):
    """What `torch.cuda` is to a GPU."""

    Event = Event

    def Stream(self, device: Any = None) -> Stream:
        return Stream(name="side")

    def current_stream(self, device: Any = None) -> Any:
        return FakeAccelerator.stream

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, FakeAccelerator.stream = FakeAccelerator.stream, stream
        try:
            yield
        finally:
            FakeAccelerator.stream = before

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class FakeAccelerator:
    """The device `fake:0`. It is there for the rest of the process, once `start` was called.

    Attributes:
        log: what streams and events were asked, in order.
        done: the events that the device has passed.
    """

    NAME = "fake"
    stream: ClassVar = Stream(name="main")
    log: ClassVar[list[tuple[str, str, int]]] = []
    done: ClassVar[set[int]] = set()
    _counts: ClassVar[Counts | None] = None
    _library: ClassVar[Any] = None

    @classmethod
    def start(cls) -> torch.device:
        """The device."""
        if cls._library is None:
            torch.autograd.set_multithreading_enabled(False)  # the threads of such a device do not end by themselves
            _setup_privateuseone_for_python_backend(cls.NAME, Module())
            cls._library = torch.library.Library("_", "IMPL")
            _foreach_utils._foreach_supported_types.append(FakeTensor)
            cls._library.fallback(lambda func, *args, **kwargs: cls.run(func, args, kwargs), "PrivateUse1")
        return torch.device(cls.NAME, 0)

    @classmethod
    def counting(cls, call: Callable[[], Any]) -> Counts:
        """What `call` asks of the device."""
        cls._counts = counts = Counts()
        try:
            with cls.like_a_gpu():
                call()
        finally:
            cls._counts = None
        return counts

    @staticmethod
    @contextlib.contextmanager
    def like_a_gpu() -> Iterator[None]:
        """Attention is fused, and memory that ought to be pinned is plain."""
        from refavs.data.batches import Recycler

        with (
            mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _fused_attention),
            mock.patch.object(Recycler, "_new", lambda self, shape, dtype: torch.empty(shape, dtype=dtype)),
        ):
            yield

    @classmethod
    def note_sync(cls) -> None:
        if cls._counts is not None:
            cls._counts.syncs[here()] += 1

    @classmethod
    def run(cls, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation on the values of its tensors."""
        flat = pytree.tree_leaves((args, kwargs))
        cls._refuse_other_devices(func, flat)
        to_device = str(kwargs.get("device")) != "cpu"
        name = func._schema.name.removeprefix("aten::")
        if name in ("_to_copy", "copy_"):
            to_device = cls._note_copy(name, args, kwargs)
        elif cls._counts is not None:
            cls._counts.kernels += not (name in EMPTY or name in WAITING or _is_view(func))
            if name in WAITING or (name in ("index", "index_put_", "_index_put_impl_") and _waits(args)):
                cls.note_sync()
        args, kwargs = pytree.tree_map(_real, (args, kwargs))
        kwargs.pop("pin_memory", None)
        found = func(*args, **kwargs)
        if func._schema.is_mutable and not to_device:
            return found
        if func._schema.is_mutable and isinstance(flat[0], FakeTensor) and isinstance(found, Tensor):
            return next((one for one in flat if isinstance(one, FakeTensor) and one.held is found), FakeTensor(found))
        return pytree.tree_map(lambda one: FakeTensor(one) if isinstance(one, Tensor) and to_device else one, found)

    @classmethod
    def _note_copy(cls, name: str, args: Any, kwargs: Any) -> bool:
        """Whether the copy ends on the device."""
        source = args[1] if name == "copy_" else args[0]
        was = isinstance(source, FakeTensor)
        wanted = kwargs.get("device")
        to_device = isinstance(args[0], FakeTensor) if name == "copy_" or wanted is None else str(wanted) != "cpu"
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if cls._counts is not None and was != to_device:
            cls._counts.copies["HtoD" if to_device else "DtoH"] += 1
            if waits:
                cls.note_sync()
        elif cls._counts is not None:
            cls._counts.kernels += 1
        return to_device

    @classmethod
    def _refuse_other_devices(cls, func: Any, flat: list[Any]) -> None:
        name = func._schema.name
        tensors = [one for one in flat if isinstance(one, Tensor)]
        others = [one for one in tensors if not isinstance(one, FakeTensor) and one.dim()]
        if others and len(others) < len(tensors) and name not in ("aten::copy_", "aten::index", "aten::index_put_"):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {others[0].device}")


def _real(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == FakeAccelerator.NAME else value


def _is_view(func: Any) -> bool:
    alias = func._schema.returns[0].alias_info if func._schema.returns else None
    return func._schema.name == "aten::_unsafe_view" or (alias is not None and not alias.is_write)


def _waits(args: Any) -> bool:
    """Whether the number of rows depends on a mask, or indices come from the processor."""
    indices = [one for one in args[1] if one is not None]
    from_host = any(not isinstance(one, FakeTensor) for one in indices)
    return from_host or any(one.dtype in (torch.bool, torch.uint8) for one in indices)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=attn_mask)[0]


CASES = {
    "training step": {}, "chosen steps": {"train.frames": 2}, "accumulated parts": {"train.accumulate": 2},
    "scaled losses": {"train.precision": "fp16"},
}  # fmt: skip


def count_small(few: bool = False) -> dict[str, Counts]:
    """Training steps of 6 expressions and three batches of evaluation, on features so small that it takes seconds.

    Args:
        few: the default head has one fusion layer, and one mask decoder layer for each stride, in the place of all.
    """
    from experiments.grid.config import TrialConfig
    from experiments.training.evaluate import predictions, rows_of
    from experiments.training.learner import Learner
    from experiments.training.loop import build_model
    from experiments.training.sampler import Sampler
    from refavs.config import replace

    sys.path.insert(0, str(REPOSITORY))
    from tests.experiments.small_store import make_store

    device, found = FakeAccelerator.start(), {}
    no_autocast = mock.patch("experiments.training.learner.autocast", lambda *_: contextlib.nullcontext())
    sizes = {"model.visual_downsample": 2, "loss.num_points": 32, "train.batch_size": 6, "train.steps_per_epoch": 3,
             "train.eval_batch_size": 2, "train.precision": "fp32"}  # fmt: skip
    sizes |= {"model.num_layers": 1, "model.decoder_layers": 3} if few else {}
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name) / "store")
        for case, changes in CASES.items():
            config = replace(TrialConfig(), sizes | changes)
            torch.manual_seed(0)
            learner = Learner(config, build_model(config, store).to(device).train())
            with FakeAccelerator.like_a_gpu(), no_autocast:
                steps = list(Sampler(config, store, device).batches(0))
                learner.step(steps[0], 0, 9)
                found[case] = count(partial(learner.step, steps[1], 1, 9), device)
        config = replace(TrialConfig(), sizes)
        model, rows = build_model(config, store).to(device), rows_of(store, ("val",))[:6]
        evaluation = partial(predictions, config.train, model, store, rows, device)
        found["three batches of evaluation"] = count(lambda: list(evaluation()), device)
    return found


def main() -> int:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--few", action="store_true", help="few layers")
    args = parser.parse_args()
    found = count_small(args.few)
    if args.json:
        print(json.dumps({name: vars(counts) for name, counts in found.items()}))
        return 0
    for name, counts in found.items():
        print(f"{name}: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
