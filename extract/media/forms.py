"""The forms in which encoders take the media of a clip."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from einops import rearrange

if TYPE_CHECKING:
    from torch import Tensor

Fit = Literal["squash", "pad", "crop"]
Resample = Literal["bilinear", "bicubic"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The frames of a clip: the first of each step, RGB, uint8, as an array (t, size, size, 3).

    Attributes:
        size: height and width, px.
        fit: how a picture becomes a square. `squash` stretches it, `pad` scales the longer side and fills the right or
            the bottom with black, `crop` scales the shorter side and keeps the middle.
        alpha: adds a fourth channel, 255 where the picture is and 0 in the padding, which `normalised` makes zero.
        resample: how pixels are interpolated, by Pillow.
        mean: of each channel, subtracted from values in [0, 1] by `normalised`.
        std: of each channel, by which `normalised` divides.
    """

    size: int
    fit: Fit = "squash"
    alpha: bool = False
    resample: Resample = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one frame."""
        return self.size, self.size, 4 if self.alpha else 3

    def normalised(self, frames: "Tensor") -> "Tensor":
        """Frames as networks take them: float32 (f, 3, h, w), by mean and deviation."""
        import torch

        scaled = rearrange(frames, "f h w c -> f c h w").float() / 255
        scaled, alpha = scaled[:, :3], scaled[:, 3:]
        mean, std = (rearrange(torch.tensor(values, device=frames.device), "c -> c 1 1")
                     for values in (self.mean, self.std))  # fmt: skip
        normal = (scaled - mean) / std
        return normal * alpha if self.alpha else normal

    def __str__(self) -> str:
        return f"frames {self.size} px, {self.fit}"


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound of a clip: mono, float32, full scale 1, exactly `seconds * rate_hz` samples; zeros where it is silent.

    Attributes:
        rate_hz: samples per second.
    """

    rate_hz: int

    def __str__(self) -> str:
        return f"sound {self.rate_hz / 1000:g} kHz"


@dataclass(frozen=True)
class Text:
    """An expression as a string."""

    def __str__(self) -> str:
        return "text"
