"""The text towers of CLIP and of LanguageBind: token features of one expression, and its projected vector."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from extract.encoders.hub_text import Kind, TextEncoder, TextSettings
from extract.encoders.protocol import EncoderSetup
from extract.encoders.tokens import clip_bpe
from refavs.machine.torchvision_shim import ensure_torchvision

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LENGTH = 77


class ClipTextEncoder(TextEncoder):
    """CLIP's text tower is causal, so its last token, the end of the text, stands for the whole.

    That token is the one with the highest id, which configs with `eos_token_id` 2 look for, and the first end, which
    later configs look for; here it is the last that is no padding.
    """

    levels: ClassVar[Mapping[str, Kind]] = {"tokens": "tokens", "pooled": "pooled"}
    pooled_name = "projection_dim"
    pooling = "projection of the end of the text, not normalised"
    tokenizer_kind = "lower-case BPE"
    unused = (r"vision_model\..*", r"visual_projection\..*", r"logit_scale", r".*\.position_ids")

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """That of the text tower within a config of both, whose width of the projection counts."""
        ensure_torchvision()
        from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig

        if "text_config" not in values and "text_config_dict" not in values:
            return CLIPTextConfig(**values)
        whole: Any = CLIPConfig(**{name: value for name, value in values.items() if not name.startswith("vision_")})
        tower = whole.text_config
        tower.projection_dim = whole.projection_dim
        return tower

    def network_class(self) -> Any:
        """Tower and projection."""
        from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

        return CLIPTextModelWithProjection

    def outputs(self, ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Mapping[Kind, Float[Tensor, "b *l c"]]:
        """The features of the last layer after its norm, and the projection of the last one."""
        network = self._network
        tokens = network.text_model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        ends = tokens[torch.arange(len(ids), device=ids.device), reduce(valid.long(), "b l -> b", "sum") - 1]
        return {"tokens": tokens, "pooled": network.text_projection(ends)}

    def from_older(self, *files: Path) -> "Tokenizer":
        """From vocab.json and merges.txt."""
        return clip_bpe(*files)


def _config(channels: int, num_heads: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": channels, "num_hidden_layers": 12, "num_attention_heads": num_heads, "projection_dim": channels,
        "intermediate_size": 4 * channels, "vocab_size": 49_408, "max_position_embeddings": LENGTH,
        "hidden_act": activation, "layer_norm_eps": 1e-5,
    }  # fmt: skip


BASE = TextSettings(length=LENGTH, config=_config(512, 8, "quick_gelu"), repository="openai/clip-vit-base-patch32")
LARGE = TextSettings(length=LENGTH, config=_config(768, 12, "quick_gelu"), repository="openai/clip-vit-large-patch14")
LANGUAGEBIND = TextSettings(
    length=LENGTH,
    config=_config(768, 12, "gelu"),
    repository="LanguageBind/LanguageBind_Audio_FT",
    tokenizer="LanguageBind/LanguageBind_Image",
)


def clip_text_base(setup: EncoderSetup) -> ClipTextEncoder:
    """That of CLIP B/32."""
    return ClipTextEncoder("clip-text-base-patch32", BASE, setup, "MIT (code)", 63_428_096)


def clip_text_large(setup: EncoderSetup) -> ClipTextEncoder:
    """That of CLIP L/14."""
    return ClipTextEncoder("clip-text-large-patch14", LARGE, setup, "MIT (code)", 123_650_304)


def languagebind_text(setup: EncoderSetup) -> ClipTextEncoder:
    """That of LanguageBind, the same in all of its checkpoints."""
    return ClipTextEncoder("languagebind-text", LANGUAGEBIND, setup, "MIT (code)", 123_650_304)
