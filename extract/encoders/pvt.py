"""PVT-v2: maps at strides 4, 8, 16 and 32, as AVSBench and AVSegFormer read them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from extract.encoders.frame_encoder import HubFrameEncoder, Published, Shape
from extract.encoders.networks import of_transformers


class PvtEncoder(HubFrameEncoder):
    """The output of each stage, under the names of Swin's stages, so that heads with a pixel decoder read them."""

    def shapes(self) -> dict[str, dict[str, Shape]]:
        """A map per stage."""
        side, maps = self.input_size, dict[str, Shape]()
        for number, (channels, stride) in enumerate(zip(self.config.hidden_sizes, self.config.strides, strict=True)):
            side = -(-side // stride)
            maps[f"res{number + 2}"] = (channels, side, side)
        return {"": maps}

    def build(self) -> Any:
        """The stages without the classifier."""
        kind = of_transformers("pvt_v2.modeling_pvt_v2.PvtV2Backbone")
        self.config.set_output_features_output_indices(out_features=self.config.stage_names, out_indices=None)
        return self.files.network(kind, self.config, (r"classifier\..*",))

    def features(self, frames: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """The map of each stage."""
        found = self.network(pixel_values=frames).feature_maps
        return {f"res{number + 2}": maps for number, maps in enumerate(found)}


def _published(name: str, num_parameters: int, **sizes: Any) -> Any:
    published = Published(
        repository=f"OpenGVLab/{name.replace('-', '_')}", model_type="pvt_v2", licence="Apache-2.0",
        num_parameters=num_parameters, size=224, resample="bicubic",
        sizes={"hidden_sizes": [64, 128, 320, 512], **sizes},
    )
    return partial(PvtEncoder, name, published)


pvt_v2_b2 = _published("pvt-v2-b2", 24_849_856, depths=[3, 4, 6, 3])
pvt_v2_b5 = _published("pvt-v2-b5", 81_443_008, depths=[3, 6, 40, 3], mlp_ratios=[4, 4, 4, 4])
