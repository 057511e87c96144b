"""Losses: binary cross-entropy and Dice of the matched mask, classification of every query, deep supervision."""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refavs.model.decoder import NO_OBJECT, OBJECT, EEMCOutput
from refavs.model.options import LossConfig
from refavs.model.target import LabelCounts, Target

CACHED = 2**20  # number of mask values processed together


def eemc_loss(
    output: EEMCOutput, target: Target, config: LossConfig | None = None
) -> dict[str, Float[Tensor, ""]]:
    """Total loss, and its parts on the final prediction.

    An expression refers to at most one object, so a frame has at most one target and the best assignment is the query
    with the lowest cost. No Hungarian solver is needed; a test compares with one.

    Returns:
        `total` (weighted, summed over the final and the auxiliary predictions), and the unweighted `bce`, `dice` and
        `classification` of the final prediction.
    """
    config, whole = config or LossConfig(), target.whole
    labels = target.once("labels", lambda: Labels(target.masks, target.shown, target.labelled))
    parts = _loss_of(output, labels, config, whole)
    total = _weighted(parts, config)
    for earlier in output.auxiliary if config.deep_supervision else []:
        total = total + _weighted(_loss_of(earlier, labels, config, whole), config)
    return {"total": total, **{name: part.detach() for name, part in parts.items()}}


def _weighted(parts: dict[str, Tensor], config: LossConfig) -> Tensor:
    return config.bce * parts["bce"] + config.dice * parts["dice"] + config.classification * parts["classification"]


class Labels:
    """Target masks in the form that the losses use.

    Attributes:
        shown: indices of the labelled frames that show the object.
        has_object: whether each frame is one of them.
        labelled: whether each frame has a label; None if all have one.
        target: the masks as floats.
        shown_target: the masks of the `shown` frames.
    """

    def __init__(
        self, masks: Bool[Tensor, "b t h w"], shown: Int[Tensor, "s"] | None = None,
        labelled: Bool[Tensor, "b t"] | None = None,
    ) -> None:  # fmt: skip
        self.labelled = None if labelled is None else rearrange(labelled, "b t -> (b t)")
        if shown is None:
            has_object = rearrange(masks, "b t h w -> (b t) (h w)").any(dim=1)
            shown = (has_object if self.labelled is None else has_object & self.labelled).nonzero()[:, 0]
        self.shown = shown
        self.has_object = masks.new_zeros(masks.shape[0] * masks.shape[1]).index_fill(0, shown, True)
        self.target = rearrange(masks, "b t h w -> (b t) 1 h w").float()
        self.shown_target = self.target.index_select(0, shown)
        self._smaller: dict[tuple[int, int], Tensor] = {}

    def smaller(self, height: int, width: int) -> Float[Tensor, "s 1 p"]:
        """The fraction of each cell of a coarser map that the object covers."""
        if (height, width) not in self._smaller:
            labels = nn.functional.adaptive_avg_pool2d(self.target, (height, width))
            self._smaller[height, width] = labels.flatten(2)
        return self._smaller[height, width]


