"""From the baselines' features to mask logits, and what their losses share."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.model.heads.parts.recomputed import recomputed
from refavs.model.target import Target


class MaskConvolutions(nn.Module):
    """Features to mask logits `scale` times as high and wide, through half and an eighth of the channels.

    A frame at a time, recomputed in the backward pass where the enlarged features of all would take gigabytes.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.narrow = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.fine = nn.Sequential(
            nn.Conv2d(channels // 2, channels // 8, 3, padding=1), nn.ReLU(), nn.Conv2d(channels // 8, 1, 1)
        )

    def forward(self, features: Float[Tensor, "s c h w"]) -> Float[Tensor, "s _ _"]:
        # With the channels last, enlarging and convolving few of them takes a processor half the time.
        narrow = self.narrow(features).contiguous(memory_format=torch.channels_last)
        values = narrow.numel() * self.scale**2
        masks = [recomputed(self._enlarged, frame, values=values) for frame in narrow.split(1)]
        return rearrange(torch.cat(masks), "s 1 h w -> s h w")

    def _enlarged(self, narrow: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 1 _ _"]:
        return self.fine(nn.functional.interpolate(narrow, scale_factor=self.scale, mode="bilinear"))


def resized(masks: Float[Tensor, "b t _ _"], size: Sequence[int] | None) -> Float[Tensor, "b t _ _"]:
    """Bilinear resizing, where the size is another one."""
    if size is None or tuple(size) == tuple(masks.shape[-2:]):
        return masks
    return nn.functional.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)


def flat_pair(
    logits: Float[Tensor, "b t _ _"], target: Target
) -> tuple[Float[Tensor, "b t p"], Float[Tensor, "b t p"]]:
    """Logits and labels at every pixel of the masks."""
    masks = target.once("pixels", lambda: target.masks.flatten(2).float())
    return resized(logits.float(), target.masks.shape[-2:]).flatten(2), masks


def mean_of_frames(of_frame: Float[Tensor, "b t"], target: Target) -> Float[Tensor, ""]:
    """The sum over the labelled frames, divided by those of the whole batch."""
    return sum_of_frames(of_frame, target) / max(1, target.whole.shown + target.whole.null)


def sum_of_frames(of_frame: Float[Tensor, "b t"], target: Target) -> Float[Tensor, ""]:
    """The sum over the labelled frames."""
    return (of_frame if target.labelled is None else torch.where(target.labelled, of_frame, 0.0)).sum()


def by_frame(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Applies `function` to a frame at a time, so that what its backward pass needs of all is never there at once."""
    return torch.cat([function(*frame) for frame in zip(*(one.split(1) for one in inputs), strict=True)])
