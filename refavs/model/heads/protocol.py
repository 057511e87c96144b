'''The protocol of heads: a head is the trainable part that turns stored features and an expression into masks.

A package adds a head without a change here. It installs the entry point `mine = "my_head:MyOptions"` in the group
`refavs.heads`, where `mine` is also the default of `MyOptions.head`. Then `--set model.head=mine` trains it, and
`refavs-sweep settings mine` lists its settings. `refavs.model.heads.contract.check_head` tests it on a small store.

A complete head:

    @dataclass(frozen=True, kw_only=True)
    class MyOptions(HeadOptions):
        """Attributes:
            width: channels inside the head.
        """

        head: str = "mine"
        width: int = 64
        implementation: ClassVar[str] = "my_head:MyHead"

        def needs(self) -> Needs:
            return Needs(maps=(("mask_features",), ("res2",)), text=False)

    class MyHead(Head):
        def __init__(self, options: MyOptions, sizes: FeatureSizes) -> None:
            super().__init__(options, sizes)
            self.read = nn.Linear(sizes.maps[0].channels, options.width)
            self.listen = nn.Linear(sizes.audio.channels, options.width)

        def forward(self, batch, steps=None, once=None):
            index = slice(None) if steps is None else steps.index
            pixels = batch.visual[self.sizes.maps[0].name][batch.clip][:, index].float()
            sound = self.listen(batch.audio[batch.clip][:, index].float())
            return torch.einsum("btchw,dc,btd->bthw", pixels, self.read.weight, sound)  # mask logits

        def loss(self, output, target, weights):
            masks = nn.functional.adaptive_avg_pool2d(target.masks.float(), output.shape[-2:])
            of_frame = nn.functional.binary_cross_entropy_with_logits(output, masks, reduction="none").mean((2, 3))
            if target.labelled is not None:
                of_frame = of_frame * target.labelled
            return {"total": of_frame.sum() / max(1, target.whole.shown + target.whole.null)}

        def probs(self, output, size):
            return nn.functional.interpolate(output.float().sigmoid(), size=size, mode="bilinear")
'''

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.memory_budget import require_memory
from refavs.model.options import HeadOptions, LossConfig
from refavs.model.target import Target
from refavs.model.visual import Statistics
from refavs.store.reader import FeatureStore


class PartSize(NamedTuple):
    """The number of trained and of frozen parameters in a part of the head."""

    part: str
    trained: int
    frozen: int


@dataclass(frozen=True)
class ChosenSteps:
    """A selection of a clip's steps, in ascending order.

    Attributes:
        index: selects them from an axis of steps.
        end: one past the last selected step; a plain int, so reading it does not wait for a device.
    """

    index: Int[Tensor, "f"]
    end: int

    @classmethod
    def of(cls, steps: Sequence[int], device: torch.device | str = "cpu") -> "ChosenSteps":
        """Selects `steps`, with the index on `device`."""
        index = torch.tensor(steps, dtype=torch.long)
        return cls(index.to(device, non_blocking=True), max(steps) + 1)


class Head(nn.Module, abc.ABC):
    """Base of every head. A subclass defines `forward`, `loss` and `probs`; the rest has defaults it may override.

    Attributes:
        options: its settings.
        sizes: the features that it reads.
        losses: names of the losses that `loss` returns besides `total`.
        own_format: whether `train.init` names a file for `load_own` rather than a checkpoint of this package.
        remembers: whether `next_piece` carries a memory, so that it takes pieces of any length.
    """

    losses: ClassVar[tuple[str, ...]] = ()
    own_format: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    def __init__(self, options: Any, sizes: FeatureSizes) -> None:
        super().__init__()
        require_memory(options, sizes, torch.get_default_device())
        self.options, self.sizes = options, sizes

    @classmethod
    def from_store(cls, store: FeatureStore, options: HeadOptions) -> "Head":
        """Builds a head for the features of `store` and sets their statistics.

        Raises:
            ConfigError: the options do not fit the store.
            StoreError: the store lacks maps that the head reads.
        """
        head = cls(options, FeatureSizes.from_store(store, options.needs(), options.head))
        head.set_statistics(store.statistics)
        return head

    @abc.abstractmethod
    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None) -> Any:
        """Computes the output that `loss` and `probs` take.

        Args:
            batch: features, not standardised.
            steps: those to predict; None is all.
            once: shares what no parameter enters with the other heads of this kind that read this batch.
        """

    @abc.abstractmethod
    def loss(self, output: Any, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """Returns `total`, which is minimised, and the losses named in `losses`, without gradients."""

    @abc.abstractmethod
    def probs(self, output: Any, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """Probability that each pixel belongs to the referred object; `size` is height and width of the result."""

    def steps_read(self, steps: Sequence[int]) -> Mapping[str, Sequence[int]]:
        """The steps of each map that `forward` reads to predict `steps`, by the map's name; a map that is left out
        is read whole.

        A name by `pooled_name` asks for the pooled map, which is in the batch if the store has it; else the map itself
        is in the batch in those steps. `Maps.part` selects steps from maps that were read in part.
        """
        return {}

    def next_piece(self, batch: Batch, past: Any = None, window: int | None = None) -> tuple[Any, Any]:
        """Computes the output for the next steps of a long video, and what to pass for the piece after them.

        By default each piece is treated as a clip by itself, with as many steps as the clips of training.

        Args:
            past: the second result of the call for the previous piece, which may change it; None for the first piece.
            window: how many earlier steps a memory covers; None for all.
        """
        return self(batch), None

    def set_statistics(self, statistics: Statistics) -> None:
        """Takes the mean and standard deviation of each channel, by array path; called before training."""

    def load_pretrained(self, folder: Path, encoders: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Loads pretrained weights.

        Args:
            folder: the folder in `--weights-dir` that `HeadOptions.pretrained` names.
            encoders: fingerprints of the store's encoders.

        Returns:
            Parts that still start from random weights, each with the reason.
        """
        return []

    @classmethod
    def pretrained_stamp(cls, folder: Path) -> str:
        """The digest of the weights that `load_pretrained` would load."""
        raise NotImplementedError

    def load_own(self, path: Path, encoders: Mapping[str, Mapping[str, Any]]) -> None:
        """Loads the file that `train.init` names; `encoders` are the fingerprints of the store's encoders."""
        raise NotImplementedError

    @classmethod
    def own_stamp(cls, path: Path) -> str:
        """The digest of the file that `load_own` would load."""
        raise NotImplementedError

    def parts(self) -> dict[str, nn.Module]:
        """The parts to count, by name; a module in two of them belongs to the first. The last one is the whole head."""
        return {"head": self}

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters for the optimiser."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def part_sizes(self) -> list[PartSize]:
        """Sizes of the parts, in reverse order of `parts`."""
        sizes, counted = [], set()
        for name, part in self.parts().items():
            own = [parameter for parameter in part.parameters() if id(parameter) not in counted]
            counted |= {id(parameter) for parameter in own}
            trained = sum(parameter.numel() for parameter in own if parameter.requires_grad)
            sizes.append(PartSize(name, trained, sum(parameter.numel() for parameter in own) - trained))
        return [*sizes[-1:], *sizes[1:-1], *sizes[: len(sizes) > 1]]
