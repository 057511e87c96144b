"""CLIP's vision tower: maps of the patches in its last two layers, and the vector that is compared with texts."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from einops import rearrange
from torch import Tensor

from extract.encoders.frame_encoder import HubFrameEncoder, Published, Shape
from extract.encoders.networks import of_transformers

TEXT_TOWER = (r"text_model\..*", r"text_projection\..*", "logit_scale", r".*\.position_ids")


class ClipVisionEncoder(HubFrameEncoder):
    """Differs from CLIP's own preprocessing, which keeps the middle of a picture: all of it is squashed, so that every
    pixel has a place in the maps.
    """

    @property
    def input_size(self) -> int:
        """Height and width of the frames, px."""
        return self.config.vision_config.image_size

    def shapes(self) -> dict[str, dict[str, Shape]]:
        """Maps of the last layer and of the one before, which most users of CLIP's patches take, and the vector."""
        vision = self.config.vision_config
        side, channels = vision.image_size // vision.patch_size, vision.hidden_size
        patches: dict[str, Shape] = {"map": (channels, side, side)}
        return {"patches": patches, "penultimate": patches, "pooled": {"vector": (self.config.projection_dim,)}}

    def build(self) -> Any:
        """The vision tower with its projection."""
        kind = of_transformers("clip.modeling_clip.CLIPVisionModelWithProjection")
        self.config.vision_config.projection_dim = self.config.projection_dim
        return self.files.network(kind, self.config.vision_config, TEXT_TOWER)

    def features(self, frames: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Patches and vector of each frame."""
        found = self.network(pixel_values=frames, output_hidden_states=True)
        tokens = {"patches": found.hidden_states[-1], "penultimate": found.hidden_states[-2]}
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        maps = {f"{level}/map": rearrange(tokens[level][:, 1:], "f (h w) c -> f c h w", h=side)
                for level in tokens if level in levels}  # fmt: skip
        return maps | ({"pooled/vector": found.image_embeds} if "pooled" in levels else {})


def _published(name: str, num_parameters: int, projection: int, **vision: Any) -> Any:
    published = Published(
        repository=f"openai/{name}", model_type="clip", licence="MIT (code)", num_parameters=num_parameters, size=224,
        resample="bicubic", mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
        sizes={"projection_dim": projection, "vision_config": {"projection_dim": projection, **vision}},
    )  # fmt: skip
    return partial(ClipVisionEncoder, name, published)


_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}

clip_base_32 = _published("clip-vit-base-patch32", 87_849_216, 512)
clip_base_16 = _published("clip-vit-base-patch16", 86_192_640, 512, patch_size=16)
clip_large_14 = _published("clip-vit-large-patch14", 303_966_208, 768, patch_size=14, **_LARGE)
