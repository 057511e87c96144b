"""The settings of one trial; those of the head and of the losses are described beside their code.

How a head is trained is described here and not in `train.py`, because evaluation and pictures read it too, which
training calls.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from refavs.config import replace
from refavs.errors import ConfigError, SettingError
from refavs.model.heads.registry import DEFAULT, default_options
from refavs.model.options import HeadOptions, LossConfig, require

HEAD = "model.head"
MOST_SEED = 2**64 - 1  # that torch takes


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained.

    Attributes:
        epochs: training epochs; each ends with a validation, a checkpoint and a line in the history; 0
            evaluates the head that `init` names.
        steps_per_epoch: batches in an epoch; 0 shows each training expression once.
        batch_size: expressions in a batch, which is one step of the optimiser, over all workers and parts.
        accumulate: parts in which a worker computes its share of a batch, to save memory. The gradient is that of the
            whole batch; points of the losses and dropout are drawn for each part by itself.
        expressions_per_clip: expressions of one clip that a batch takes together, so that the clip's maps are read
            once. One learns most in a step; more are cheaper (grid `per_clip` measures both).
        frames: seconds of each clip that are decoded in a step, drawn for each step; 0 decodes all. The cached memory
            sees every second in either case.
        learning_rate: AdamW's learning rate, at its largest.
        weight_decay: AdamW's decay of the weights.
        sampling: `uniform` over expressions, or `dimension`: each dimension, and the nulls, equally often.
        acoustic_temporal_weight: with sampling `dimension`, how often the expressions that need both sound and time are
            drawn for each one of another dimension; they are learned last.
        warmup_steps: steps in which the learning rate rises linearly from zero.
        decay_start: share of all steps after which the learning rate falls to zero along a cosine.
        clip_norm: largest norm of the gradient.
        precision: `bf16` and `fp16` run the model under autocast; `fp16` scales the loss and skips steps that overflow.
            `auto` is bf16 on a device that has instructions for it, else fp32; a trial keeps what it began with.
        ema_decay: share that the running mean of the weights keeps of itself in a step (less in the first steps); the
            mean is then evaluated and kept, not the last weights. 0 is without.
        order_seed: seed of the order of the batches and of the seconds drawn; None takes the trial's seed. Trials with
            the same one read the same batches and can share one read (`--fuse`), different seeds as well. Such seeds
            differ only in initial weights, points and dropout, so that the interval over them is narrower than over
            seeds with orders of their own.
        patience: epochs without a better val J after which training ends and keeps the best epoch's weights; 0 trains
            all epochs and keeps the last.
        init: folder of a trained head, such as a trial's `checkpoint`, to start from; None starts from new weights.
            A head that is only evaluated may take a file in a format of its own instead.
        compile: whether the model runs through torch.compile, which needs a C++ compiler.
        eval_batch_size: expressions in a batch of evaluation; changes no result of a head that treats each by itself.
    """

    epochs: int = 50
    steps_per_epoch: int = 0
    batch_size: int = 8
    accumulate: int = 1
    expressions_per_clip: int = 1
    frames: int = 0
    sampling: Literal["uniform", "dimension"] = "uniform"
    acoustic_temporal_weight: float = 1.0
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 0
    decay_start: float = 0.0
    clip_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    ema_decay: float = 0.0
    order_seed: int | None = None
    patience: int = 0
    init: str | None = None
    compile: bool = False
    eval_batch_size: int = 16

    def __post_init__(self) -> None:
        require(self, "batch_size accumulate expressions_per_clip eval_batch_size", "a whole number from 1",
                lambda value: value >= 1)  # fmt: skip
        if self.epochs < 1 and (self.epochs or self.init is None):
            raise SettingError(
                f"epochs is {self.epochs}; accepted: a whole number from 1, or 0 to evaluate a given train.init",
                "epochs", "init",
            )  # fmt: skip
        require(self, "steps_per_epoch frames warmup_steps weight_decay patience", "0 or more",
                lambda value: value >= 0)  # fmt: skip
        require(self, "learning_rate clip_norm acoustic_temporal_weight", "a number above 0",
                lambda value: 0 < value < math.inf)  # fmt: skip
        if self.sampling == "uniform" and self.acoustic_temporal_weight != 1:
            raise SettingError(
                f"acoustic_temporal_weight is {self.acoustic_temporal_weight} with train.sampling uniform, which has "
                "no weights; set train.sampling to dimension", "acoustic_temporal_weight", "sampling",
            )  # fmt: skip
        require(self, "order_seed", f"a whole number from 0 to {MOST_SEED}, or null",
                lambda value: 0 <= value <= MOST_SEED)  # fmt: skip
        require(self, "decay_start", "a share of all steps from 0 to 1", lambda value: 0 <= value <= 1)
        require(self, "ema_decay", "from 0 (none) to below 1, as 0.999", lambda value: 0 <= value < 1)


