"""Contexts that run the head without one of a step's optimisations, for `bench_train.py`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from refavs.model.attention import hidden_bias
from refavs.model.decoder import EEMCOutput, MaskDecoder
from refavs.model.heads.parts.fusion import BimodalFusion


@contextmanager
def whole_masks() -> Iterator[None]:
    """The masks of all queries are part of the graph, as in Mask2Former's own loss."""
    def of(output: EEMCOutput, query: Tensor) -> Tensor:
        index = repeat(query, "b t -> b t 1 h w", h=1, w=1)
        return output.mask_logits.take_along_dim(index, dim=2)[:, :, 0]

    with mock.patch.object(EEMCOutput, "mask_logits_of", of):
        yield


@contextmanager
def masks_downsampled_after() -> Iterator[None]:
    """The attention masks come from masks at stride 4, as in Mask2Former."""
    small: dict[int, Tensor] = {}
    original = MaskDecoder._sources

    def sources(decoder: MaskDecoder, mask_features: Tensor, levels: Sequence[Tensor]) -> Any:
        flat = rearrange(mask_features, "u t c h w -> (u t) c h w")
        found = original(decoder, mask_features, levels)
        small.update({id(features): flat for _, _, features in found})
        pairs = zip(found, levels, strict=False)
        decoder._sizes = {id(features): level.shape[-2:] for (_, _, features), level in pairs}
        return found

    @torch.no_grad()
    def bias(decoder: MaskDecoder, hidden: Tensor, features: Tensor) -> Tensor:
        embedding = decoder.mask_head(decoder.norm(rearrange(hidden, "r k q c -> r (k q) c")))
        masks = torch.einsum("rqc,rchw->rqhw", embedding[..., :-1], small[id(features)])
        masks = masks + embedding[..., -1:, None]
        size = decoder._sizes[id(features)]
        inside = nn.functional.interpolate(masks, size=size, mode="bilinear", align_corners=False).flatten(2) >= 0
        return hidden_bias(rearrange(inside | ~inside.any(dim=-1, keepdim=True), "r q n -> r 1 q n"))

    with mock.patch.object(MaskDecoder, "_sources", sources), mock.patch.object(MaskDecoder, "_attention_bias", bias):
        yield


@contextmanager
def repeated_tokens() -> Iterator[None]:
    """Each second of each expression is a sequence of its own from the start, as the equation is written."""
    def forward(
        self: BimodalFusion, modality: Tensor, text: Tensor, valid: Tensor, clip: Tensor,
        frames: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        num_frames, num_tokens = modality.shape[1:3]
        tokens = torch.cat([modality[clip], repeat(text, "b l c -> b t l c", t=num_frames)], dim=2)
        seen = torch.cat([valid.new_ones(len(valid), num_tokens), valid], dim=1)
        bias = hidden_bias(repeat(seen, "b k -> (b t) 1 1 k", t=num_frames))
        tokens = rearrange(tokens, "b t k c -> (b t) k c")
        for layer in self.layers:
            tokens = layer(tokens, bias)
        tokens = rearrange(tokens, "(b t) k c -> b t k c", t=num_frames)
        aware = tokens[:, :, num_tokens:]
        return tokens[:, :, :num_tokens], aware if frames is None else aware[:, frames]

    with mock.patch.object(BimodalFusion, "forward", forward):
        yield
