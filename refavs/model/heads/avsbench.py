"""AVSBench: dilated convolutions, temporal pixel-wise audio-visual interaction (TPAVI) at each stage, and a decoder."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.parts.baseline_inputs import CueInput, MapInput
from refavs.model.heads.parts.baseline_masks import MaskConvolutions, flat_pair, mean_of_frames, resized, sum_of_frames
from refavs.model.heads.parts.baseline_options import AVSBenchOptions
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.losses import mask_bce, mask_dice
from refavs.model.options import LossConfig
from refavs.model.target import Target
from refavs.model.visual import Statistics

DILATIONS = (3, 6, 12, 18)
SOUND_CHANNELS = 128  # of the cue, where no sound gives its width
START_DEVIATION = 0.01


@dataclass
class AVSBenchOutput:
    """Mask logits, and what the matching loss compares at each stage.

    Attributes:
        stages: maps after the interaction.
        sounds: the cue as each stage reads it.
    """

    logits: Float[Tensor, "b t h w"]
    stages: list[Float[Tensor, "b t c _ _"]]
    sounds: list[Float[Tensor, "b t c"]]


class AVSBench(Head):
    """Follows AVSBench (arXiv 2207.05042) and its release.

    Differs: the features are frozen and standardised; by default the interaction is normalised by step and not by
    batch, a Dice loss is added, and the matching loss is a mean over the frames in which a mask is predicted (see
    `AVSBenchOptions`).
    """

    losses: ClassVar[tuple[str, ...]] = ("bce", "dice", "matching")

    def __init__(self, options: AVSBenchOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        width, cue = options.channels, sizes.audio.channels if sizes.audio else SOUND_CHANNELS
        self.maps = MapInput(sizes)
        self.cue = CueInput(sizes, cue, lambda _: nn.Identity())
        self.dilated = nn.ModuleList(DilatedConvolutions(size.channels, width) for size in sizes.maps)
        self.interactions = nn.ModuleList(
            Interaction(width, cue, by_batch=options.choice("batch_norm")) for _ in sizes.maps
        )
        self.decoder = nn.ModuleList(
            FusionBlock(width, joins=number < len(sizes.maps) - 1) for number in range(len(sizes.maps))
        )
        self.masks = MaskConvolutions(width, scale=2)

    def parts(self) -> dict[str, nn.Module]:
        return {"decoder": nn.ModuleList([self.decoder, self.masks]), "dilated convolutions": self.dilated,
                "interaction": self}  # fmt: skip

    def set_statistics(self, statistics: Statistics) -> None:
        self.maps.set_statistics(statistics)
        self.cue.set_statistics(statistics)

    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None) -> AVSBenchOutput:
        """Every step is read, since each interacts with all; of those that are not chosen only means are computed."""
        cue, maps = self.cue(batch), self.maps(batch, None, once)
        index = slice(None) if steps is None else steps.index
        stages, sounds = [], []
        for convolutions, interaction, pixels in zip(self.dilated, self.interactions, maps.values(), strict=True):
            stage = _by_frame(convolutions, pixels[:, index])
            means = reduce(stage, "u t c h w -> u t c", "mean")
            if steps is not None:
                means = cast(DilatedConvolutions, convolutions).means(pixels)
            stage, sound = interaction(stage, means, cue, batch.clip)
            stages.append(stage)
            sounds.append(sound[:, index])
        decoded = None
        for number in reversed(range(len(stages))):
            finer = rearrange(stages[number], "b t c h w -> (b t) c h w")
            size = stages[number - 1].shape[-2:] if number else tuple(2 * side for side in finer.shape[-2:])
            decoded = self.decoder[number](finer, decoded, size)
        logits = rearrange(self.masks(decoded), "(b t) h w -> b t h w", b=len(batch))
        return AVSBenchOutput(logits, stages, sounds)

    def loss(self, output: AVSBenchOutput, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """Binary cross-entropy and Dice of all frames, and the matching loss."""
        logits, labels = flat_pair(output.logits, target)
        bce, dice = (mean_of_frames(of_frame(logits, labels), target) for of_frame in (mask_bce, mask_dice))
        of_stages = [_matching(output.logits, *pair) for pair in zip(output.stages, output.sounds, strict=True)]
        of_frame = torch.stack(of_stages).mean(dim=0)
        if self.options.choice("sum_matching"):
            matching = sum_of_frames(of_frame, target)
        else:
            predicted = (output.logits.flatten(2) > 0).any(dim=2)
            matching = mean_of_frames(torch.where(predicted, of_frame, 0.0), target)
        total = bce + self.options.choice("dice") * dice + self.options.matching * matching
        return {"total": total, "bce": bce.detach(), "dice": dice.detach(), "matching": matching.detach()}

    def probs(self, output: AVSBenchOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """The sigmoid of the logits."""
        return resized(output.logits.float(), size).sigmoid()


class DilatedConvolutions(nn.Module):
    """The sum of four convolutions that look further and further."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(in_channels, channels, 3, padding=rate, dilation=rate) for rate in DILATIONS
        )
        for convolution in self.convolutions:
            nn.init.normal_(cast(nn.Conv2d, convolution).weight, std=START_DEVIATION)

    def forward(self, maps: Float[Tensor, "s d h w"]) -> Float[Tensor, "s c h w"]:
        total = self.convolutions[0](maps)
        for convolution in self.convolutions[1:]:
            total = total + convolution(maps)
        return total

    def means(self, maps: Float[Tensor, "u t d h w"]) -> Float[Tensor, "u t c"]:
        """The mean of the result over all pixels, without the result.

        A tap of a convolution meets a rectangle of the pixels, since the rest of what it reads is padding. So the sums
        over nine rectangles, times the weights of their taps, add up to the sum of all pixels of the result.
        """
        (height, width), total = maps.shape[-2:], None
        rows, columns = ([_met_by_taps(length, rate, maps) for rate in DILATIONS] for length in (height, width))
        of_columns = torch.einsum("utdhw,iw->utdhi", maps, torch.cat(columns)).split(len(columns[0]), dim=-1)
        for convolution, met, met_rows in zip(self.convolutions, of_columns, rows, strict=True):
            weight, bias = convolution.parameters()
            sums = torch.einsum("utdhi,jh->utdji", met, met_rows)
            one = torch.einsum("utdji,cdji->utc", sums, weight) / (height * width) + bias
            total = one if total is None else total + one
        assert total is not None
        return total


