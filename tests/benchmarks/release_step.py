"""A training step as the public release of Ref-AVS makes it, as far as its cost goes; run by `bench_train.py`.

What the release does is described in `reference/ref-avs-facts.md`, 2.4: the whole of Mask2Former runs twice on every
frame (once for features, once with prompted queries), width is 1024, each attention is a single layer over all tokens
of the clip, and adapters inside the pixel decoder are trained, so that the gradient passes both decoders. Written from
that description; no code of the release is used. Where it is silent, the cheaper way is taken: the first run keeps
nothing for a gradient, and the frozen attentions are given no weights to differentiate.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from refavs.torchvision_shim import ensure_torchvision

WIDTH, HEADS, ADAPTER = 1024, 8, 64


@dataclass(frozen=True, kw_only=True)
class ReleaseSizes:
    """Sizes of Mask2Former's Swin and decoders."""

    input_size: int = 384
    swin_channels: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    channels: int = 256
    num_queries: int = 100
    decoder_layers: int = 10  # transformers counts the prediction before the first layer


class Adapter(nn.Module):
    """A bottleneck whose output is added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, ADAPTER), nn.Linear(ADAPTER, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.up(self.down(tokens).relu())


class GivenQueries:
    """Stands where Mask2Former keeps its learned query features."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


class Release(nn.Module):
    """Frames, audio and text features of one clip and one expression to a mask per frame."""

    def __init__(self, sizes: ReleaseSizes) -> None:
        super().__init__()
        ensure_torchvision()
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

        backbone = SwinConfig(
            image_size=sizes.input_size, embed_dim=sizes.swin_channels, depths=list(sizes.depths),
            num_heads=list(sizes.num_heads), window_size=sizes.window,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )  # fmt: skip
        config = Mask2FormerConfig(
            backbone_config=backbone, feature_size=sizes.channels, mask_feature_size=sizes.channels,
            hidden_dim=sizes.channels, num_queries=sizes.num_queries, decoder_layers=sizes.decoder_layers,
        )
        with warnings.catch_warnings():
            # Advice about the speed of a CUDA kernel that is not used here.
            warnings.filterwarnings("ignore", message="You'd better set embed_dim")
            self.mask2former = Mask2FormerForUniversalSegmentation(config).requires_grad_(False)
        features = sizes.swin_channels * 8
        self.visual = nn.Identity() if features == WIDTH else nn.Linear(features, WIDTH)
        self.audio, self.text = nn.Linear(128, WIDTH), nn.Linear(768, WIDTH)
        self.prompt = nn.Linear(WIDTH, sizes.channels)
        self.frozen = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(3))
        self.frozen.requires_grad_(False)
        self.prompting = nn.MultiheadAttention(sizes.channels, 4, batch_first=True)
        self.queries = nn.Parameter(torch.randn(sizes.num_queries, sizes.channels))
        self.gate = nn.Parameter(torch.zeros(()))
        layers: Any = self.mask2former.model.pixel_level_module.decoder.encoder.layers
        self.adapters = nn.ModuleList(Adapter(sizes.channels) for _ in layers)
        for layer, adapter in zip(layers, self.adapters, strict=True):
            layer.register_forward_hook(lambda module, inputs, output, adapter=adapter: _adapted(output, adapter))

    def forward(self, frames: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        """Logits of the masks, at the resolution of the mask features.

        Args:
            frames: `t 3 h w`.
            audio: `t 128`.
            text: `l 768`.
        """
        with torch.no_grad():
            first = self.mask2former.model(pixel_values=frames)
        visual = self.visual(rearrange(first.encoder_last_hidden_state, "t c h w -> 1 (t h w) c"))
        audio, text = (rearrange(tokens, "l c -> 1 l c") for tokens in (self.audio(audio), self.text(text)))
        cues = [self._remembered(self._attended(0, audio, text)), self._remembered(self._attended(1, visual, text))]
        joined = torch.cat([*cues, text], dim=1)
        # The release attends over the batch, which holds one expression here.
        joined = self.frozen[2](*(rearrange(joined, "1 l c -> l 1 c"),) * 3, need_weights=False)[0]
        prompts = rearrange(self.prompt(joined), "l 1 c -> 1 l c")
        queries = repeat(self.queries, "q c -> 1 q c")
        prompted = self.prompting(queries, prompts, prompts, need_weights=False)[0]
        queries = queries + self.gate.sigmoid() * (prompted + prompts.mean(dim=1, keepdim=True))
        transformer: Any = self.mask2former.model.transformer_module
        if "queries_features" in transformer._modules:
            del transformer.queries_features
        transformer.queries_features = GivenQueries(queries[0])
        second = self.mask2former(pixel_values=frames)
        objectness = second.class_queries_logits.softmax(dim=-1)[..., 0]
        return torch.einsum("tq,tqhw->thw", objectness, second.masks_queries_logits)

    def _attended(self, number: int, modality: Tensor, text: Tensor) -> Tensor:
        tokens = torch.cat([modality, text], dim=1)
        return self.frozen[number](tokens, tokens, tokens, need_weights=False)[0][:, : modality.shape[1]]

    @staticmethod
    def _remembered(tokens: Tensor) -> Tensor:
        """The release's memory: a running mean over flattened tokens, the present one included."""
        counts = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        return 2 * tokens - tokens.cumsum(dim=1) / counts[None, :, None]


class ReleaseStep:
    """One step of its training on a clip: both runs, binary cross-entropy, backward, AdamW."""

    def __init__(self, sizes: ReleaseSizes) -> None:
        torch.manual_seed(0)
        self.model = Release(sizes).train()
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def __call__(self, frames: Tensor, audio: Tensor, text: Tensor, mask: Tensor) -> float:
        logits = self.model(frames, audio, text)
        logits = nn.functional.interpolate(logits[None], size=mask.shape[-2:], mode="bilinear", align_corners=False)[0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, mask.float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def _adapted(output: Any, adapter: nn.Module) -> Any:
    """What a layer gives, with the adapter applied to its tokens."""
    if isinstance(output, Tensor):
        return adapter(output)
    return (adapter(output[0]), *output[1:])
