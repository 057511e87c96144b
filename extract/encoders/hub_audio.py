"""Audio encoders with weights on the hub: what the families share, from the sound of a clip to the arrays of levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from extract.encoders.hub_tower import HubTower
from extract.encoders.networks import DTYPES
from extract.encoders.protocol import Encoder, EncoderSetup, Sound
from extract.encoders.spectrograms import RATE_HZ
from extract.encoders.weights import WeightPart
from refavs.steps import Steps
from refavs.store.format.schema import ArraySpec


@dataclass(frozen=True, kw_only=True)
class SoundSettings:
    """One audio encoder of a family.

    Attributes:
        config: in the names of the hub's config.json; the published one, for random weights.
        repository: on the hub; its last part names the folder within that of all weights.
    """

    config: Mapping[str, Any] = field(hash=False)
    repository: str


@dataclass(frozen=True)
class Prepared:
    """What a network reads of one clip.

    Attributes:
        inputs: by kind (windows, clip, pieces); the first axis counts the passes of the network.
    """

    seconds: int
    inputs: Mapping[str, Float[Tensor, "p ..."]]


@dataclass
class SoundEncoder(HubTower, Encoder):
    """The sound of a clip to the features of one level or more, float16.

    Attributes:
        levels: which of the inputs each level is made from.
        about: what the features of each level are, for the fingerprint.
        preprocessing: the front end, for the fingerprint.
        sizes: names in the config of what the fingerprint says of the network.
    """

    name: str
    settings: SoundSettings
    setup: EncoderSetup
    licence: str
    num_parameters: int

    rate_hz: ClassVar[int] = RATE_HZ
    levels: ClassVar[Mapping[str, str]]
    about: ClassVar[Mapping[str, str]]
    preprocessing: ClassVar[str]
    sizes: ClassVar[Sequence[str]] = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")

    def __post_init__(self) -> None:
        self.modality = "audio"
        self.takes = Sound(rate_hz=self.rate_hz)
        self.weights = self.settings.repository

    def inputs_of(self, sound: Float[np.ndarray, " s"], seconds: int) -> Mapping[str, Float[np.ndarray, "p ..."]]:
        """The front end: what the network takes of a sound, by the names in `levels`."""
        raise NotImplementedError

    def outputs(self, inputs: Float[Tensor, "p ..."]) -> Float[Tensor, "p *n c"]:
        """What the network makes of some inputs."""
        raise NotImplementedError

    def features(self, level: str, outputs: Float[Tensor, "p *n c"], seconds: int) -> Float[Tensor, "n c"]:
        """The features of one level of a clip, from the outputs of its inputs."""
        raise NotImplementedError

    def shape(self, level: str, seconds: int) -> tuple[int, int]:
        """Of the features of a level."""
        raise NotImplementedError

    def steps(self, seconds: int) -> Steps:
        """The steps of a clip."""
        return Steps(seconds, self.setup.fps)

    def facts(self, level: str) -> dict[str, Any]:
        """Facts about network and front end."""
        return {
            "name": self.name, "weights": self._stamp(), "preprocessing": self.preprocessing,
            "output": self.about[level], "precision": self.setup.precision, "dtype": "float16",
            "sizes": {name: self.config[name] for name in self.sizes},
        }  # fmt: skip

    def arrays(self, length: int) -> dict[str, list[ArraySpec]]:
        """One array for each level: a vector for each step, or tokens."""
        return {
            level: [ArraySpec(name="features", shape=self.shape(level, length), dtype="float16", statistics=True,
                              axes=("n" if level == "tokens" else "t", "c"))]
            for level in self.levels
        }  # fmt: skip

    def weight_parts(self) -> Sequence[WeightPart]:
        """The network's file."""
        return self._hub.parts(self.name, lambda: self._network)

    def prepare(self, item: Float[np.ndarray, " s"]) -> Prepared:
        """What the network takes of the sound of a clip."""
        seconds = len(item) // self.rate_hz
        inputs = self.inputs_of(item, seconds)
        return Prepared(seconds, {name: torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
                                  for name, values in inputs.items()})  # fmt: skip

    @torch.no_grad()
    def encode(self, batch: Sequence[Prepared], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """Computes the features of each clip.

        A GPU processes all in one pass, a CPU one by one, so that results do not depend on the batch.
        """
        passes = [[item] for item in batch] if self.setup.device == "cpu" else [batch][: len(batch)]
        return [found for items in passes for found in self._features(items, levels)]

    def _features(self, items: Sequence[Prepared], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        found: list[dict[str, np.ndarray]] = [{} for _ in items]
        for name in dict.fromkeys(self.levels[level] for level in levels):
            inputs = torch.cat([item.inputs[name] for item in items])
            outputs = self.outputs(inputs.to(self.setup.device, DTYPES[self.setup.precision])).float()
            parts = outputs.split([len(item.inputs[name]) for item in items])
            for one, item, part in zip(found, items, parts, strict=True):
                one |= {f"{level}/features": self.features(level, part, item.seconds).half().cpu().numpy()
                        for level in levels if self.levels[level] == name}  # fmt: skip
        return found

    def _stamp(self) -> str:
        return self._hub.stamp()


class WindowEncoder(SoundEncoder):
    """An encoder that makes one vector of a sound: level `seconds` hears each second alone, `clip` the whole clip.

    Each step has the vector of the second that begins with it. That of the clip is repeated for each step, so that a
    head reads it like the other.
    """

    levels: ClassVar[Mapping[str, str]] = {"seconds": "windows", "clip": "clip"}
    about: ClassVar[Mapping[str, str]] = {
        "seconds": "projected vector of each second alone, not normalised",
        "clip": "projected vector of the whole clip, not normalised, repeated for each second",
    }

    def front_end(self, sound: Float[np.ndarray, " s"]) -> Float[np.ndarray, "channel h w"]:
        """What the network takes of one sound."""
        raise NotImplementedError

    def inputs_of(self, sound: Float[np.ndarray, " s"], seconds: int) -> Mapping[str, Float[np.ndarray, "p ..."]]:
        """The second of each step alone, silent beyond the clip, and the whole."""
        steps, padded = self.steps(seconds), np.pad(sound, (0, self.rate_hz))
        starts = [round(steps.time_s(step) * self.rate_hz) for step in range(len(steps))]
        return {"windows": np.stack([self.front_end(padded[start : start + self.rate_hz]) for start in starts]),
                "clip": self.front_end(sound)[None]}  # fmt: skip

    def features(self, level: str, outputs: Float[Tensor, "p *n c"], seconds: int) -> Float[Tensor, "n c"]:
        """The vectors."""
        return outputs if level == "seconds" else repeat(outputs, "1 c -> t c", t=len(self.steps(seconds)))

    def shape(self, level: str, seconds: int) -> tuple[int, int]:
        """One vector for each step."""
        return len(self.steps(seconds)), self.config["projection_dim"]


class PatchEncoder(SoundEncoder):
    """An encoder that makes tokens of a spectrogram: level `seconds` is their mean over each second, `tokens` is all.

    Each step has the mean over the second that begins with it, or the last tokens if none begins there. A clip that is
    longer than what the network takes is heard in pieces.
    """

    levels: ClassVar[Mapping[str, str]] = {"seconds": "pieces", "tokens": "pieces"}
    about: ClassVar[Mapping[str, str]] = {
        "seconds": "mean of the tokens whose middle lies in the second", "tokens": "all tokens",
    }  # fmt: skip
    channels_name: ClassVar[str] = "hidden_size"

    def columns(self, outputs: Float[Tensor, "p n c"]) -> Float[Tensor, "p column band c"]:
        """The tokens of the spectrogram by their place in time and frequency; those of silent padding may be there."""
        raise NotImplementedError

    def middles_s(self, seconds: int) -> list[Float[np.ndarray, " column"]]:
        """The middle of each column of each piece on the clip's clock; infinite for one that is padding."""
        raise NotImplementedError

    def tokens(self, outputs: Float[Tensor, "p n c"], seconds: int) -> Float[Tensor, "n c"]:
        """The tokens to keep."""
        return rearrange(outputs, "p n c -> (p n) c")

    def num_tokens(self, seconds: int) -> int:
        """How many these are."""
        raise NotImplementedError

    def features(self, level: str, outputs: Float[Tensor, "p *n c"], seconds: int) -> Float[Tensor, "n c"]:
        """All tokens, or their means."""
        if level == "tokens":
            return self.tokens(outputs, seconds)
        columns = rearrange(reduce(self.columns(outputs), "p column band c -> p column c", "mean"),
                            "p column c -> (p column) c")  # fmt: skip
        middles = np.concatenate(self.middles_s(seconds)).astype(np.float64)
        last, steps = middles[np.isfinite(middles)].max(), self.steps(seconds)
        starts = [min(steps.time_s(step), last) for step in range(len(steps))]
        return torch.stack([columns[torch.from_numpy((start <= middles) & (middles < start + 1)).to(columns.device)]
                            .mean(0) for start in starts])  # fmt: skip

    def shape(self, level: str, seconds: int) -> tuple[int, int]:
        """A vector for each step, or all tokens."""
        num_rows = self.num_tokens(seconds) if level == "tokens" else len(self.steps(seconds))
        return num_rows, self.config[self.channels_name]