class Interaction(nn.Module):
    """TPAVI: each pixel of each step meets the sound of all steps, and brings back what the pixels there show.

    Written out, pixel p takes 1/N sum_q <theta_p, phi_q> g_q over all N pixels q of the clip. There is no softmax and
    phi is the same for all pixels of a step, so the sum over q comes first: a matrix for each expression, by which
    theta is multiplied. The work then grows with N and not with its square, and the other steps enter only by their
    means.
    """

    def __init__(self, channels: int, sound_channels: int, by_batch: bool) -> None:
        super().__init__()
        inner = channels // 2
        self.align = nn.Linear(sound_channels, channels)
        self.theta, self.phi, self.g = (nn.Linear(channels, inner) for _ in range(3))
        self.out = nn.Linear(inner, channels)
        self.out_norm = nn.BatchNorm1d(channels) if by_batch else nn.GroupNorm(1, channels)
        nn.init.zeros_(self.out_norm.weight)  # at the start the interaction changes nothing
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, maps: Float[Tensor, "u f c h w"], means: Float[Tensor, "u t c"], sound: Float[Tensor, "b t d"],
        clip: Int[Tensor, "b"],
    ) -> tuple[Float[Tensor, "b f c h w"], Float[Tensor, "b t c"]]:  # fmt: skip
        """The maps after the interaction, and the sound as it was read there.

        Args:
            maps: of the distinct clips, the steps to predict.
            means: over the pixels of each step.
            sound: of all steps.
        """
        pixels = rearrange(maps, "u f c h w -> u (f h w) c")
        aligned = self.align(sound)
        matrix = torch.einsum("btd,bte->bde", self.phi(aligned), self.g(means)[clip]) / sound.shape[1]
        brought = torch.bmm(self.theta(pixels)[clip], matrix @ self.out.weight.T) + self.out.bias
        shape = {"f": maps.shape[1], "h": maps.shape[3]}
        brought = rearrange(brought, "b (f h w) c -> (b f) c (h w)", **shape)
        brought = rearrange(self.out_norm(brought), "(b f) c p -> b (f p) c", f=shape["f"])
        return rearrange(self.norm(pixels[clip] + brought), "b (f h w) c -> b f c h w", **shape), aligned


class FusionBlock(nn.Module):
    """Adds a finer stage to what came from the coarser ones and enlarges the result.

    Args:
        joins: whether there is something coarser.
    """

    def __init__(self, channels: int, joins: bool) -> None:
        super().__init__()
        self.inner = ResidualUnit(channels) if joins else None
        self.outer = ResidualUnit(channels)

    def forward(
        self, stage: Float[Tensor, "s c h w"], coarser: Float[Tensor, "s c h w"] | None, size: tuple[int, int]
    ) -> Float[Tensor, "s c _ _"]:
        if self.inner is not None and coarser is not None:
            stage = coarser + self.inner(stage)
        return nn.functional.interpolate(self.outer(stage), size=size, mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two convolutions, added to the rectified input: the first ReLU of the release works in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, stage: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c h w"]:
        stage = stage.relu()
        return stage + self.second(self.first(stage).relu())


def _met_by_taps(length: int, rate: int, like: Tensor) -> Float[Tensor, "3 n"]:
    """1 at the places of a side that the three taps of a dilated convolution meet."""
    place = torch.arange(length, device=like.device)
    return torch.stack([place < length - rate, place >= 0, place >= rate]).to(like.dtype)


def _by_frame(convolutions: nn.Module, maps: Float[Tensor, "u t d h w"]) -> Float[Tensor, "u t c h w"]:
    frames = rearrange(maps, "u t d h w -> (u t) d h w").contiguous(memory_format=torch.channels_last)
    return rearrange(convolutions(frames), "(u t) c h w -> u t c h w", u=len(maps))


def _matching(
    logits: Float[Tensor, "b t _ _"], stage: Float[Tensor, "b t c h w"], sound: Float[Tensor, "b t c"]
) -> Float[Tensor, "b t"]:
    """How far the mean of a stage over the predicted mask is from the sound, as a divergence of their channels."""
    share = nn.functional.adaptive_avg_pool2d(logits.float(), (stage.shape[-2], stage.shape[-1])).sigmoid()
    shown = torch.einsum("btchw,bthw->btc", stage.float(), share) / share[0, 0].numel()
    shown, heard = (nn.functional.normalize(one, dim=-1) for one in (shown, sound.float()))
    wanted = heard.log_softmax(dim=-1)
    return (wanted.exp() * (wanted - shown.log_softmax(dim=-1))).sum(dim=-1)
