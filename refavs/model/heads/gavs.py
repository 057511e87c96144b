"""GAVS: the sound is the prompt of SAM's mask decoder, which adapters fit to the task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from refavs.model.heads.parts.baseline_inputs import CueInput, MapInput
from refavs.model.heads.parts.baseline_masks import flat_pair, mean_of_frames, resized
from refavs.model.heads.parts.baseline_options import EXTENT, SAM_MAP, GAVSOptions
from refavs.model.heads.parts.sam_decoder import SamDecoder, SamWeightsFolder, pointwise, require_same_sam
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.losses import mask_bce, mask_dice
from refavs.model.options import LossConfig
from refavs.model.target import Target
from refavs.model.visual import Statistics

FOCAL_WEIGHT, FOCAL_ALPHA, FOCAL_GAMMA = 20.0, 0.25, 2.0


@dataclass
class GAVSOutput:
    """Mask logits of the square that the encoder saw.

    Attributes:
        picture: the share of the square's height and width that the picture fills, from the upper left corner; None
            where it fills all.
    """

    logits: Float[Tensor, "b t h w"]
    picture: Float[Tensor, "b t 2"] | None


class GAVS(Head):
    """Follows GAVS (arXiv 2309.07929) and its release, without adapters in the visual encoder, whose maps are stored.

    Differs: the noise is a vector's own deviation, so that no expression depends on those beside it; an adapter is
    added to what it reads and starts at zero.
    """

    losses: ClassVar[tuple[str, ...]] = ("mask",)

    def __init__(self, options: GAVSOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        width, pretrained = options.channels, options.decoder_weights != "random"
        maps = tuple(size for size in sizes.maps if size.name != EXTENT)
        self.as_stored = pretrained and maps[0].name == SAM_MAP
        if pretrained and maps[0].channels != width:
            raise ConfigError(
                f"model.decoder_weights={options.decoder_weights} reads maps of {width} channels, the store's has "
                f"{maps[0].channels}; take --set model.decoder_weights=random"
            )
        self.maps = MapInput(replace(sizes, maps=maps), as_stored=self.as_stored)
        self.cue = CueInput(sizes, width, lambda channels: nn.Sequential(
            Noise(options.choice("noise")), nn.Linear(channels, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        ))  # fmt: skip
        self.necks = nn.ModuleDict(
            {} if self.as_stored else {size.name: nn.Conv2d(size.channels, width, 1) for size in maps}
        )
        self.decoder = SamDecoder(width, options.num_heads, options.decoder_layers, options.feedforward_channels)
        self.adapters = nn.ModuleList(_adapter(width) for _ in range(options.decoder_layers))
        if pretrained:
            self.decoder.requires_grad_(False)

    def parts(self) -> dict[str, nn.Module]:
        return {"mask decoder": self.decoder, "adapters": self.adapters, "prompt": self}

    def set_statistics(self, statistics: Statistics) -> None:
        self.maps.set_statistics(statistics)
        self.cue.set_statistics(statistics)

    def load_pretrained(self, folder: Path, encoders: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Loads SAM's mask decoder, on the maps of the same SAM."""
        require_same_sam(folder, self.sizes.maps[0].stream, encoders)
        self.decoder.load(folder)
        return []

    @classmethod
    def pretrained_stamp(cls, folder: Path) -> str:
        """The digest of SAM's file."""
        return SamWeightsFolder(folder).stamp

    def steps_read(self, steps: Sequence[int]) -> Mapping[str, Sequence[int]]:
        """Only those to predict."""
        return dict.fromkeys(self.maps.paths, steps)

    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None) -> GAVSOutput:
        """Each step is segmented for itself."""
        image = batch.of_expressions(self._image(self.maps(batch, steps, once)))
        prompt = self.cue(batch, steps)
        if self.options.decoder_weights == "random":
            # The decoder's tokens start with a deviation of 1, and one of a tenth would hardly be noticed beside them.
            prompt = nn.functional.layer_norm(prompt, prompt.shape[-1:])
        logits = self.decoder(
            rearrange(image, "b t c h w -> (b t) c h w"), rearrange(prompt, "b t c -> (b t) 1 c"), list(self.adapters)
        )
        picture = None
        if EXTENT in batch.visual and any(size.name == EXTENT for size in self.sizes.maps):
            extent = batch.of_expressions(batch.visual[EXTENT]).float()
            extent = extent if steps is None else extent[:, steps.index]
            picture = extent / torch.tensor(image.shape[-2:], device=extent.device)
        return GAVSOutput(rearrange(logits, "(b t) h w -> b t h w", b=len(batch)), picture)

    def loss(self, output: GAVSOutput, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """The loss that the options name, at the pixels of the masks."""
        logits, labels = flat_pair(pictured(output, (target.masks.shape[-2], target.masks.shape[-1])), target)
        kind = self.options.choice("mask_loss")
        of_frame = FOCAL_WEIGHT * mask_focal(logits, labels) if kind == "avs" else mask_bce(logits, labels)
        of_frame = of_frame if kind == "bce" else of_frame + mask_dice(logits, labels)
        total = mean_of_frames(of_frame, target)
        return {"total": total, "mask": total.detach()}

    def probs(self, output: GAVSOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """The sigmoid of the logits."""
        return pictured(output, size or (output.logits.shape[-2], output.logits.shape[-1])).sigmoid()

    def _image(self, maps: dict[str, Float[Tensor, "u t _ _ _"]]) -> Float[Tensor, "u t c h w"]:
        """The map that the decoder reads: SAM's own, or the sum of the projected ones on the finest one's grid."""
        if self.as_stored:
            return maps[SAM_MAP]
        total = None
        for name, one in maps.items():
            pixels = pointwise(cast(nn.Conv2d, self.necks[name]), rearrange(one, "u t d h w -> (u t) h w d"))
            projected = rearrange(pixels, "s h w c -> s c h w")
            total = projected if total is None else total + resized_map(projected, total)
        assert total is not None
        return rearrange(total, "(u t) c h w -> u t c h w", u=len(next(iter(maps.values()))))


class Noise(nn.Module):
    """What training does to a sound, whose deviation over its channels the noise has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, sound: Float[Tensor, "u t d"]) -> Float[Tensor, "u t d"]:
        if not self.training or self.kind == "none":
            return sound
        noise = torch.randn_like(sound) * sound.std(dim=-1, keepdim=True)
        return noise if self.kind == "replace" else sound + noise


def _adapter(channels: int) -> nn.Sequential:
    adapter = nn.Sequential(
        nn.Linear(channels, channels // 2), nn.ReLU(), last := nn.Linear(channels // 2, channels)
    )
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return adapter


def resized_map(maps: Float[Tensor, "s c _ _"], like: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c h w"]:
    """Bilinear resizing to the grid of another map."""
    return nn.functional.interpolate(maps, size=(like.shape[-2], like.shape[-1]), mode="bilinear", align_corners=False)


def pictured(output: GAVSOutput, size: tuple[int, int]) -> Float[Tensor, "b t _ _"]:
    """The logits of the picture, at this height and width."""
    logits = output.logits.float()
    if output.picture is None:
        return resized(logits, size)
    y, x = ((torch.arange(length, device=logits.device) + 0.5) / length for length in size)
    share = rearrange(output.picture, "b t yx -> yx (b t) 1")
    grid = torch.stack(torch.broadcast_tensors(
        rearrange(2 * x * share[1] - 1, "s w -> s 1 w"), rearrange(2 * y * share[0] - 1, "s h -> s h 1")
    ), dim=-1)  # fmt: skip
    frames = rearrange(logits, "b t h w -> (b t) 1 h w")
    found = nn.functional.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return rearrange(found, "(b t) 1 h w -> b t h w", b=len(logits))


def mask_focal(logits: Float[Tensor, "*s p"], labels: Float[Tensor, "*s p"]) -> Float[Tensor, "*s"]:
    """Focal loss over the compared places."""
    entropy = nn.functional.softplus(logits) - logits * labels
    of_truth = (-entropy).exp()
    balance = FOCAL_ALPHA * labels + (1 - FOCAL_ALPHA) * (1 - labels)
    return (balance * (1 - of_truth) ** FOCAL_GAMMA * entropy).mean(dim=-1)
