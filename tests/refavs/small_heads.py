"""Small and published forms of the baselines, and made-up features for them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.feature_sizes import FeatureSizes, MapSize, StreamSize
from refavs.model.heads.contract import made_up_batch, made_up_sizes
from refavs.model.heads.protocol import Head
from refavs.model.heads.registry import implementation_of
from refavs.model.options import HeadOptions, LossConfig
from refavs.model.target import Target

PIXELS = LossConfig(num_points=0)
SWIN_B = {"res2": (128, 96), "res3": (256, 48), "res4": (512, 24), "res5": (1024, 12)}
SAM = {"s4": (32, 256), "s8": (64, 128), "map": (256, 64)}


def small_sizes(options: HeadOptions) -> FeatureSizes:
    """Made-up features with the maps of a backbone."""
    sizes = made_up_sizes(options)
    finest = sizes.maps[0]
    maps = tuple(
        replace(finest, name=name, path=f"clips/visual/made-up/{name}", height=finest.height >> fold,
                width=finest.width >> fold) for fold, name in enumerate(options.needs().maps[-1])
    )  # fmt: skip
    return replace(sizes, maps=maps)


def small_head(options: HeadOptions, num_steps: int = 2) -> tuple[Any, Batch]:
    """A head for made-up features, always with the same weights, and a batch of them."""
    torch.manual_seed(0)
    sizes = small_sizes(options)
    return implementation_of(options)(options, sizes), made_up_batch(sizes, num_steps)


def loss_of(head: Head, batch: Batch) -> Tensor:
    """The trained loss."""
    assert batch.mask is not None
    return head.loss(head(batch), Target(masks=batch.mask), PIXELS)["total"]


def overfit(head: Head, batch: Batch, most_steps: int = 300, learning_rate: float = 3e-3) -> float:
    """Trains on one batch until J is above 0.95 or the steps are used up; returns J."""
    assert batch.mask is not None
    optimizer = torch.optim.AdamW(head.trained_parameters(), lr=learning_rate)
    jaccard = 0.0
    for step in range(1, most_steps + 1):
        optimizer.zero_grad()
        loss_of(head.train(), batch).backward()
        nn.utils.clip_grad_norm_(head.trained_parameters(), 1.0)
        optimizer.step()
        if step % 5 == 0:
            with torch.no_grad():
                size = (batch.mask.shape[-2], batch.mask.shape[-1])
                found = head.eval().probs(head(batch), size) > 0.5
            union = (found | batch.mask).sum(dim=(2, 3))
            shared = (found & batch.mask).sum(dim=(2, 3))
            jaccard = float(torch.where(union > 0, shared / union.clamp(min=1), 1.0).mean())
            if jaccard > 0.95:
                break
    return jaccard


def published_sizes(options: HeadOptions, maps: int = -1) -> FeatureSizes:
    """Features as Swin-B at 384 pixels (SAM's encoders for their maps), VGGish and RoBERTa give them.

    Args:
        maps: which of the sets that the head can read.
    """
    needs, shapes = options.needs(), SWIN_B | SAM
    return FeatureSizes(
        audio=StreamSize(path="clips/audio/vggish", channels=128) if needs.audio else None,
        text=StreamSize(path="text/roberta/features", channels=768) if needs.text else None,
        maps=tuple(
            MapSize(name=name, path=f"clips/visual/swin/{name}", channels=shapes[name][0], height=shapes[name][1],
                    width=shapes[name][1]) for name in needs.maps[maps]
        ),
    )  # fmt: skip


def with_other(batch: Batch, modality: str) -> Batch:
    """The batch with other features of a modality."""
    features = getattr(batch, modality)
    changed = replace(batch, **{modality: features + torch.randn(features.shape)})
    if modality == "text":
        changed = replace(changed, valid=torch.ones_like(batch.valid))
    return changed


def quadratic_interaction(interaction: Any, maps: Tensor, sound: Tensor) -> Tensor:
    """TPAVI of one clip with its N x N matrix."""
    t, c, h, w = maps.shape
    pixels = maps.movedim(1, -1).reshape(t * h * w, c)
    heard = interaction.align(sound).repeat_interleave(h * w, dim=0)
    scores = interaction.theta(pixels) @ interaction.phi(heard).T / len(pixels)
    brought = interaction.out(scores @ interaction.g(pixels))
    norm = interaction.out_norm
    brought = brought.reshape(t, h * w, c)
    axes = (1, 2) if isinstance(norm, nn.GroupNorm) else (0, 1)  # of a step, or all but the channels
    mean, variance = brought.mean(axes, keepdim=True), brought.var(axes, unbiased=False, keepdim=True)
    brought = ((brought - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias).reshape(t * h * w, c)
    joined = interaction.norm(pixels + brought)
    return joined.reshape(t, h, w, c).movedim(-1, 1)
