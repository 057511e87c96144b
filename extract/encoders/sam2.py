"""SAM 2.1's image encoder: the map that memory and prompts are matched with, and the two finer ones of its decoder.

SAM 2 adds a learned vector to the map of a frame that has no memory. The map is stored without it and the vector
beside it: a head that tracks adds memory instead, another one adds the vector.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from extract.encoders.frame_encoder import HubFrameEncoder, Published, Shape
from extract.encoders.networks import of_transformers
from refavs.store.format.schema import ArraySpec

HIGH_RESOLUTION = ("s4", "s8")
VIDEO = (r"memory_.*", r"mask_downsample.*", r"object_pointer_proj.*", "no_memory_positional_encoding",
         r"temporal_positional_encoding_projection_layer.*", "no_object_pointer",
         "occlusion_spatial_embedding_parameter")  # fmt: skip


class Sam2Encoder(HubFrameEncoder):
    """Level `image` is the map at stride 16, level `high_resolution` those at strides 4 and 8, which have gone through
    the first convolutions of the mask decoder.
    """

    @property
    def input_size(self) -> int:
        """Height and width of the frames, px."""
        return self.config.vision_config.backbone_config.image_size[0]

    def shapes(self) -> dict[str, dict[str, Shape]]:
        """The map, and the finer ones."""
        channels = self.config.vision_config.fpn_hidden_size
        fine, middle, coarse = (side for side, _ in self.config.vision_config.backbone_feature_sizes)
        return {"image": {"map": (channels, coarse, coarse)},
                "high_resolution": {"s4": (channels // 8, fine, fine), "s8": (channels // 4, middle, middle)}}

    def arrays(self, length: int) -> dict[str, list[ArraySpec]]:
        """Those of the frames, and the vector that frames without memory have added."""
        found = super().arrays(length)
        channels = self.config.vision_config.fpn_hidden_size
        found["image"].append(ArraySpec(name="no_memory", shape=(channels,), dtype="float16", axes=("c",)))
        return found

    def build(self) -> Any:
        """The model for images; a checkpoint has that for videos too."""
        return self.files.network(of_transformers("sam2.modeling_sam2.Sam2Model"), self.config, VIDEO)

    def features(self, frames: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """The maps of each frame."""
        tokens = self.network.get_image_features(pixel_values=frames).fpn_hidden_states
        sizes = self.config.vision_config.backbone_feature_sizes
        *finer, coarse = (rearrange(part, "(h w) f c -> f c h w", h=size[0])
                          for part, size in zip(tokens, sizes, strict=True))  # fmt: skip
        found = {f"high_resolution/{name}": maps for name, maps in zip(HIGH_RESOLUTION, finer, strict=True)}
        found["image/map"] = coarse
        return {path: maps for path, maps in found.items() if path.split("/")[0] in levels}

    def beside(self, frames: UInt8[np.ndarray, "t h w c"], levels: Sequence[str]) -> dict[str, np.ndarray]:
        """The vector of frames without memory."""
        vector = rearrange(self.network.no_memory_embedding, "1 1 c -> c").half().cpu().numpy()
        return {"image/no_memory": vector} if "image" in levels else {}


def _published(name: str, num_parameters: int, channels: int, num_heads: int, **backbone: Any) -> Any:
    widths = [channels * 2**stage for stage in range(4)]
    backbone |= {"model_type": "sam2_hiera_det_model", "hidden_size": channels, "num_attention_heads": num_heads,
                 "embed_dim_per_stage": widths,
                 "num_attention_heads_per_stage": [num_heads * 2**stage for stage in range(4)]}  # fmt: skip
    published = Published(
        repository=f"facebook/{name}", model_type="sam2", licence="Apache-2.0", num_parameters=num_parameters,
        size=1024, also=("sam2_video",),
        sizes={"vision_config": {"backbone_channel_list": widths[::-1], "backbone_config": backbone}},
    )  # fmt: skip
    return partial(Sam2Encoder, name, published)


sam2_tiny = _published("sam2.1-hiera-tiny", 31_440_721, 96, 1)
sam2_small = _published("sam2.1-hiera-small", 38_538_577, 96, 1, blocks_per_stage=[1, 2, 11, 2],
                        global_attention_blocks=[7, 10, 13])  # fmt: skip
sam2_base_plus = _published("sam2.1-hiera-base-plus", 73_328_401, 112, 2, blocks_per_stage=[2, 3, 16, 3],
                            global_attention_blocks=[12, 16, 20],
                            window_positional_embedding_background_size=[14, 14])  # fmt: skip
sam2_large = _published("sam2.1-hiera-large", 216_924_865, 144, 2, blocks_per_stage=[2, 6, 36, 4],
                        global_attention_blocks=[23, 33, 43], window_size_per_stage=[8, 4, 16, 8])  # fmt: skip
