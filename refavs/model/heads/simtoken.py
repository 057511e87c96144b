"""SimToken's decoder half: one token, made from words, sound and pixels, prompts SAM 2's decoder in all steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.errors import ConfigError
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.parts.baseline_inputs import MapInput
from refavs.model.heads.parts.baseline_masks import flat_pair, mean_of_frames, resized
from refavs.model.heads.parts.prompt_fusion import PromptFusion
from refavs.model.heads.parts.sam_decoder import (
    Sam2Decoder,
    SamWeightsFolder,
    in_blocks,
    pointwise,
    require_same_sam,
)
from refavs.model.heads.parts.simtoken_options import FINER, SAM_MAP, SimTokenOptions
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.losses import mask_bce, mask_dice
from refavs.model.options import LossConfig
from refavs.model.target import Target
from refavs.model.visual import Statistics

SCALES = {SAM_MAP: 1, "s8": 2, "s4": 4}  # of the sides of each map over those of SAM's map
FOLDS = {SAM_MAP: 1, "s8": 4, "s4": 8}  # by which the width of the decoder is divided at each map


@dataclass
class SimTokenOutput:
    """Mask logits, and logits that are positive where a step shows the object; None where there is no such score."""

    logits: Float[Tensor, "b t h w"]
    scores: Float[Tensor, "b t"] | None


class SimToken(Head):
    """Follows SimToken (arXiv 2509.17537) from its prompt token on.

    Chosen over AuralSAM2 because it reads what a store of SAM 2.1 has: AuralSAM2 fuses 59 M parameters into the raw
    maps of the feature pyramid, 440 MB per clip. SimToken's idea, one token for all steps, is also a question of its
    own, which `prompt=second` answers.

    Differs: a small transformer makes the token in place of a multimodal language model, so the published numbers of
    SimToken are those of a far larger model; SAM 2.1 in place of SAM, whose object score says which steps show the
    object; no loss that aligns the tokens of expressions about one object.
    """

    losses: ClassVar[tuple[str, ...]] = ("bce", "dice", "object")

    def __init__(self, options: SimTokenOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        width, as_stored = options.channels, options.decoder_weights != "random"
        coarse = sizes.map(SAM_MAP)
        if as_stored and coarse.channels != width:
            raise ConfigError(
                f"model.decoder_weights={options.decoder_weights} reads maps of {width} channels, the store's has "
                f"{coarse.channels}; take --set model.decoder_weights=random"
            )
        self.maps = MapInput(sizes, as_stored=as_stored)
        self.necks = nn.ModuleDict({} if as_stored else {
            size.name: nn.Conv2d(size.channels, width // FOLDS[size.name], 1) for size in sizes.maps
        })  # fmt: skip
        self.fusion = PromptFusion(
            sizes.audio, sizes.text, coarse, width, options.num_heads, options.fusion_layers,
            options.feedforward_channels, options.tokens_per_side, by_step=options.prompt == "second",
        )  # fmt: skip
        self.decoder = Sam2Decoder(
            width, options.num_heads, options.decoder_layers, options.decoder_feedforward_channels
        )
        if not options.choice("object_score"):
            self.decoder.pred_obj_score_head.requires_grad_(False)

    def parts(self) -> dict[str, nn.Module]:
        return {"mask decoder": self.decoder, "fusion": self}

    def set_statistics(self, statistics: Statistics) -> None:
        self.maps.set_statistics(statistics)
        self.fusion.set_statistics(statistics)

    def load_pretrained(self, folder: Path, encoders: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Loads SAM 2.1's mask decoder, on the maps of the same SAM 2.1."""
        require_same_sam(folder, self.sizes.map(SAM_MAP).stream, encoders)
        self.decoder.load(folder)
        return []

    @classmethod
    def pretrained_stamp(cls, folder: Path) -> str:
        """The digest of SAM 2.1's file."""
        return SamWeightsFolder(folder).stamp

    def steps_read(self, steps: Sequence[int]) -> Mapping[str, Sequence[int]]:
        """The finer maps of those to predict; the fusion reads the coarse map of all steps."""
        return dict.fromkeys(FINER, steps)

    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None) -> SimTokenOutput:
        """The fusion reads all steps; the decoder runs on the chosen ones."""
        maps = self.maps(batch, steps, once)
        shape = {"b": len(batch), "t": maps[SAM_MAP].shape[1]}
        prompt = self.fusion(batch, once)
        if self.options.prompt == "second" and steps is not None:
            prompt = prompt[:, steps.index]
        prompt = rearrange(prompt.expand(-1, shape["t"], -1), "b t c -> (b t) 1 c")
        coarse, *finer = (self._frames(name, maps[name], batch) for name in (SAM_MAP, *reversed(FINER)))
        coarse = rearrange(coarse, "s (h w) c -> s c h w", h=maps[SAM_MAP].shape[-2])
        logits, scores = self.decoder.segment(coarse, finer, prompt)
        return SimTokenOutput(
            rearrange(logits, "(b t) h w -> b t h w", **shape),
            rearrange(scores.float(), "(b t) -> b t", **shape) if self.options.choice("object_score") else None,
        )

    def loss(self, output: SimTokenOutput, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy and Dice of the masks, and the cross-entropy of the object score."""
        logits, labels = flat_pair(output.logits, target)
        bce, dice = (mean_of_frames(of_frame(logits, labels), target) for of_frame in (mask_bce, mask_dice))
        total, score = self.options.bce * bce + self.options.dice * dice, bce.new_zeros(())
        if output.scores is not None:
            shown = labels.any(dim=-1).float()
            score = mean_of_frames(
                nn.functional.binary_cross_entropy_with_logits(output.scores, shown, reduction="none"), target
            )
            total = total + self.options.choice("object_score") * score
        return {"total": total, "bce": bce.detach(), "dice": dice.detach(), "object": score.detach()}

    def probs(self, output: SimTokenOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """The sigmoid of the logits; zero in steps that do not show the object."""
        found = resized(output.logits.float(), size).sigmoid()
        if output.scores is None:
            return found
        return torch.where(rearrange(output.scores > 0, "b t -> b t 1 1"), found, 0.0)

    def _frames(self, name: str, maps: Float[Tensor, "u t d h w"], batch: Batch) -> Float[Tensor, "s n *blocks c"]:
        """A map in the width that the decoder has there, `in_blocks`, for all frames of each expression."""
        pixels = in_blocks(rearrange(maps, "u t d h w -> (u t) d h w"), SCALES[name])
        if name in self.necks:
            pixels = pointwise(cast(nn.Conv2d, self.necks[name]), pixels)
        return batch.of_expressions(pixels.unflatten(0, (len(maps), -1))).flatten(0, 1)
