"""The resources of a machine or cluster that a sweep may use."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from experiments.grid.config import TrialResources
from refavs.errors import ConfigError

ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Ask:
    """The resources of a trial: `workers`, each with a number of processors and GPUs on one node."""

    workers: int
    cpus: float
    gpus: float

    @property
    def amounts(self) -> dict[str, float]:
        """Resources of one worker, by Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources that a sweep may use.

    Attributes:
        address: a running Ray cluster, whose nodes see the store and the sweep's folder under the same paths; None
            starts Ray on this machine for the duration of the sweep.
        max_concurrent: maximum number of concurrent trials; None means as many as the processors allow.
        fuse: maximum number of trials that train together in one process if they read the same batches; or `auto`, see
            `experiments.cluster.grouping`.
        cpus_per_trial: processors per trial, or per worker if it has several; likewise for GPUs.
        pack_gpus: whether the share of a GPU must still be measured, see `experiments.cluster.packing`.
    """

    address: str | None = None
    max_concurrent: int | None = None
    fuse: int | Literal["auto"] = 1
    cpus_per_trial: float = 1
    gpus_per_trial: float = 0
    pack_gpus: bool = False

    def local_cpus(self, available: int, num_workers: int = 1) -> int:
        """Number of processors to give to Ray on this machine: all, or as many as the concurrent trials use."""
        if self.max_concurrent is None:
            return available
        return max(1, math.ceil(min(available, self.max_concurrent * num_workers * self.cpus_per_trial)))

    def of(self, trial: TrialResources) -> "Resources":
        """A copy with the trial's own requests in place of the defaults."""
        cpus = self.cpus_per_trial if trial.cpus is None else trial.cpus
        gpus = self.gpus_per_trial if trial.gpus is None else trial.gpus
        return replace(self, cpus_per_trial=cpus, gpus_per_trial=gpus)

    def ask(self, trial: TrialResources) -> Ask:
        """The resources that a trial requests."""
        of_trial = self.of(trial)
        return Ask(workers=trial.workers, cpus=of_trial.cpus_per_trial, gpus=of_trial.gpus_per_trial)

    def places(self, nodes: Sequence[Mapping[str, float]], num_workers: int = 1) -> int:
        """The number of trials with `num_workers` that can run at the same time.

        Args:
            nodes: the resources of each node by Ray's names, e.g. `{"CPU": 2.0, "GPU": 1.0}`.

        Raises:
            ConfigError: a single trial requests more than exists, so that Ray would wait forever.
        """
        asked = {name: amount for name, amount in self.asked.items() if amount}
        places = sum(min(_times(name, amount, node.get(name, 0)) for name, amount in asked.items()) for node in nodes)
        if places >= num_workers:
            groups = places // num_workers
            return min(groups, self.max_concurrent or groups)
        found = "; ".join(sorted({_amounts(node) for node in nodes})) or "no node at all"
        lower = [
            f"--{name.lower()}s-per-trial" for name, amount in asked.items()
            if not any(_times(name, amount, node.get(name, 0)) for node in nodes)
        ]
        each = f"{num_workers} workers with {_amounts(self.asked)} each" if num_workers > 1 else _amounts(self.asked)
        remedy = " and ".join(lower or ["resources.workers" if places else "--cpus-per-trial or --gpus-per-trial"])
        raise ConfigError(
            f"a trial asks for {each}, and Ray found nodes with {found}; lower {remedy}, or name a cluster that has it "
            "by --address"
        )

    @property
    def asked(self) -> dict[str, float]:
        """The request of one worker, by Ray's names."""
        return {"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial}


def _times(name: str, amount: float, available: float) -> int:
    """How often an amount fits; a share of a GPU must be on one device."""
    if name == "GPU" and amount < 1:
        return int(available) * int(1 / amount + ROUNDING)
    return int(available / amount + ROUNDING)


def _amounts(node: Mapping[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs"


@dataclass
class _Free:
    """The free resources of a node: processors, and the free share of each GPU."""

    cpus: float
    gpus: list[float]

    def takes(self, ask: Ask) -> bool:
        """Reserves a worker's request on the GPU with the smallest sufficient share; returns whether it fits."""
        places = [place for place, left in enumerate(self.gpus) if left >= min(1.0, ask.gpus) - ROUNDING]
        num_gpus = math.ceil(ask.gpus - ROUNDING)
        if self.cpus < ask.cpus - ROUNDING or len(places) < num_gpus:
            return False
        self.cpus -= ask.cpus
        for place in sorted(places, key=lambda place: self.gpus[place])[:num_gpus]:
            self.gpus[place] -= min(1.0, ask.gpus)
        return True


def fit_together(asks: Iterable[Ask], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether all requests fit together; places the largest first, each where it leaves the least free."""
    free = [_Free(node.get("CPU", 0.0), [1.0] * int(node.get("GPU", 0))) for node in nodes]
    for ask in sorted(asks, key=lambda ask: (ask.gpus, ask.cpus), reverse=True):
        for _ in range(ask.workers):
            if not any(node.takes(ask) for node in sorted(free, key=lambda node: (sum(node.gpus), node.cpus))):
                return False
    return True
