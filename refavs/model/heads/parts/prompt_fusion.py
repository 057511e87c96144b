"""A small transformer that turns an expression, the sound and coarse pixels into a prompt for a mask decoder."""

from typing import cast

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.attention import SelfAttentionLayer, hidden_bias, sine_positions
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import MapSize, StreamSize
from refavs.model.visual import FeatureProjection, Statistics


class PromptFusion(nn.Module):
    """Prompt, words, sound and pixels of all steps attend to each other; the prompt comes out.

    Args:
        pixels: the map whose means over a grid become the pixel tokens.
        tokens_per_side: side of that grid.
        by_step: whether there is a prompt for each step instead of one for the clip.
    """

    def __init__(
        self, audio: StreamSize | None, text: StreamSize | None, pixels: MapSize, channels: int, num_heads: int,
        num_layers: int, feedforward_channels: int, tokens_per_side: int, by_step: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side, self.by_step, self.pixel_name = tokens_per_side, by_step, pixels.name
        streams = {"words": text, "sound": audio, "pixels": pixels}
        self.paths = {name: size.path for name, size in streams.items() if size is not None}
        self.inputs = nn.ModuleDict(
            {name: FeatureProjection(size.channels, channels) for name, size in streams.items() if size is not None}
        )
        self.kinds = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(channels)) for name in self.inputs})
        self.seconds = nn.Linear(channels, channels)
        self.prompt = nn.Parameter(torch.randn(channels))
        self.layers = nn.ModuleList(
            SelfAttentionLayer(channels, num_heads, feedforward_channels, 0.0) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.out = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))

    def set_statistics(self, statistics: Statistics) -> None:
        """Takes the mean and deviation of the channels of each stream."""
        for name, path in self.paths.items():
            cast(FeatureProjection, self.inputs[name]).standardise.set(*statistics[path])

    def forward(self, batch: Batch, once: Once | None = None) -> Float[Tensor, "b p c"]:
        """The prompts: one of the clip, or one of each step."""
        number, num_steps = len(batch), batch.audio.shape[1]
        step = self.seconds(sine_positions(num_steps, 1, len(self.prompt), batch.audio.device))
        prompts = self.prompt + step if self.by_step else rearrange(self.prompt, "c -> 1 c")
        tokens = {"prompt": repeat(prompts, "p c -> b p c", b=number)}
        valid: dict[str, Bool[Tensor, "b _"]] = {}
        if "words" in self.inputs:
            valid["words"] = batch.valid[:, : batch.text_length]
            words = self._of("words", batch.text[:, : batch.text_length])
            tokens["words"] = torch.where(valid["words"][..., None], words, 0.0)
        if "sound" in self.inputs:
            tokens["sound"] = batch.of_expressions(self._of("sound", batch.audio) + step)
        pixels = self._of("pixels", (once or Once())(("grid", self.side), lambda: self._pooled(batch)))
        places = sine_positions(self.side, self.side, len(self.prompt), step.device)
        pixels = pixels + places + rearrange(step, "t c -> t 1 c")
        tokens["pixels"] = batch.of_expressions(rearrange(pixels, "u t n c -> u (t n) c"))
        seen = [valid.get(name, torch.ones_like(one[..., 0], dtype=torch.bool)) for name, one in tokens.items()]
        bias = rearrange(hidden_bias(torch.cat(seen, dim=1)), "b k -> b 1 1 k")
        joined = torch.cat(list(tokens.values()), dim=1)
        for layer in self.layers:
            joined = layer(joined, bias)
        return self.out(self.norm(joined[:, : len(prompts)]))

    def _of(self, name: str, features: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes c"]:
        return self.inputs[name](features) + self.kinds[name]

    def _pooled(self, batch: Batch) -> Float[Tensor, "u t n d"]:
        maps = batch.visual[self.pixel_name].float()
        frames = nn.functional.adaptive_avg_pool2d(rearrange(maps, "u t d h w -> (u t) d h w"), self.side)
        return rearrange(frames, "(u t) d y x -> u t (y x) d", u=len(maps))
