"""The text towers of CLIP and of LanguageBind: token features of one expression, and its projected vector."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from extract.encoders.hub_text import Kind, TextEncoder, TextSettings
from extract.encoders.networks import of_transformers
from extract.encoders.tokens import clip_bpe

LENGTH = 77


class ClipTextEncoder(TextEncoder):
    """CLIP's text tower is causal, so its last token, the end of the text, stands for the whole.

    That token is the one with the highest id, which configs with `eos_token_id` 2 look for, and the first end, which
    later configs look for; here it is the last that is no padding.
    """

    network_name = "clip.modeling_clip.CLIPTextModelWithProjection"
    levels: ClassVar[Mapping[str, Kind]] = {"tokens": "tokens", "pooled": "pooled"}
    pooled_name = "projection_dim"
    pooling = "projection of the end of the text, not normalised"
    from_older = staticmethod(clip_bpe)
    tokenizer_kind = "lower-case BPE"
    unused = (r"vision_model\..*", r"visual_projection\..*", r"logit_scale", r".*\.position_ids")

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The config of the text tower, with the projection width of the whole network."""
        if "text_config" not in values and "text_config_dict" not in values:
            return of_transformers("clip.configuration_clip.CLIPTextConfig")(**values)
        without_vision = {name: value for name, value in values.items() if not name.startswith("vision_")}
        whole = of_transformers("clip.configuration_clip.CLIPConfig")(**without_vision)
        tower = whole.text_config
        tower.projection_dim = whole.projection_dim
        return tower

    def outputs(self, ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Mapping[Kind, Float[Tensor, "b *l c"]]:
        """The features of the last layer after its norm, and the projection of the last one."""
        network = self._network
        tokens = network.text_model(input_ids=ids, attention_mask=valid.long()).last_hidden_state
        ends = tokens[torch.arange(len(ids), device=ids.device), reduce(valid.long(), "b l -> b", "sum") - 1]
        return {"tokens": tokens, "pooled": network.text_projection(ends)}


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

clip_text_base = partial(
    ClipTextEncoder, "clip-text-base-patch32", BASE, licence="MIT (code)", num_parameters=63_428_096
)
clip_text_large = partial(
    ClipTextEncoder, "clip-text-large-patch14", LARGE, licence="MIT (code)", num_parameters=123_650_304
)
# The same in all checkpoints of LanguageBind.
languagebind_text = partial(
    ClipTextEncoder, "languagebind-text", LANGUAGEBIND, licence="MIT (code)", num_parameters=123_650_304
)
