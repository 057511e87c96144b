"""A training step as the public release of Ref-AVS makes it, as far as its cost goes; run by `bench_train.py`.

Its operations, sizes and trained parts are those of the release (GeWu-Lab/Ref-AVS, `models/`): the whole of Mask2Former
runs twice on every frame, once for Swin's last map and once with prompted queries; width is 1024; each attention is a
single layer over all tokens of the clip and never trained; adapters in the pixel decoder are trained, so that the
gradient passes both decoders; all masks are enlarged to the frame before they are summed. No code of it is used here.
Left out, because it costs nothing beside the rest: the reshape that mixes frames and channels.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from refavs.machine.torchvision_shim import ensure_torchvision

WIDTH, HEADS, HIDDEN = 1024, 8, 2048
ADAPTER, PROMPT_HEADS = 4, 4  # the adapters are that many times as narrow as what they adapt


@dataclass(frozen=True, kw_only=True)
class ReleaseSizes:
    """Sizes of Mask2Former's Swin and decoders, and of the masks that are compared."""

    input_size: int = 384
    mask_size: int = 256
    swin_channels: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    channels: int = 256
    num_queries: int = 100
    decoder_layers: int = 10  # transformers counts the prediction before the first layer


def perceptron(in_channels: int, hidden: int, channels: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(in_channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))


class Prompting(nn.Module):
    """Queries that attend to the prompts of their frame and get their mean, each through a gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, PROMPT_HEADS)
        self.gates = nn.Parameter(torch.ones(2))

    def forward(self, queries: Tensor, prompts: Tensor) -> Tensor:
        """`q t c` queries and `l t c` prompts."""
        attended = self.attention(queries, prompts, prompts, need_weights=False)[0]
        gates = self.gates.sigmoid()
        return queries + gates[0] * attended + gates[1] * prompts.mean(dim=0, keepdim=True)


class Release(nn.Module):
    """Frames, audio and text features of one clip and one expression to the logits of a mask per frame."""

    def __init__(self, sizes: ReleaseSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.mask2former = mask2former(sizes).requires_grad_(False)
        features = sizes.swin_channels * 8
        self.visual = nn.Identity() if features == WIDTH else nn.Linear(features, WIDTH)
        self.audio, self.text = perceptron(128, HIDDEN, WIDTH), perceptron(768, HIDDEN, WIDTH)
        self.prompt = perceptron(WIDTH, HIDDEN, sizes.channels)
        self.attentions = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS) for _ in range(3))
        self.attentions.requires_grad_(False)
        self.prompting = Prompting(sizes.channels)
        self.prompts: Tensor | None = None
        module: Any = self.mask2former.model
        layers = module.pixel_level_module.decoder.encoder.layers
        self.adapters = nn.ModuleList(
            perceptron(sizes.channels, sizes.channels // ADAPTER, sizes.channels) for _ in layers
        )
        for layer, adapter in zip(layers, self.adapters, strict=True):
            layer.self_attn.register_forward_hook(
                lambda module, inputs, output, adapter=adapter: (adapter(output[0]), *output[1:])
            )
        module.transformer_module.decoder.register_forward_pre_hook(self._prompted, with_kwargs=True)

    def _prompted(self, module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.prompts is None:
            return args, named
        return args, named | {"inputs_embeds": self.prompting(named["inputs_embeds"], self.prompts)}

    def forward(self, frames: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        """Logits `t h w` of the masks.

        Args:
            frames: `t 3 h w`.
            audio: `t 128`.
            text: `l 768`.
        """
        self.prompts = None
        visual = self.mask2former(pixel_values=frames).encoder_last_hidden_state  # with the graph of all the rest
        visual = self.visual(rearrange(visual, "t c h w -> (t h w) 1 c"))
        audio, text = (rearrange(tokens, "l c -> l 1 c") for tokens in (self.audio(audio), self.text(text)))
        cue_audio, text_audio = self._related(0, audio, text)
        cue_visual, text_visual = self._related(1, visual, text)
        cue_text = (text + text_audio + text_visual) / 3
        tag = torch.zeros_like(text[:1])
        of_frames = rearrange(cue_visual, "(t n) 1 c -> t n 1 c", t=len(frames))
        prompts = torch.stack([
            self._attended(2, rearrange(torch.cat([cue_audio, tag, of_frame, tag + 1, cue_text]), "l 1 c -> 1 l c"))
            for of_frame in of_frames  # the release attends over the batch, which holds one expression here
        ])  # fmt: skip
        self.prompts = self.prompt(rearrange(prompts, "t 1 l c -> l t c"))
        return self._masks(self.mask2former(pixel_values=frames))

    def _attended(self, number: int, tokens: Tensor) -> Tensor:
        return self.attentions[number](tokens, tokens, tokens)[0]

    def _related(self, number: int, modality: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The cue of a modality, by a memory that runs over flattened tokens, and the text beside it."""
        tokens = self._attended(number, torch.cat([modality, text]))
        related, aware = tokens.split([len(modality), len(text)])
        counts = repeat(torch.arange(1, len(related) + 1, device=related.device), "l -> l 1 1")
        return 2 * related - related.cumsum(dim=0) / counts, aware

    def _masks(self, output: Any) -> Tensor:
        """All masks enlarged to the frame, their sum weighted by the class, and that at the size of the labels."""
        objectness = output.class_queries_logits[..., [0, -1]].softmax(dim=-1)[..., 0]
        size = (self.sizes.input_size,) * 2
        masks = nn.functional.interpolate(output.masks_queries_logits, size=size, mode="bilinear", align_corners=False)
        found = torch.einsum("tq,tqhw->thw", objectness, masks)
        size = (self.sizes.mask_size,) * 2
        found = rearrange(found, "t h w -> t 1 h w")
        return rearrange(nn.functional.interpolate(found, size=size, mode="bilinear"), "t 1 h w -> t h w")


def mask2former(sizes: ReleaseSizes) -> nn.Module:
    """transformers' Mask2Former with random weights."""
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
        return Mask2FormerForUniversalSegmentation(config)


class ReleaseStep:
    """One step of its training on a clip: both runs, binary cross-entropy, backward, AdamW."""

    def __init__(self, sizes: ReleaseSizes) -> None:
        torch.manual_seed(0)
        self.sizes, self.model = sizes, Release(sizes).train()
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def __call__(self, frames: Tensor, audio: Tensor, text: Tensor, mask: Tensor) -> float:
        label = nn.functional.interpolate(rearrange(mask.float(), "t h w -> t 1 h w"), size=(self.sizes.mask_size,) * 2)
        logits = self.model(frames, audio, text)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, rearrange(label, "t 1 h w -> t h w"))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())