@dataclass(frozen=True, kw_only=True)
class TrialResources:
    """What one trial runs on, which is no part of a trial's key.

    Attributes:
        workers: processes that share each batch, under Ray Train where they are several. With no more than a few
            expressions for each, they gain nothing: run more trials at once instead, several on one GPU by
            --gpus-per-trial auto, or several over one read by --fuse auto. The number of workers changes results by
            rounding only, but with loss.num_points or model.dropout, which are drawn for each part of a batch, as much
            as another seed.
        cpus: processors of each worker; None takes --cpus-per-trial.
        gpus: GPUs of each worker, or its share of one; None takes --gpus-per-trial.
    """

    workers: int = 1
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        require(self, "workers", "a whole number from 1", lambda value: value >= 1)
        require(self, "cpus", "a number above 0, or null", lambda value: 0 < value < math.inf)
        require(self, "gpus", "0 or a number above it, or null", lambda value: 0 <= value < math.inf)


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that decides a trial's outcome, apart from the features it reads; and what it runs on.

    Attributes:
        model: the head.
        loss: what it is trained to minimise.
        train: how it is trained.
        resources: what the trial runs on.
        seed: of the initial weights and all that is drawn; a grid lists it under `seeds`.
    """

    model: HeadOptions = field(default_factory=default_options)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resources: TrialResources = field(default_factory=TrialResources)
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, "seed", f"a whole number from 0 to {MOST_SEED}", lambda value: 0 <= value <= MOST_SEED)
        needs = self.model.needs()
        for name, read in (("audio", needs.audio), ("text", needs.text)):
            if read and getattr(self.model, name) is False:
                raise SettingError(f"{name} is false, which the head {self.model.head} cannot leave out; take true, or "
                                   "name an encoder", f"model.{name}")  # fmt: skip

    @property
    def order_seed(self) -> int:
        """The seed of what a trial reads, in which order."""
        return self.seed if self.train.order_seed is None else self.train.order_seed


def defaults(head: Any = DEFAULT) -> TrialConfig:
    """The settings of a trial with this head, all at their defaults.

    Raises:
        ConfigError: no such head, or one that cannot be loaded.
    """
    if not isinstance(head, str):
        raise ConfigError(f"{HEAD} is {head!r}; accepted: the name of a head, as {DEFAULT}")
    return TrialConfig(model=default_options(head))


def trial_config(settings: Mapping[str, Any]) -> TrialConfig:
    """The settings of a trial by their dotted names, others at the defaults of its head.

    Raises:
        ConfigError: a setting that the head lacks, or a value of another type.
        SettingError: values out of range or that do not agree.
    """
    config = replace(defaults(settings.get(HEAD, DEFAULT)), settings)
    if config.train.epochs and not config.model.trainable:
        raise SettingError(
            f"{HEAD} is {config.model.head}, which is evaluated, not trained: give --set train.epochs=0 and "
            "train.init, the file of its weights", HEAD, "train.epochs",
        )  # fmt: skip
    return config
