"""How well the contours of predicted masks meet those of the objects: the boundary counts of the DAVIS challenge."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refavs.metrics.segmentation import count_true

BOUNDARY_SHARE = 0.008


def boundary_map(masks: Bool[Tensor, "*frames h w"]) -> Bool[Tensor, "*frames h w"]:
    """Pixels whose right, lower or lower right neighbour has another value; the frame's edge is no boundary."""
    found = torch.zeros_like(masks)
    found[..., :, :-1] |= masks[..., :, :-1] ^ masks[..., :, 1:]
    found[..., :-1, :] |= masks[..., :-1, :] ^ masks[..., 1:, :]
    found[..., :-1, :-1] |= masks[..., :-1, :-1] ^ masks[..., 1:, 1:]
    return found


def boundary_radius(height: int, width: int) -> int:
    """The distance in pixels up to which two contours meet: 0.008 of the frame's diagonal, rounded up."""
    return math.ceil(BOUNDARY_SHARE * math.hypot(height, width))


class Contours(NamedTuple):
    """The boundary pixels of masks, and the pixels from which one of them is at most `boundary_radius` away."""

    pixels: Bool[Tensor, "*frames h w"]
    around: Bool[Tensor, "*frames h w"]

    @classmethod
    def of(cls, masks: Bool[Tensor, "*frames h w"]) -> "Contours":
        """Finds them. A disc of pixels is the union of a few rectangles, and a rectangle grows along one axis at a
        time, tripling with each step."""
        pixels = boundary_map(masks)
        return cls(pixels, _dilated(pixels, _rectangles(boundary_radius(*masks.shape[-2:]))))


def boundary_counts(
    pred: Bool[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"]
) -> dict[str, Int[Tensor, "*frames"]]:
    """Numbers of boundary pixels per frame, from which precision, recall and F follow.

    Follows DAVIS (Perazzi et al., CVPR 2016): a boundary pixel is met if the other contour passes within
    `boundary_radius`, a disc.

    Returns:
        `pred` and `target`, the boundary pixels of each; `pred_met` and `target_met`, those that meet the other.
    """
    return contour_counts(Contours.of(pred), Contours.of(masks))


def contour_counts(pred: Contours, target: Contours) -> dict[str, Int[Tensor, "..."]]:
    """As `boundary_counts`, of contours that are known already; one of them may be the same for all frames."""
    return {
        "pred": count_true(pred.pixels),
        "target": count_true(target.pixels),
        "pred_met": count_true(pred.pixels & target.around),
        "target_met": count_true(target.pixels & pred.around),
    }


def _dilated(
    contour: Bool[Tensor, "*frames h w"], rectangles: tuple[tuple[int, int], ...]
) -> Bool[Tensor, "*frames h w"]:
    """Pixels with one of the contour in any of the rectangles around them, the narrowest of which comes first."""
    found, widened, reached = torch.zeros_like(contour), contour, 0
    for half_height, half_width in rectangles:
        widened, reached = _grown(widened, -1, reached, half_width), half_width
        found |= _grown(widened, -2, 0, half_height)
    return found


def _grown(part: Tensor, axis: int, reached: int, wanted: int) -> Tensor:
    """`part`, whose pixels have grown by `reached` to both sides along an axis, grown by `wanted`.

    Two copies shifted by up to 2 x reached + 1 leave no gap.
    """
    while reached < wanted:
        step = min(2 * reached + 1, wanted - reached)
        longer, rest = part.clone(), part.shape[axis] - step
        if rest > 0:
            longer.narrow(axis, step, rest).logical_or_(part.narrow(axis, 0, rest))
            longer.narrow(axis, 0, rest).logical_or_(part.narrow(axis, step, rest))
        part, reached = longer, reached + step
    return part


@lru_cache
def _rectangles(radius: int) -> tuple[tuple[int, int], ...]:
    """Half heights and half widths of the largest rectangles in a disc, narrowest first; the disc is their union."""
    tallest: dict[int, int] = {}
    for half_height in range(radius + 1):
        tallest[math.isqrt(radius**2 - half_height**2)] = half_height
    return tuple((tallest[half_width], half_width) for half_width in sorted(tallest))
