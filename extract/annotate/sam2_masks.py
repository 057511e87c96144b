"""SAM 2.1 as segmenter and tracker: three masks for a box, and masks followed through the frames of a scene.

The features of a frame are those of the encoder `extract/encoders/sam2.py`, in float16 as a store has them. So a
stream of a store gives the same masks as a run of the encoder.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from extract.annotate.models import PRESENT, Frame, Maps, ScoredMask, Track, Tracker
from extract.annotate.records import Box
from extract.encoders.networks import DTYPES, frozen, of_transformers
from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import make_encoder
from extract.encoders.sam2 import HIGH_RESOLUTION, Sam2Encoder
from extract.encoders.weights import WeightPart
from extract.media.pictures import fitted
from extract.pipeline.estimate import seconds_of

SAM2_LEVELS = ("image", "high_resolution")
MAPS = (*(f"high_resolution/{name}" for name in HIGH_RESOLUTION), "image/map")  # from fine to coarse


class Sam2Masks(Tracker):
    """SAM 2.1 of one size.

    Args:
        name: of the encoder, e.g. `sam2.1-hiera-tiny`.
        setup: source of the weights, and the device.
    """

    def __init__(self, name: str, setup: EncoderSetup) -> None:
        encoder = make_encoder(name, setup)
        assert isinstance(encoder, Sam2Encoder)
        self.name, self.encoder, self._setup = name, encoder, setup

    def revision(self) -> str:
        """The stamp of the weights."""
        return str(self.encoder.facts("image")["weights"])

    def weight_parts(self) -> Sequence[WeightPart]:
        """Those of the encoder; the file has all parts of the model."""
        return self.encoder.weight_parts()

    @cached_property
    def _video(self) -> Any:
        """The model for videos, without its encoder."""
        published, files = self.encoder.published, self.encoder.files
        kind = of_transformers("sam2_video.configuration_sam2_video.Sam2VideoConfig")
        config = files.config(kind, published.sizes, (published.model_type,))
        network = files.network(of_transformers("sam2_video.modeling_sam2_video.Sam2VideoModel"), config)
        network = frozen(network, self._setup.device, DTYPES[self._setup.precision])
        *_, side = config.vision_config.backbone_feature_sizes
        shape = torch.Size((1, config.vision_config.fpn_hidden_size, *side))
        places = network.vision_encoder.neck.position_encoding(shape, network.device, network.dtype)
        del network.vision_encoder
        network.places = rearrange(places, "1 c h w -> (h w) 1 c")
        return network

    def rehearse(self, computes: Collection[str]) -> dict[str, float]:
        """Of the encoder, and of the memory and the decoder, which take two frames with the same features."""
        side, found = self.encoder.input_size, {}
        frames = [Frame(clip="", second=second, pixels=np.zeros((side, side, 3), np.uint8)) for second in range(2)]
        if "frame" in computes:
            found["frame"] = seconds_of(lambda: self.maps(frames[:1]))
        if "object" in computes:
            shapes = {f"{level}/{name}": shape for level, maps in self.encoder.shapes().items()
                      for name, shape in maps.items()}  # fmt: skip
            zeros = {path: np.zeros(shapes[path], np.float16) for path in MAPS}
            blank, mask = _Computed({0: zeros, 1: zeros}), np.ones((side, side), bool)
            found["object"] = seconds_of(lambda: self.track(frames, {1: {0: mask}}, {1: 0}, blank)) / len(frames)
        return found

    @torch.no_grad()
    def candidates(self, frame: Frame, boxes: Sequence[Box]) -> list[tuple[ScoredMask, ...]]:
        """Three masks for each box; all boxes in one pass."""
        if not boxes:
            return []
        network = self.encoder.network
        maps = self._on_device(self.maps([frame]).of(frame.second))
        *fine, coarse = (rearrange(each, "c h w -> 1 c h w") for each in maps)
        height, width = frame.pixels.shape[:2]
        side = self.encoder.input_size
        scale = torch.tensor([side / width, side / height] * 2)
        found = network(
            image_embeddings=[*fine, coarse + rearrange(network.no_memory_embedding, "1 1 c -> c 1 1")],
            input_boxes=(torch.tensor(boxes) * scale)[None].to(coarse.device, coarse.dtype), multimask_output=True,
        )  # fmt: skip
        masks = _at_size(found.pred_masks[0], height, width)
        scores = found.iou_scores[0].float().cpu().tolist()
        return [tuple(ScoredMask(mask=mask, iou_score=score) for mask, score in zip(each, own, strict=True))
                for each, own in zip(masks, scores, strict=True)]  # fmt: skip

    @torch.no_grad()
    def track(
        self, frames: Sequence[Frame], prompts: Mapping[int, Mapping[int, Bool[np.ndarray, "h w"]]],
        pivots: Mapping[int, int], maps: Maps | None = None,
    ) -> dict[int, Track]:  # fmt: skip
        """Follows all objects; those with known masks in the same frames together.

        Objects do not influence each other, and the features of the frames are shared.
        """
        maps = maps or self.maps(frames)
        features = [self._cached(self._on_device(maps.of(frame.second))) for frame in frames]
        together: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for fid, known in prompts.items():
            others = sorted(number for number in known if number != pivots[fid])
            together[pivots[fid], *others].append(fid)
        found: dict[int, Track] = {}
        for shown, fids in together.items():
            found |= self._followed(features, frames[0].pixels.shape[:2], shown, {fid: prompts[fid] for fid in fids})
        return found

    def _followed(
        self, features: Sequence[Mapping[str, list[Tensor]]], size: tuple[int, ...], shown: Sequence[int],
        prompts: Mapping[int, Mapping[int, Bool[np.ndarray, "h w"]]],
    ) -> dict[int, Track]:  # fmt: skip
        """Follows objects that have masks in the frames `shown`; the first of these is the pivot."""
        session, fids = self._session(features), list(prompts)
        for number in shown:
            for fid in fids:
                session.add_mask_inputs(session.obj_id_to_idx(fid), number, self._prompt(prompts[fid][number]))
            session.obj_with_new_inputs = list(fids)  # the model empties this list
            self._video(session, frame_idx=number)
        masks = np.zeros((len(fids), len(features), *size), bool)
        presence = np.zeros((len(fids), len(features)), np.float32)
        for reverse in (False, True):  # the pass to the start yields nothing from frame 0
            for out in self._video.propagate_in_video_iterator(session, start_frame_idx=shown[0], reverse=reverse):
                shows = torch.sigmoid(rearrange(out.object_score_logits, "o 1 -> o").float()).cpu().numpy()
                presence[:, out.frame_idx] = shows
                found = _at_size(rearrange(out.pred_masks, "o 1 h w -> o h w"), *size)
                masks[:, out.frame_idx] = found & rearrange(shows >= PRESENT, "o -> o 1 1")
        return {fid: Track(masks=masks[index], presence=presence[index]) for index, fid in enumerate(fids)}

    def _session(self, features: Sequence[Mapping[str, list[Tensor]]]) -> Any:
        """A session that has the features of all frames instead of their pictures."""
        device = self._video.device
        session = of_transformers("sam2_video.modeling_sam2_video.Sam2VideoInferenceSession")(
            video=torch.zeros(len(features), 0), inference_device=device, inference_state_device=device,
            dtype=self._video.dtype, max_vision_features_cache_size=len(features),
        )  # fmt: skip
        for number, each in enumerate(features):
            session.cache.cache_vision_features(number, dict(each))
        return session

    def maps(self, frames: Sequence[Frame]) -> Maps:
        """The features of a clip's frames, all in one pass as `refavs-extract` computes them, and so with its bits."""
        pictures = [fitted(Image.fromarray(frame.pixels), self.encoder.takes) for frame in frames]  # type: ignore[arg-type]
        (found,) = self.encoder.encode([np.stack(pictures)], SAM2_LEVELS)
        return _Computed({frame.second: {path: found[path][place] for path in MAPS}
                          for place, frame in enumerate(frames)})  # fmt: skip

    def _on_device(self, arrays: Mapping[str, np.ndarray]) -> list[Float[Tensor, "c h w"]]:
        """The features of a frame from fine to coarse."""
        device, dtype = self._setup.device, DTYPES[self._setup.precision]
        return [torch.from_numpy(np.ascontiguousarray(arrays[path])).to(device, dtype) for path in MAPS]

    def _cached(self, maps: Sequence[Float[Tensor, "c h w"]]) -> dict[str, list[Tensor]]:
        """The features of a frame as a session keeps them."""
        return {"vision_feats": [rearrange(each, "c h w -> (h w) 1 c") for each in maps],
                "vision_pos_embeds": [self._video.places]}  # fmt: skip

    def _prompt(self, mask: Bool[np.ndarray, "h w"]) -> Float[Tensor, "1 1 h w"]:
        """A mask in the size of the network's input."""
        given = torch.from_numpy(mask).to(self._setup.device).float()[None, None]
        sized = torch.nn.functional.interpolate(
            given, (self.encoder.input_size, self.encoder.input_size), mode="bilinear", antialias=True
        )
        return (sized >= 0.5).float()


@dataclass(frozen=True)
class _Computed(Maps):
    """Features by second."""

    arrays: Mapping[int, Mapping[str, np.ndarray]]

    def of(self, second: int) -> Mapping[str, np.ndarray]:
        """Those of a second."""
        return self.arrays[second]


def _at_size(logits: Float[Tensor, "n *m h w"], height: int, width: int) -> Bool[np.ndarray, "n *m y x"]:
    """Masks in the size of the frames."""
    whole = torch.nn.functional.interpolate(
        logits.float().reshape(1, -1, *logits.shape[-2:]), (height, width), mode="bilinear", align_corners=False
    )
    return (whole > 0).reshape(*logits.shape[:-2], height, width).cpu().numpy()


tiny, small, base_plus, large = (
    partial(Sam2Masks, f"sam2.1-hiera-{size}") for size in ("tiny", "small", "base-plus", "large")
)
