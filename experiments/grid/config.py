"""The settings of one trial; those of the head and of the losses are described beside their code.

The training settings are here rather than with the training loop, because evaluation and overlays, which the loop
calls, read them too.
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
MOST_SEED = 2**64 - 1  # torch's limit


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained.

    Attributes:
        epochs: number of training epochs; each ends with a validation, a checkpoint and a line in the history. 0 only
            evaluates the head that `init` names.
        steps_per_epoch: number of batches per epoch; 0 uses each training expression once.
        batch_size: number of expressions per optimiser step, over all workers and parts.
        accumulate: number of parts in which a worker computes its share of a batch, to save memory. The gradient is
            that of the whole batch; loss points and dropout are drawn separately for each part.
        expressions_per_clip: number of expressions of one clip that a batch takes together, so that the clip's maps are
            read once. 1 learns most per step; more are cheaper (grid `per_clip` measures both).
        frames: number of frames of each clip decoded in a step, drawn at random for each step; 0 decodes all. The
            cached memory reads every step in any case.
        learning_rate: AdamW's peak learning rate.
        weight_decay: AdamW's weight decay.
        sampling: `uniform` over expressions, or `dimension`: each dimension, and the nulls, equally often.
        acoustic_temporal_weight: with sampling `dimension`, relative frequency of the expressions that need both sound
            and time, which are learned last.
        warmup_steps: number of steps in which the learning rate rises linearly from zero.
        decay_start: fraction of all steps after which the learning rate falls to zero along a cosine.
        clip_norm: maximum norm of the gradient.
        precision: `bf16` and `fp16` run the model under autocast; `fp16` scales the loss and skips steps that overflow.
            `auto` is bf16 on a device with instructions for it, else fp32; a resumed trial keeps its precision.
        ema_decay: decay of the running mean of the weights per step (lower in the first steps). The mean is evaluated
            and kept instead of the last weights. 0 disables it.
        order_seed: seed of the order of batches and of the steps drawn; None uses the trial's seed. Trials with the
            same order_seed read the same batches and can share one read (`--fuse`), even with different seeds. Such
            seeds differ only in initial weights, points and dropout, so their interval is narrower than that over seeds
            with different orders.
        patience: number of epochs without a better val J after which training ends and keeps the best epoch's weights;
            0 trains all epochs and keeps the last weights.
        init: folder of a trained head to start from, such as a trial's `checkpoint`; None starts from new weights. For
            a head that is only evaluated it may be a file in the head's own format.
        compile: whether the model runs through torch.compile, which needs a C++ compiler.
        eval_batch_size: number of expressions per evaluation batch; no effect on the results of a head that treats
            expressions independently.
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
    """The resources of one trial, which are not part of its key.

    Attributes:
        workers: number of processes that share each batch, under Ray Train if there are several. They gain nothing if
            each gets only a few expressions: run more trials at once instead, several on one GPU with --gpus-per-trial
            auto, or several over one read with --fuse auto. The number of workers changes results only by rounding.
            With loss.num_points or model.dropout, which are drawn for each part of a batch, it changes them as much as
            another seed does.
        cpus: processors per worker; None uses --cpus-per-trial.
        gpus: GPUs per worker, or a share of one; None uses --gpus-per-trial.
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
    """Everything that determines a trial's outcome, apart from the features it reads; and its resources.

    Attributes:
        model: options of the head.
        loss: weights of the losses.
        train: training settings.
        resources: resources of the trial.
        seed: seed of the initial weights and of all random choices; a grid lists it under `seeds`.
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
        """The seed of the order in which a trial reads."""
        return self.seed if self.train.order_seed is None else self.train.order_seed


def defaults(head: Any = DEFAULT) -> TrialConfig:
    """The default settings of a trial with this head.

    Raises:
        ConfigError: the head is unknown or cannot be loaded.
    """
    if not isinstance(head, str):
        raise ConfigError(f"{HEAD} is {head!r}; accepted: the name of a head, e.g. {DEFAULT}")
    return TrialConfig(model=default_options(head))


def trial_config(settings: Mapping[str, Any]) -> TrialConfig:
    """The settings of a trial from dotted names; the others have the defaults of its head.

    Raises:
        ConfigError: the head lacks a setting, or a value has another type.
        SettingError: values are out of range or in conflict.
    """
    config = replace(defaults(settings.get(HEAD, DEFAULT)), settings)
    if config.train.epochs and not config.model.trainable:
        raise SettingError(
            f"{HEAD} is {config.model.head}, which is evaluated, not trained: give --set train.epochs=0 and "
            "train.init, the file of its weights", HEAD, "train.epochs",
        )  # fmt: skip
    return config
