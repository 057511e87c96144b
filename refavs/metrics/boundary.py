"""Boundary counts of the DAVIS challenge: how well the contours of predicted masks match those of the objects."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from refavs.metrics.segmentation import count_true

BOUNDARY_SHARE = 0.008


def boundary_map(masks: Bool[Tensor, "*frames h w"]) -> Bool[Tensor, "*frames h w"]:
    """Pixels whose right, lower or lower right neighbour differs; the edge of the frame is not a boundary."""
    found = torch.zeros_like(masks)
    found[..., :, :-1] |= masks[..., :, :-1] ^ masks[..., :, 1:]
    found[..., :-1, :] |= masks[..., :-1, :] ^ masks[..., 1:, :]
    found[..., :-1, :-1] |= masks[..., :-1, :-1] ^ masks[..., 1:, 1:]
    return found


def boundary_radius(height: int, width: int) -> int:
    """The largest distance in pixels at which contours match: 0.008 of the frame's diagonal, rounded up."""
    return math.ceil(BOUNDARY_SHARE * math.hypot(height, width))


class Contours(NamedTuple):
    """The boundary pixels of masks, and all pixels within `boundary_radius` of one."""

    pixels: Bool[Tensor, "*frames h w"]
    around: Bool[Tensor, "*frames h w"]

    @classmethod
    def of(cls, masks: Bool[Tensor, "*frames h w"]) -> "Contours":
        """Computes both. A disc is the union of a few rectangles; a dilation by a rectangle grows along one axis at a
        time and triples with each step."""
        pixels = boundary_map(masks)
        return cls(pixels, _dilated(pixels, _rectangles(boundary_radius(*masks.shape[-2:]))))


def boundary_counts(
    pred: Bool[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"]
) -> dict[str, Int[Tensor, "*frames"]]:
    """Counts boundary pixels per frame; precision, recall and F follow from the counts.

    Follows DAVIS (Perazzi et al., CVPR 2016): a boundary pixel matches if the other contour passes through the disc of
    `boundary_radius` around it.

    Returns:
        `pred` and `target`, the boundary pixels of each; `pred_met` and `target_met`, those that match the other.
    """
    return contour_counts(Contours.of(pred), Contours.of(masks))


def contour_counts(pred: Contours, target: Contours) -> dict[str, Int[Tensor, "..."]]:
    """As `boundary_counts`, for contours computed before; one of them may be shared by all frames."""
    return {
        "pred": count_true(pred.pixels),
        "target": count_true(target.pixels),
        "pred_met": count_true(pred.pixels & target.around),
        "target_met": count_true(target.pixels & pred.around),
    }


def _dilated(
    contour: Bool[Tensor, "*frames h w"], rectangles: tuple[tuple[int, int], ...]
) -> Bool[Tensor, "*frames h w"]:
    """Dilates a contour by the union of `rectangles`, narrowest first."""
    found, widened, reached = torch.zeros_like(contour), contour, 0
    for half_height, half_width in rectangles:
        widened, reached = _grown(widened, -1, reached, half_width), half_width
        found |= _grown(widened, -2, 0, half_height)
    return found


def _grown(part: Tensor, axis: int, reached: int, wanted: int) -> Tensor:
    """Dilates `part`, which is already dilated by `reached` to both sides along an axis, to `wanted`.

    Two copies shifted against each other by up to 2 x reached + 1 leave no gap.
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
    """Half heights and half widths of rectangles whose union is a disc, narrowest first."""
    tallest: dict[int, int] = {}
    for half_height in range(radius + 1):
        tallest[math.isqrt(radius**2 - half_height**2)] = half_height
    return tuple((tallest[half_width], half_width) for half_width in sorted(tallest))
