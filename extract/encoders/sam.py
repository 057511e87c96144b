"""SAM's image encoder: one map of a frame whose longer side fills a square, and the cells that contain the picture."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from einops import reduce
from jaxtyping import UInt8
from torch import Tensor

from extract.encoders.frame_encoder import HubFrameEncoder, Published, Shape
from extract.encoders.networks import of_transformers
from refavs.store.format.schema import ArraySpec

UNUSED = (r"prompt_encoder\..*", r"mask_decoder\..*", r"shared_image_embedding\..*")


class SamEncoder(HubFrameEncoder):
    """The map, and how to find the picture in it: `extent` says how many rows and columns of the map the picture fills,
    from the upper left corner, and `valid` which cells contain any of it. A pixel at the share (y, x) of the picture's
    height and width lies at row y * extent[0] and column x * extent[1] of the map.
    """

    @property
    def input_size(self) -> int:
        """Height and width of the frames, px."""
        return self.config.vision_config.image_size

    @property
    def _side(self) -> int:
        return self.input_size // self.config.vision_config.patch_size

    def shapes(self) -> dict[str, dict[str, Shape]]:
        """The map."""
        return {"": {"map": (self.config.vision_config.output_channels, self._side, self._side)}}

    def arrays(self, length: int) -> dict[str, list[ArraySpec]]:
        """The map, whose statistics leave out the padding, and where the picture lies."""
        (features,) = super().arrays(length)[""]
        return {"": [
            ArraySpec(name="map", shape=features.shape, dtype=features.dtype, axes=features.axes, statistics=True,
                      valid="valid"),
            ArraySpec(name="extent", shape=(length, 2), dtype="float32", axes=("t", "yx")),
            ArraySpec(name="valid", shape=(length, self._side, self._side), dtype="bool", axes=("t", "h", "w")),
        ]}  # fmt: skip

    def build(self) -> Any:
        """The image encoder alone."""
        return self.files.network(of_transformers("sam.modeling_sam.SamVisionModel"), self.config.vision_config, UNUSED)

    def features(self, frames: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """The map of each frame."""
        return {"map": self.network(pixel_values=frames).last_hidden_state}

    def beside(self, frames: UInt8[np.ndarray, "t h w 4"], levels: Sequence[str]) -> dict[str, np.ndarray]:
        """Where the picture lies in the map."""
        picture = frames[..., 3] > 0
        pixels = self.config.vision_config.patch_size
        sides = [picture.any(axis).sum(1) / pixels for axis in (2, 1)]
        return {"extent": np.stack(sides, 1).astype(np.float32),
                "valid": reduce(picture, "t (h i) (w j) -> t h w", "max", i=pixels, j=pixels)}  # fmt: skip


def _published(name: str, num_parameters: int, *sizes: int, every: int) -> Any:
    channels, num_layers, num_heads = sizes
    vision = {"hidden_size": channels, "num_hidden_layers": num_layers, "num_attention_heads": num_heads,
              "global_attn_indexes": list(range(every - 1, num_layers, every))}  # fmt: skip
    published = Published(
        repository=f"facebook/{name}", model_type="sam", licence="Apache-2.0", num_parameters=num_parameters,
        size=1024, fit="pad", sizes={"vision_config": vision},
    )  # fmt: skip
    return partial(SamEncoder, name, published)


sam_base = _published("sam-vit-base", 89_670_912, 768, 12, 12, every=3)
sam_large = _published("sam-vit-large", 308_278_272, 1024, 24, 16, every=6)
sam_huge = _published("sam-vit-huge", 637_026_048, 1280, 32, 16, every=8)
