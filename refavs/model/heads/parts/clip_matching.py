"""Losses of queries that follow one object through a clip: one query is matched to it in all frames."""

from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refavs.model.heads.parts.rvos_options import ClipQueryOptions
from refavs.model.target import Target

ALPHA = 0.25  # the weight of the object in the focal loss; its power is 2
TINY = 1e-8
LOSSES = ("classification", "boxes", "giou", "focal", "dice")


@dataclass
class ClipPrediction:
    """What a decoder layer says of the chosen steps; boxes are (centre x, y, width, height) from 0 to 1."""

    class_logits: Float[Tensor, "b t q"]
    boxes: Float[Tensor, "b t q 4"]
    mask_logits: Float[Tensor, "b t q h w"]

    def of(self, queries: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b t 4"], Float[Tensor, "b t h w"]]:
        """Boxes and masks of one query of each expression."""
        rows = torch.arange(len(queries), device=queries.device)
        return self.boxes[rows, :, queries], self.mask_logits[rows, :, queries]


class ClipLabels:
    """Target masks at the resolution of the mask logits, and boxes.

    Attributes:
        masks: of the labelled frames; zero elsewhere.
        boxes: of the objects; zero in frames without one.
        labelled: which frames have a label.
        shown: which of them show the object.
        has_object: which expressions have an object in at least one of them.
    """

    def __init__(self, target: Target, height: int, width: int) -> None:
        masks = target.masks
        labelled = torch.ones_like(masks[:, :, 0, 0]) if target.labelled is None else target.labelled
        self.shown = masks.flatten(2).any(dim=2) & labelled
        self.labelled, self.has_object = labelled.float(), self.shown.any(dim=1)
        centres = nn.functional.interpolate(masks.float(), size=(height, width), mode="nearest-exact")
        self.masks = centres * rearrange(self.labelled, "b t -> b t 1 1")
        self.boxes = torch.where(self.shown[..., None], boxes_of(masks), 0.0)

    @property
    def num_labelled(self) -> Float[Tensor, "b"]:
        """Labelled frames of each expression, at least 1."""
        return self.labelled.sum(dim=1).clamp(min=1)


def clip_losses(
    layers: list[ClipPrediction], target: Target, options: ClipQueryOptions
) -> dict[str, Float[Tensor, ""]]:
    """The weighted sum over all layers as `total`, and the losses of the last layer.

    All are sums over expressions and frames (of the masks: one value for each expression), divided by the number of
    frames with an object in the whole batch. Every layer has a matching of its own.
    """
    height, width = layers[-1].mask_logits.shape[-2:]
    labels = target.once(("clip labels", height, width), lambda: ClipLabels(target, height, width))
    weights = (options.class_weight, options.box_weight, options.giou_weight, options.mask_weight,
               options.dice_weight)  # fmt: skip
    total, parts = None, {}
    for layer in layers:
        with torch.no_grad():
            matched = matching_costs(layer, labels, weights).argmin(dim=1)
        parts = _losses(layer, labels, matched, options.choice("learn_null"), max(target.whole.shown, 1))
        of_layer = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
        total = of_layer if total is None else total + of_layer
    assert isinstance(total, Tensor)
    return {"total": total, **{name: part.detach() for name, part in parts.items()}}


def _losses(
    layer: ClipPrediction, labels: ClipLabels, matched: Int[Tensor, "b"], learns_null: bool, num_shown: int
) -> dict[str, Tensor]:
    """The unweighted losses, named as in `LOSSES`."""
    queries = torch.arange(layer.class_logits.shape[2], device=matched.device)
    taken = (queries == matched[:, None])[:, None] & labels.shown[..., None]
    learned = labels.labelled if learns_null else labels.labelled * labels.has_object[:, None]
    classes = (focal(layer.class_logits, taken.float()) * learned[..., None]).sum()
    boxes, logits = layer.of(matched)
    of_frame = labels.labelled * labels.has_object[:, None]
    distance = ((boxes - labels.boxes).abs().sum(dim=-1) * of_frame).sum()
    overlap = ((1 - generalised_iou(boxes, labels.boxes)) * of_frame).sum()
    logits, masks = logits.flatten(2), labels.masks.flatten(2)
    pixels = focal(logits, masks).mean(dim=2) * labels.labelled
    of_clip = (pixels.sum(dim=1) / labels.num_labelled * labels.has_object).sum()
    probs = logits.sigmoid() * labels.labelled[..., None]
    dice = 1 - (2 * (probs * masks).sum(dim=(1, 2)) + 1) / (probs.sum(dim=(1, 2)) + masks.sum(dim=(1, 2)) + 1)
    values = (classes, distance, overlap, of_clip, (dice * labels.has_object).sum())
    return {name: value / num_shown for name, value in zip(LOSSES, values, strict=True)}


def matching_costs(
    layer: ClipPrediction, labels: ClipLabels, weights: tuple[float, float, float, float, float]
) -> Float[Tensor, "b q"]:
    """The cost of giving the object of a clip to each query.

    An expression refers to at most one object, so the best assignment is the query with the lowest cost.
    """
    probs = layer.class_logits.sigmoid()
    share = labels.shown.float() / labels.shown.sum(dim=1, keepdim=True).clamp(min=1)
    for_object = -ALPHA * (1 - probs).square() * (probs + TINY).log()
    against = -(1 - ALPHA) * probs.square() * (1 - probs + TINY).log()
    classes = torch.einsum("btq,bt->bq", for_object - against, share)
    share = labels.labelled / labels.num_labelled[:, None]
    true = rearrange(labels.boxes, "b t xywh -> b t 1 xywh")
    distance = torch.einsum("btq,bt->bq", (layer.boxes - true).abs().sum(dim=-1), share)
    overlap = -torch.einsum("btq,bt->bq", generalised_iou(layer.boxes, true.expand_as(layer.boxes)), share)
    masks = rearrange(labels.masks, "b t h w -> b t (h w)")
    of_query = partial(_mask_costs, masks=masks, labelled=labels.labelled)
    costs = [of_query(layer.mask_logits[:, :, query].flatten(2)) for query in range(probs.shape[2])]
    of_pixels, dice = (torch.stack(part, dim=1) for part in zip(*costs, strict=True))
    parts = (classes, distance, overlap, of_pixels, dice)
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(dim=0)


def _mask_costs(
    logits: Float[Tensor, "b t p"], masks: Float[Tensor, "b t p"], labelled: Float[Tensor, "b t"]
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Focal and Dice cost of a query over its clip."""
    of_pixels = (focal(logits, masks).mean(dim=2) * labelled).sum(dim=1) / labelled.sum(dim=1).clamp(min=1)
    probs = logits.sigmoid() * labelled[..., None]
    overlap, both = (probs * masks).sum(dim=(1, 2)), probs.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
    return of_pixels, -(2 * overlap + 1) / (both + 1)


def focal(logits: Float[Tensor, "*axes"], labels: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Focal loss (arXiv 1708.02002) of each value."""
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    probs = logits.sigmoid()
    wrong = torch.where(labels > 0.5, 1 - probs, probs)
    return torch.where(labels > 0.5, ALPHA, 1 - ALPHA) * wrong.square() * entropy


def boxes_of(masks: Bool[Tensor, "b t h w"]) -> Float[Tensor, "b t 4"]:
    """The box around each mask, (centre x, y, width, height) as shares of the frame; without meaning for an empty mask.

    Differs from the release of ReferFormer: the box includes the last row and column of the object.
    """
    ends = []
    for axis in (2, 3):  # columns are those of a mask without its rows
        seen = masks.any(dim=axis)
        length = seen.shape[-1]
        place = repeat(torch.arange(length, device=masks.device), "p -> b t p", b=masks.shape[0], t=masks.shape[1])
        first = torch.where(seen, place, length).amin(dim=-1)
        last = torch.where(seen, place + 1, 0).amax(dim=-1)
        ends.append((first / length, last / length))
    (left, right), (top, bottom) = ends
    return torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=-1)


def generalised_iou(one: Float[Tensor, "*axes 4"], other: Float[Tensor, "*axes 4"]) -> Float[Tensor, "*axes"]:
    """Intersection over union, less the share of the smallest common box that neither fills (arXiv 1902.09630)."""
    (low, high), (other_low, other_high) = (
        (box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2) for box in (one, other)
    )
    common = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(dim=-1)
    union = one[..., 2:].prod(dim=-1) + other[..., 2:].prod(dim=-1) - common
    around = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(dim=-1)
    return common / union.clamp(min=TINY) - (around - union) / around.clamp(min=TINY)
