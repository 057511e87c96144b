"""A head in training: weights, their average, the optimiser and the training step, on one or several workers."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from jaxtyping import Bool, Int
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from experiments.grid.config import TrainConfig, TrialConfig
from experiments.training.evaluate import autocast
from experiments.training.sampler import chosen_steps, derived_seed
from refavs.config import replace
from refavs.data.batches import Batch
from refavs.errors import ConfigError
from refavs.machine.accelerator import resolved_precision
from refavs.model.batch_cache import Once
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.target import LabelCounts, Target


class NonFiniteError(ConfigError):
    """A loss or gradient is not finite; the trial stops before the weights are spoiled."""


@dataclass(frozen=True)
class Team:
    """The workers that train one head together; if there are several, their process group already exists."""

    rank: int = 0
    size: int = 1

    def add(self, values: Tensor) -> Tensor:
        """The sum of `values` over all workers, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values


class Learner:
    """Trains `model` as `config` says.

    Attributes:
        model: the weights in training.
        average: a head with the weights to evaluate and keep: their running mean, or `model` itself.
        best: these weights after the best epoch, if early stopping is on.
    """

    def __init__(self, config: TrialConfig, model: Head, team: Team | None = None) -> None:
        self.config, self.model, self.team = config, model, team or Team()
        settings = config.train
        self.device = next(model.parameters()).device
        self.trained = model.trained_parameters()
        self.average = copy.deepcopy(model) if settings.ema_decay else model
        self.averaged = [
            own for own, p in zip(self.average.parameters(), model.parameters(), strict=True) if p.requires_grad
        ]
        self.best: dict[str, Tensor] | None = None
        self.forward = torch.compile(model) if settings.compile else model
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.scaler.scale(torch.zeros((), device=self.device))  # creates the scale also on workers without a part

    def step(
        self, parts: Sequence[tuple[int, Batch]], step: int, num_steps: int, once: Once | None = None
    ) -> dict[str, Tensor]:
        """Takes one optimiser step on this worker's `parts` of a batch; returns the losses of the whole batch.

        The gradient is that of the whole batch, independent of the number of parts and workers: each part has its own
        random seed, and its losses are divided by the frame counts of the whole batch.

        Args:
            parts: parts of the batch on the CPU, with their number among all parts.
            once: cache of frozen results, shared with the other learners that take this step on the same parts. For a
                batch in several parts it caches only the counts, because parts exist to save memory.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the message names the step and the expressions.
        """
        rate = learning_rate(self.config.train, step, num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        shared = once or Once()
        chosen = shared("chosen", lambda: self._chosen(parts, step))
        whole = shared("whole", lambda: self._count(parts, chosen))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number, part in parts:
            torch.manual_seed(derived_seed(self.config.seed, "part", step, number))
            of_part = shared.of(number) if len(parts) == 1 else Once()  # a part's tensors are released with it
            losses = self._losses(part, chosen, whole, of_part)
            self.scaler.scale(losses["total"]).backward()
            for name, value in losses.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        sums = self._share(sums)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.train.clip_norm)
        skipped = torch.zeros_like(norm)
        if not bool(torch.isfinite(sums["total"]) & torch.isfinite(norm)):
            # fp16 overflows occasionally: the scaler then skips the step and lowers its scale.
            if not bool(torch.isfinite(sums["total"])) or not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
                raise NonFiniteError(self._refusal(sums["total"], norm, step, num_steps, parts))
            skipped, norm = torch.ones_like(norm), torch.zeros_like(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._take_average(step)
        return {**sums, "grad_norm": norm, **({"skipped_steps": skipped} if self.scaler.is_enabled() else {})}

    def _chosen(self, parts: Sequence[tuple[int, Batch]], step: int) -> list[int] | None:
        """The steps of a clip decoded in this training step, the same for all parts; None means all."""
        masks = [part.mask for _, part in parts if part.mask is not None]
        return chosen_steps(self.config, step, masks[0].shape[1]) if masks else None

    def _count(self, parts: Sequence[tuple[int, Batch]], chosen: list[int] | None) -> LabelCounts:
        """Frame counts of the whole batch; uses the device only to add them up over several workers."""
        shown = [_shown(part, chosen) for _, part in parts]
        counted = [_of_chosen(part.counted, chosen) for _, part in parts]
        found = (sum(int(one.sum()) for one in shown),
                 sum(int((known & ~one).sum()) for one, known in zip(shown, counted, strict=True)))  # fmt: skip
        if self.team.size > 1:
            num_shown, num_null = self.team.add(torch.tensor(found).to(self.device, non_blocking=True)).tolist()
            found = num_shown, num_null
        return LabelCounts(shown=found[0], null=found[1])

    def _losses(self, part: Batch, chosen: list[int] | None, whole: LabelCounts, once: Once) -> dict[str, Tensor]:
        part = once("on the device", lambda: part.to(self.device))
        assert part.mask is not None
        mask = part.mask
        steps = once("steps", lambda: None if chosen is None else ChosenSteps.of(chosen, self.device))
        with autocast(self.config.train, self.device):
            # A compiled model accepts only tensors.
            output = self.forward(part, steps) if self.config.train.compile else self.forward(part, steps, once)
        mask = once("mask", lambda: mask if steps is None else mask[:, steps.index])
        shown = once("shown", lambda: _places(_shown(part, chosen)).to(self.device, non_blocking=True))
        labelled = None
        if part.labelled is not None and not _of_chosen(part.counted, chosen).all():
            every = part.labelled
            labelled = once("labelled", lambda: every if steps is None else every[:, steps.index])
        target = Target(masks=mask, labelled=labelled, counts=whole, shown=shown, once=once)
        return self.model.loss(output, target, self.config.loss)

    def _share(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums gradients and losses over the workers in one message."""
        if self.team.size == 1:
            return sums
        names = ("total", *self.model.losses)
        losses = torch.stack([sums.get(name, torch.zeros((), device=self.device)).float() for name in names])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
        message = self.team.add(torch.cat([losses, *(grad.flatten() for grad in grads)]))
        sizes = [len(names), *(p.numel() for p in self.trained)]
        values, *shared = message.split(sizes)
        for p, grad in zip(self.trained, shared, strict=True):
            p.grad = grad.reshape(p.shape)
        return dict(zip(names, values, strict=True))

    @torch.no_grad()
    def _take_average(self, step: int) -> None:
        """Updates the average; faster in the first steps, so that it forgets the initial weights."""
        if self.average is self.model:
            return
        decay = min(self.config.train.ema_decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(tuple(self.averaged), tuple(self.trained), step)
        for own, buffer in zip(self.average.buffers(), self.model.buffers(), strict=True):
            own.copy_(buffer)  # statistics of a batch normalisation are a running mean already

    def _refusal(
        self, loss: Tensor, norm: Tensor, step: int, num_steps: int, parts: Sequence[tuple[int, Batch]]
    ) -> str:
        epoch, index = divmod(step, num_steps // self.config.train.epochs)
        rate, uids = self.optimizer.param_groups[0]["lr"], ", ".join(uid for _, part in parts for uid in part.uid)
        return (
            f"loss {float(loss)}, gradient norm {float(norm)} at epoch {epoch + 1}, step {index + 1}, learning rate "
            f"{rate:.3g}; expressions of the batch: {uids}; lower train.learning_rate or raise train.warmup_steps, or "
            "look for damaged features with refavs-store verify"
        )

    def keep_as_best(self) -> None:
        """Saves the weights that were just evaluated as the best ones."""
        self.best = {name: value.detach().clone() for name, value in self.average.state_dict().items()}

    def use_best(self) -> None:
        """Restores the best epoch's weights, if they were saved."""
        if self.best is not None:
            self.average.load_state_dict(self.best)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Everything that a resume needs: tensors by part and name, and plain facts."""
        state = self.optimizer.state_dict()
        moments = {
            f"{index}.{name}": value for index, values in state["state"].items() for name, value in values.items()
        }
        tensors = {"model": self.model.state_dict(), "optimizer": moments}
        if self.average is not self.model:
            tensors["average"] = self.average.state_dict()
        if self.best is not None:
            tensors["best"] = self.best
        facts = {"groups": state["param_groups"], "scaler": self.scaler.state_dict()}
        return tensors, facts | {"precision": self.config.train.precision}

    def load_state(self, tensors: Mapping[str, dict[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Restores the result of `state`.

        Raises:
            KeyError, RuntimeError, ValueError: the state belongs to other settings.
        """
        self.model.load_state_dict(tensors["model"])
        if self.average is not self.model:
            self.average.load_state_dict(tensors["average"])
        self.best = tensors.get("best")
        values: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors["optimizer"].items():
            index, name = key.split(".", 1)
            values.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": values, "param_groups": facts["groups"]})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(facts["scaler"])


def _of_chosen(known: Bool[np.ndarray, "b t"] | None, chosen: list[int] | None) -> Bool[np.ndarray, "b f"]:
    """Selects the chosen steps."""
    assert known is not None
    return known if chosen is None else known[:, chosen]


def _shown(part: Batch, chosen: list[int] | None) -> Bool[np.ndarray, "b f"]:
    """The chosen steps that are labelled and show the expression's object."""
    return _of_chosen(part.shown, chosen) & _of_chosen(part.counted, chosen)


def _places(shown: Bool[np.ndarray, "b t"]) -> Int[Tensor, "s"]:
    """Indices of the frames that show an object, expression after expression."""
    return torch.from_numpy(np.flatnonzero(shown))


def computed_as(config: TrialConfig, before: str | None, device: torch.device) -> TrialConfig:
    """The settings with the precision resolved: the one named, the one used `before` an interruption, or that of the
    device."""
    asked = config.train.precision
    precision = before if asked == "auto" and before is not None else resolved_precision(asked, device)
    return replace(config, {"train.precision": precision})


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, constant, then a cosine to zero."""
    rate = config.learning_rate
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    decay = config.decay_start * num_steps
    if step < decay:
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * (step - decay) / max(num_steps - decay, 1)))
