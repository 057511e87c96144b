"""What visual encoders have in common: frames of clips to maps and vectors of each frame, in float16."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from extract.encoders.hub_folder import CONFIG, PREPROCESSOR, HubFolder
from extract.encoders.networks import DTYPES, frozen, to_host
from extract.encoders.protocol import Encoder, EncoderSetup, Frames, Modality
from extract.encoders.weights import WeightPart
from extract.media.forms import IMAGENET_MEAN, IMAGENET_STD, Fit, Resample
from refavs.config import digest
from refavs.errors import WeightsError
from refavs.store.format.schema import ArraySpec

Shape = tuple[int, ...]  # of a map (c, h, w) or of a vector (c,)
_AXES = ("t", "c", "h", "w")
_RESAMPLES: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, in preprocessor_config.json
_VOLATILE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures")


class FrameEncoder(Encoder):
    """Frames of clips to the maps and vectors of each frame, float16.

    The network computes in the precision of the setup.
    """

    modality: Modality = "visual"
    setup: EncoderSetup

    @abstractmethod
    def shapes(self) -> Mapping[str, Mapping[str, Shape]]:
        """Shape of each array of one frame, by level and name."""

    @abstractmethod
    def features(self, frames: Tensor, levels: Sequence[str]) -> Mapping[str, Tensor]:
        """The arrays of normalised frames, `<level>/<array>` or `<array>`; those of other levels are left out."""

    def beside(self, frames: UInt8[np.ndarray, "t h w c"], levels: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Further arrays of a clip, which are no features of its frames."""
        return {}

    def arrays(self, length: int) -> dict[str, list[ArraySpec]]:
        """One array per map or vector of each level."""
        return {
            level: [ArraySpec(name=name, shape=(length, *shape), dtype="float16", axes=_AXES[: 1 + len(shape)],
                              statistics=True) for name, shape in maps.items()]
            for level, maps in self.shapes().items()
        }  # fmt: skip

    @torch.no_grad()
    def encode(
        self, batch: Sequence[UInt8[np.ndarray, "t h w c"]], levels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Maps of each clip.

        A GPU takes the frames of all clips in one pass. A processor takes one clip after the other: more frames at
        once do not make it faster, and the maps of a clip then have the same bytes in any company.

        Args:
            batch: frames of each clip, as many for each.
            levels: which to compute.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        if not batch or not levels:
            return [{} for _ in batch]
        if self.setup.device == "cpu":
            found = [self._clips(frames, 1, levels)[0] for frames in batch]
        else:
            found = self._clips(np.concatenate(batch), len(batch), levels)
        return [clip | dict(self.beside(frames, levels)) for clip, frames in zip(found, batch, strict=True)]

    def _clips(
        self, frames: UInt8[np.ndarray, "f h w c"], num_clips: int, levels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        assert isinstance(self.takes, Frames)
        inputs = self.takes.normalised(torch.from_numpy(frames).to(self.setup.device))
        found = self.features(inputs.to(DTYPES[self.setup.precision]), levels)
        # In float16 and in the store's order of axes before they leave the device: half the bytes, and no copy after.
        stored = {path: maps.to(torch.float16, memory_format=torch.contiguous_format).chunk(num_clips)
                  for path, maps in found.items()}  # fmt: skip
        # Clip by clip, so that one that is written frees its memory while its neighbours wait.
        clips = [to_host({path: maps[clip] for path, maps in stored.items()}) for clip in range(num_clips)]
        return [{path: maps.numpy() for path, maps in clip.items()} for clip in clips]


def described(takes: Frames) -> str:
    """Preprocessing as a fact of a fingerprint."""
    mean, std = (", ".join(map(str, values)) for values in (takes.mean, takes.std))
    return f"first frame of each second, PIL {takes.resample}, {takes.fit}, mean {mean}, deviation {std}"


def preprocessing(files: HubFolder, usual: Frames) -> Frames:
    """The same frames with the mean, the deviation and the interpolation of a checkpoint.

    Raises:
        WeightsError: its file holds other things than numbers.
    """
    found = files.settings({}, PREPROCESSOR)
    try:
        mean, std = (tuple(map(float, found.get(name) or values)) for name, values in
                     (("image_mean", usual.mean), ("image_std", usual.std)))  # fmt: skip
        resample = _RESAMPLES[found["resample"]] if "resample" in found else usual.resample
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("three means and three deviations above 0")
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{PREPROCESSOR} of {files.repository} has an odd image_mean, image_std or resample "
                           f"({error}); fetch the files again by {files.fetch}") from error  # fmt: skip
    return replace(usual, resample=resample, mean=mean, std=std)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of a checkpoint without its files.

    Attributes:
        repository: its id on the hub.
        model_type: what transformers calls its architecture.
        also: what the checkpoint's own config may call it.
        num_parameters: of the part that computes features.
        sizes: values of its config that differ from those of the config's class.
        size: height and width of the frames, px.
        gated: the hub sends it only to those who accepted the licence.
    """

    repository: str
    model_type: str
    licence: str
    num_parameters: int
    sizes: Mapping[str, Any]
    size: int
    fit: Fit = "squash"
    resample: Resample = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    gated: bool = False
    also: tuple[str, ...] = ()


@dataclass
class HubFrameEncoder(FrameEncoder):
    """A network of transformers over the frames, with the sizes and the preprocessing of its checkpoint."""

    name: str
    published: Published
    setup: EncoderSetup
    licence: str = field(init=False)
    num_parameters: int = field(init=False)
    weights: str = field(init=False)

    def __post_init__(self) -> None:
        published = self.published
        self.licence, self.num_parameters = published.licence, published.num_parameters
        self.weights = f"{published.repository}{' (needs a token)' if published.gated else ''}"
        self.files = HubFolder(repository=published.repository, source=self.setup.weights, gated=published.gated)

    @abstractmethod
    def build(self) -> Any:
        """The network in float32, with its weights."""

    @cached_property
    def config(self) -> Any:
        """Sizes of the whole checkpoint."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        published = self.published
        return self.files.config(CONFIG_MAPPING[published.model_type], published.sizes, published.also)

    @property
    def input_size(self) -> int:
        """Height and width of the frames, px."""
        return self.published.size

    @cached_property
    def network(self) -> Any:
        """The network as it computes."""
        return frozen(self.build(), self.setup.device, DTYPES[self.setup.precision])

    @cached_property
    def takes(self) -> Frames:  # type: ignore[override]
        """Squares with the checkpoint's mean and deviation."""
        published = self.published
        return preprocessing(self.files, Frames(size=self.input_size, fit=published.fit, alpha=published.fit == "pad",
                                                resample=published.resample, mean=published.mean,
                                                std=published.std))  # fmt: skip

    @property
    def _stamp(self) -> str:
        return self.files.stamp()

    def facts(self, level: str) -> dict[str, Any]:
        """Facts about network and preprocessing; the sizes by the digest of the checkpoint's config."""
        told = {name: value for name, value in self.files.settings(self.published.sizes).items()
                if name not in _VOLATILE}  # fmt: skip
        return {
            "name": self.name, "weights": self._stamp, "precision": self.setup.precision, "dtype": "float16",
            "preprocessing": described(self.takes),
            "input_size": self.takes.size, "fit": self.takes.fit, "config": digest(told),
        }  # fmt: skip

    def weight_parts(self) -> Sequence[WeightPart]:
        """The network's weights, its sizes and its preprocessing."""
        return self.files.parts(self.name, lambda: self.network, CONFIG, PREPROCESSOR)
