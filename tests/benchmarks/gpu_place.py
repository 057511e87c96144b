"""The device and data of the checks in `gpu_checks.py`, their measuring tools, and the rows that they yield."""

import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.grid.config import TrialConfig
from experiments.training.learner import Learner
from experiments.training.loop import build_model
from experiments.training.sampler import Sampler
from extract.encoders.mask2former import VISUAL_LEVELS
from extract.encoders.presets import preset_named
from extract.encoders.streams import StreamSet
from extract.encoders.weights import WeightSource
from refavs import config as settings
from refavs.choices import PRECISIONS, Precision
from refavs.data.batches import Batch
from refavs.machine.accelerator import compute_fp32_exactly
from refavs.store import FeatureStore

sys.path.insert(0, str(Path(__file__).parent))
from bench_extract import streams_of
from train_store import write_store

NOTHING = "n/a"
RANDOM = WeightSource(kind="random")
SMALL = {"model.num_layers": 1, "model.num_queries": 8, "model.num_heads": 4, "model.decoder_layers": 3}
Parts = list[tuple[int, Batch]]


@dataclass(kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        cells: by precision; what is missing was not asked for.
        failed: why it is not as it should be.
    """

    check: str
    cells: dict[str, str] = field(default_factory=dict)
    failed: str = ""

    def bound(self, precision: str, value: float, limit: float) -> None:
        """Adds an error that has a limit."""
        self.cells[precision] = f"{value:.1e}"
        if not value <= limit:
            self.failed = "; ".join(filter(None, [self.failed, f"{precision}: {value:.1e} is above {limit:.0e}"]))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and on what a check runs."""

    device: torch.device
    preset: str
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    @property
    def small(self) -> bool:
        """Whether only that it runs is asked, not how fast."""
        return self.preset == "tiny"

    @property
    def steps(self) -> int:
        """Steps of training that are timed."""
        return 8 if self.cuda else 2

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that the device computes in."""
        return PRECISIONS if self.cuda else ("fp32", "bf16")

    def row(self, check: str) -> Row:
        """A row whose other precisions are not to be had here."""
        return Row(check=check, cells={name: NOTHING for name in PRECISIONS if name not in self.precisions})

    def streams(self, precision: Precision, device: torch.device | None = None) -> StreamSet:
        """Both levels."""
        weights = WeightSource() if self.small else RANDOM
        return streams_of(self.preset, weights, VISUAL_LEVELS, precision, (device or self.device).type)

    @functools.cached_property
    def store(self) -> FeatureStore:
        """Clips of noise, made once for all checks."""
        location = self.folder / "store"
        if location.is_dir():
            return FeatureStore(location)
        streams = streams_of(self.preset, RANDOM, ("pixel_decoder",), "fp32")
        size = preset_named(self.preset).mask_size
        return write_store(location, streams.specs(), ["train"] * 8, mask_size=size)

    def config(self, **changes: Any) -> TrialConfig:
        """A trial on that store; dots in names are written `__`."""
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return settings.replace(TrialConfig(), (SMALL if self.small else {}) | named)

    def learner(self, config: TrialConfig, device: torch.device | None = None) -> Learner:
        """A head before its first step, the same on every device."""
        compute_fp32_exactly()
        torch.manual_seed(0)
        return Learner(config, build_model(config, self.store).to(device or self.device).train())

    def parts(self, config: TrialConfig, number: int = 1) -> list[Parts]:
        """The first batches of training, on the host."""
        return list(itertools.islice(Sampler(config, self.store).batches(0), number))

    def wait(self) -> None:
        """For the GPU to have done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], rounds: int = 0) -> float:
        """Median time of a call, after one that is not counted."""
        found = []
        for _ in range((rounds or self.steps) + 1):
            self.wait()
            started = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - started)
        return statistics.median(found[1:])

    def on_gpu(self, call: Callable[[], Any]) -> dict[str, float]:
        """Milliseconds in which the GPU computes (`busy`) and copies (`HtoD`, `DtoH`) in a call."""
        kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=kinds) as profile:
            call()
            self.wait()
        found: dict[str, float] = {"busy": 0.0, "HtoD": 0.0, "DtoH": 0.0}
        for event in profile.events() or []:
            if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False):
                way = next((way for way in ("HtoD", "DtoH") if way in event.name), "busy")
                found[way] += event.device_time / 1e3
        return found
