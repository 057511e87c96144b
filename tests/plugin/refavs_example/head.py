"""A head of one idea: a patch belongs to the object where it agrees with the sound of its step and the words."""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.options import LossConfig
from refavs.model.target import Target
from refavs_example.options import AgreementOptions


class Agreement(Head):
    """Logits of patches, from the stored features standardised by their statistics."""

    mean: Tensor
    std: Tensor

    def __init__(self, options: AgreementOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        assert sizes.audio is not None and sizes.text is not None
        (patches,) = sizes.maps
        self.see = nn.Linear(patches.channels, options.width)
        self.hear = nn.Linear(sizes.audio.channels, options.width)
        self.read = nn.Linear(sizes.text.channels, options.width)
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(patches.channels))
        self.register_buffer("std", torch.ones(patches.channels))

    def set_statistics(self, statistics: Mapping[str, Any]) -> None:
        mean, std = statistics[self.sizes.maps[0].path]
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std).clamp(min=1e-6))

    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Any = None) -> Tensor:
        patches = rearrange(batch.visual["patches"][batch.clip].float(), "b t c h w -> b t h w c")
        sound = reduce(batch.audio.float(), "u (t k) d -> u t d", "mean", t=patches.shape[1])[batch.clip]
        words = (batch.text * batch.valid[..., None]).sum(1) / batch.valid.sum(1, keepdim=True).clamp(min=1)
        cue = torch.tanh(self.hear(sound) + rearrange(self.read(words.float()), "b c -> b 1 c"))
        logits = torch.einsum("bthwc,btc->bthw", self.see((patches - self.mean) / self.std), cue) + self.bias
        return logits if steps is None else logits[:, steps.index]

    def loss(self, output: Tensor, target: Target, weights: LossConfig) -> dict[str, Tensor]:
        masks = nn.functional.adaptive_avg_pool2d(target.masks.float(), output.shape[-2:])
        of_frame = nn.functional.binary_cross_entropy_with_logits(output, masks, reduction="none").mean((2, 3))
        if target.labelled is not None:
            of_frame = of_frame * target.labelled
        return {"total": of_frame.sum() / max(1, target.whole.shown + target.whole.null)}

    def probs(self, output: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return nn.functional.interpolate(output.float().sigmoid(), size=size or output.shape[-2:], mode="bilinear")
