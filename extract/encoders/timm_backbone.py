"""Any backbone of timm that gives feature maps, by its own data config: `timm:resnet50.a1_in1k`.

The stream is called `timm-<model>`, because its name has no colon. Where the stages have strides of their own,
each gives a map, `res2` at stride 4 to `res5` at stride 32, so that heads with a pixel decoder read a pyramid. Where
all have the same stride, as in plain transformers, the last gives the one map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from extract.encoders.frame_encoder import FrameEncoder, Shape, described
from extract.encoders.hub_folder import HubFolder
from extract.encoders.networks import DTYPES, frozen, randomly
from extract.encoders.protocol import EncoderSetup, Frames
from extract.encoders.weights import OtherArchitecture, WeightPart
from extract.media.forms import Resample
from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.machine.torchvision_shim import ensure_torchvision


@dataclass
class TimmEncoder(FrameEncoder):
    """A backbone over squashed frames of the size that it was trained on.

    Differs from timm's own preprocessing, which keeps the middle of a picture.

    Attributes:
        model: timm's name.
    """

    model: str
    setup: EncoderSetup
    takes: Frames = field(init=False)  # type: ignore[override]

    def __post_init__(self) -> None:
        ensure_torchvision()
        import timm
        from timm.data.config import resolve_data_config

        try:
            cfg = timm.get_pretrained_cfg(self.model, allow_unregistered=False)
        except RuntimeError:  # of the architecture, or of the weights behind the dot
            close = nearest(self.model, [*timm.list_models(), *timm.list_models(pretrained=True)])
            hint = close if close.startswith("did") else "timm.list_models() lists them"
            raise ConfigError(f"timm has no model {self.model!r}; {hint}") from None
        assert cfg is not None
        data = resolve_data_config(pretrained_cfg=cfg.to_dict())
        _, height, width = data["input_size"]
        if height != width:
            raise ConfigError(f"timm's {self.model} takes frames of {height} x {width} px; accepted: models of squares")
        self.name = f"timm-{self.model}"
        self.licence = cfg.license or "unknown"
        self.takes = Frames(  # type: ignore[override]
            size=height, mean=tuple(data["mean"]), std=tuple(data["std"]),
            resample=data["interpolation"] if data["interpolation"] in get_args(Resample) else "bicubic",
        )  # fmt: skip
        self.weights = cfg.hf_hub_id or "random"
        if not cfg.hf_hub_id and self.setup.weights.kind == "pretrained":
            raise ConfigError(f"timm's {self.model} has no weights on the hub; take a name with weights, such as those "
                              "of timm.list_pretrained(), or --weights random")
        self.files = HubFolder(repository=self.weights, source=self.setup.weights)

    @property
    def num_parameters(self) -> int:  # type: ignore[override]
        """Of the stages that give maps."""
        return self._known[0]

    def shapes(self) -> dict[str, dict[str, Shape]]:
        """A map per stage, or the last one alone."""
        return {"": self._known[1]}

    def facts(self, level: str) -> dict[str, Any]:
        """Facts about the network and its data config."""
        takes = self.takes
        return {
            "name": self.name, "weights": self.files.stamp(), "precision": self.setup.precision, "dtype": "float16",
            "preprocessing": described(takes),
            "input_size": takes.size, "fit": takes.fit,
        }  # fmt: skip

    def features(self, frames: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """The map of each stage."""
        return _named_maps(self.network, self.network(frames))

    def weight_parts(self) -> Sequence[WeightPart]:
        """The network's weights."""
        return self.files.parts(self.name, lambda: self.network)

    @cached_property
    def _known(self) -> tuple[int, dict[str, Shape]]:
        """Number of parameters, and shapes of the maps, found without computing."""
        with torch.device("meta"):
            network = self._built()
            maps = _named_maps(network, network(torch.empty(1, 3, self.takes.size, self.takes.size)))
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        return num_parameters, {name: tuple(found.shape[1:]) for name, found in maps.items()}

    @cached_property
    def network(self) -> nn.Module:
        """The network as it computes."""
        return frozen(self._filled(), self.setup.device, DTYPES[self.setup.precision])

    def _filled(self) -> nn.Module:
        """The network with its weights; timm brings their names to the network's.

        Raises:
            OtherArchitecture: tensors are missing or of another size.
        """
        if self.setup.weights.kind == "random":
            return randomly(self._built, self.setup.weights.seed)
        path, state = self.files.tensor_files()[0], self.files.state()

        def build() -> nn.Module:
            # timm removes from the dictionary what it does not need.
            return self._built(pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)})

        try:
            one, other = (randomly(build, seed).state_dict() for seed in range(2))
            # timm leaves random what the file lacks and says nothing of it; random values differ between seeds.
            absent = [name for name, value in one.items() if not torch.equal(value, other[name])]
            if not absent:
                return randomly(build, 0)
            problem = f"it lacks {', '.join(absent[:3])}{' ...' * (len(absent) > 3)}"
        except (RuntimeError, KeyError) as error:
            problem = " ".join(str(error).split())[:300]
        raise OtherArchitecture(f"weights {path} belong to another architecture than timm's {self.model}: {problem}; "
                                f"fetch them by {self.files.fetch.format(folder=self.setup.weights.folder or 'DIR')}")

    def _built(self, **options: Any) -> nn.Module:
        """The network with random weights, unless `options` say otherwise."""
        import timm

        try:
            return timm.create_model(self.model, features_only=True, **options).eval()
        except (AssertionError, AttributeError, TypeError) as error:
            raise ConfigError(f"timm's {self.model} gives no feature maps (features_only): "
                              f"{' '.join(str(error).split())[:200]}; take another model") from error


def _named_maps(network: Any, found: Sequence[Tensor]) -> dict[str, Tensor]:
    """The maps (f, c, h, w) by their names."""
    strides = network.feature_info.reduction()
    if str(getattr(network, "output_fmt", None)).endswith("NHWC"):
        found = [rearrange(maps, "f h w c -> f c h w") for maps in found]
    if len(set(strides)) < len(strides) or any(stride & (stride - 1) for stride in strides):
        return {"map": found[-1]}
    return {f"res{round(math.log2(stride))}": maps for stride, maps in zip(strides, found, strict=True)}


def timm_backbone(setup: EncoderSetup, model: str) -> TimmEncoder:
    """Any backbone of timm with features_only, by timm's name, as timm:resnet50.a1_in1k."""
    return TimmEncoder(model, setup)