def _loss_of(
    output: EEMCOutput, truth: Labels, config: LossConfig, whole: LabelCounts
) -> dict[str, Tensor]:
    class_logits = rearrange(output.class_logits, "b t q two -> (b t) q two").float()
    with torch.no_grad():
        logits = rearrange(output.mask_logits, "b t q h w -> (b t) q h w").float()
        values, labels = _matching_values(logits, truth, config)
        # Chunks that fit in the processor's cache are several times faster than passes over all masks.
        size = max(1, CACHED // values[0].numel()) if logits.device.type == "cpu" else len(logits)
        pieces = zip(values.split(size), labels.split(size), class_logits.split(size), strict=True)
        matched = torch.cat([matching_costs(*piece, config).argmin(dim=1) for piece in pieces])
    chosen = output.mask_logits_of(rearrange(matched, "(b t) -> b t", t=output.class_logits.shape[1]))
    chosen = rearrange(chosen, "b t h w -> (b t) 1 h w").float()
    # The mask losses use only frames with an object.
    logits, labels = _compared_values(chosen.index_select(0, truth.shown), truth.shown_target, config)
    num_masks = max(whole.shown, 1)
    return {
        "bce": mask_bce(logits, labels).sum() / num_masks,
        "dice": mask_dice(logits, labels).sum() / num_masks,
        "classification": classification_loss(class_logits, matched, truth, config, whole),
    }


def mask_bce(logits: Float[Tensor, "*s p"], labels: Float[Tensor, "*#s p"]) -> Float[Tensor, "*s"]:
    """Binary cross-entropy over the compared points."""
    return (nn.functional.softplus(logits) - logits * labels).mean(dim=-1)


def mask_dice(logits: Float[Tensor, "*s p"], labels: Float[Tensor, "*#s p"]) -> Float[Tensor, "*s"]:
    """Dice loss over the compared points, with smoothing 1."""
    probs = logits.sigmoid()
    overlap = (probs * labels).sum(dim=-1)
    return 1 - (2 * overlap + 1) / (probs.sum(dim=-1) + labels.sum(dim=-1) + 1)


def matching_costs(
    logits: Float[Tensor, "s q p"],
    labels: Float[Tensor, "s 1 p"],
    class_logits: Float[Tensor, "s q 2"],
    config: LossConfig,
) -> Float[Tensor, "s q"]:
    """Cost of assigning a frame's object to each query."""
    probability = class_logits.softmax(dim=-1)[..., OBJECT]
    probs, labels = logits.sigmoid(), rearrange(labels, "s 1 p -> s p 1")
    # `mask_bce` and `mask_dice` of every query, with each sum over points as a matrix product.
    bce = (nn.functional.softplus(logits).sum(dim=-1) - (logits @ labels)[..., 0]) / logits.shape[-1]
    dice = 1 - (2 * (probs @ labels)[..., 0] + 1) / (probs.sum(dim=-1) + labels.sum(dim=1) + 1)
    return config.bce * bce + config.dice * dice - config.matching * probability


def classification_loss(
    class_logits: Float[Tensor, "s q 2"], matched: Int[Tensor, "s"], truth: Labels, config: LossConfig,
    whole: LabelCounts,
) -> Float[Tensor, ""]:  # fmt: skip
    """Weighted mean cross-entropy of "object" against "no object" over all queries of the frames in `whole`."""
    has_object = truth.has_object
    queries = torch.arange(class_logits.shape[1], device=matched.device)
    taken = (queries == matched[:, None]) & has_object[:, None]
    unmatched = torch.where(has_object, config.no_object, config.null_frame).to(class_logits.dtype)
    weight = torch.where(taken, 1.0, unmatched[:, None])
    if truth.labelled is not None:
        weight = weight * truth.labelled[:, None]
    log_probs = class_logits.log_softmax(dim=-1)
    entropy = -torch.where(taken, log_probs[..., OBJECT], log_probs[..., NO_OBJECT])
    num_queries = class_logits.shape[1]  # one of them is matched in each frame with an object
    of_shown, of_null = 1 + (num_queries - 1) * config.no_object, num_queries * config.null_frame
    return (weight * entropy).sum() / max(whole.shown * of_shown + whole.null * of_null, 1e-8)


def _matching_values(
    mask_logits: Float[Tensor, "s q h w"], labels: Labels, config: LossConfig
) -> tuple[Float[Tensor, "s q p"], Float[Tensor, "s 1 p"]]:
    """Values for the matching: at uniform points shared by all queries of a frame, or at all pixels of the logits if
    these are no more than the points."""
    height, width = mask_logits.shape[-2:]
    if config.num_points == 0 or config.num_points >= height * width:
        return mask_logits.flatten(2), labels.smaller(height, width)
    points = torch.rand(len(labels.target), config.num_points, 2, device=labels.target.device)
    return _sample(mask_logits, points), _sample(labels.target, points)


def _compared_values(
    logits: Float[Tensor, "s 1 h w"], target: Float[Tensor, "s 1 hm wm"], config: LossConfig
) -> tuple[Float[Tensor, "s p"], Float[Tensor, "s p"]]:
    """Values for the mask losses: at points where the prediction is least certain, or at all pixels of the target."""
    if config.num_points == 0:
        return _resized(logits, target.shape[-2:]).flatten(1), target.flatten(1)
    points = uncertain_points(logits.detach(), config)
    return _sample(logits, points)[:, 0], _sample(target, points)[:, 0]


def _resized(maps: Float[Tensor, "s 1 h w"], size: Sequence[int]) -> Float[Tensor, "s 1 _ _"]:
    """Bilinear resizing by one matrix product per axis; its backward pass is several times faster on a CPU."""
    rows, columns = (
        nn.functional.interpolate(torch.eye(old, device=maps.device)[None], size=new, mode="linear")[0]
        for old, new in zip(maps.shape[-2:], size, strict=True)
    )
    return rows.T @ maps @ columns


@torch.no_grad()
def uncertain_points(logits: Float[Tensor, "s 1 h w"], config: LossConfig) -> Float[Tensor, "s p 2"]:
    """Random points (x, y in 0..1), most of them where the logits are closest to zero."""
    num_frames, device = len(logits), logits.device
    num_uncertain = int(config.importance * config.num_points)
    candidates = torch.rand(num_frames, int(config.num_points * config.oversampling), 2, device=device)
    certainty = _sample(logits, candidates)[:, 0].abs()
    nearest = repeat(certainty.topk(num_uncertain, dim=1, largest=False).indices, "s p -> s p 2")
    uniform = torch.rand(num_frames, config.num_points - num_uncertain, 2, device=device)
    return torch.cat([candidates.gather(1, nearest), uniform], dim=1)


def _sample(maps: Float[Tensor, "s q h w"], points: Float[Tensor, "s p 2"]) -> Float[Tensor, "s q p"]:
    """Samples `maps` at `points` bilinearly."""
    grid = rearrange(2 * points - 1, "s p xy -> s p 1 xy")
    sampled = nn.functional.grid_sample(maps, grid, mode="bilinear", align_corners=False)
    return rearrange(sampled, "s q p 1 -> s q p")
