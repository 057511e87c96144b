"""The audio stream: VGGish over one window of sound per second."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from extract.encoders import DTYPES, Precision
from extract.media import SAMPLE_RATE_HZ
from extract.weights import WeightPart, WeightSource, fill, from_url, in_folder, load_tensors, random_stamp, randomly
from refavs.config import file_stamp
from refavs.store.schema import ArraySpec

CHANNELS = 128
PATCH_FRAMES = 96
HOP_S = 0.010
WINDOW_S = 0.025
# The 96 short windows of a patch start in [t, t + 0.96) s; the last one reaches this far.
PATCH_SAMPLES = round(((PATCH_FRAMES - 1) * HOP_S + WINDOW_S) * SAMPLE_RATE_HZ)
PREPROCESSING = "mono 16 kHz, log-mel 64 bands 125-7500 Hz, second t from samples of [t, t+0.96) s, no PCA"
URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"


@dataclass(frozen=True, kw_only=True)
class VGGishSettings:
    """`always_random`: a preset that ships no weights keeps to its generator, whatever the user chose."""

    num_frames: int
    always_random: bool = False


@dataclass
class VGGishEncoder:
    """Sound of one clip to 128 channels per second, float32."""

    settings: VGGishSettings
    weights: WeightSource
    precision: Precision = "fp32"
    device: str = "cpu"

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Facts about network and front end."""
        stamp = random_stamp(self.weights.seed) if self._weights_file is None else file_stamp(self._weights_file)
        facts = {
            "name": "vggish", "weights": stamp, "preprocessing": PREPROCESSING, "input_size": PATCH_SAMPLES,
            "precision": self.precision, "dtype": "float32",
        }
        return {"audio": facts}

    def specs(self) -> Sequence[ArraySpec]:
        """One array."""
        shape = (self.settings.num_frames, CHANNELS)
        return [
            ArraySpec(path="clips/audio/vggish", shape=shape, dtype="float32", axes=("t", "c"), statistics=True)
        ]

    def weight_parts(self) -> Sequence[WeightPart]:
        """The network's file."""
        fetch = f"curl -L {URL} -o {{folder}}/vggish.pth"
        return [
            WeightPart(name="audio, VGGish", find=lambda: self._weights_file, load=lambda: self._network, fetch=fetch)
        ]

    @torch.no_grad()
    def encode(self, item: Float[np.ndarray, " s"]) -> dict[str, np.ndarray]:
        """Features of every second of one clip."""
        patches = log_mel_patches(item, self.settings.num_frames).to(self.device, self._dtype)
        features = self._network(patches.contiguous(memory_format=torch.channels_last))
        return {"clips/audio/vggish": features.float().cpu().numpy()}

    @property
    def _dtype(self) -> torch.dtype:
        # Autocast would convert 72 million weights anew for every clip, which takes longer than it saves.
        return DTYPES[self.precision]

    @cached_property
    def _weights_file(self) -> Path | None:
        if self.weights.kind == "random" or self.settings.always_random:
            return None
        if self.weights.folder is not None:
            return in_folder(self.weights.folder, "vggish.safetensors", "vggish.pth")
        return from_url(URL, "10086976", fetch=self.weights.fetch)

    @cached_property
    def _network(self) -> nn.Module:
        network = randomly(build_vggish, self.weights.seed)
        if self._weights_file is not None:
            fill(network, load_tensors(self._weights_file), self._weights_file)
        network = network.eval().requires_grad_(False)
        return network.to(self.device, self._dtype, memory_format=torch.channels_last)


def build_vggish() -> nn.Module:
    """torchvggish's network without its post-processing; its own constructor always downloads."""
    from torchvggish.torchvggish import VGG, make_layers

    return VGG(make_layers(), postprocess=False)


def log_mel_patches(sound: Float[np.ndarray, " s"], num_seconds: int) -> Float[Tensor, "t 1 96 64"]:
    """VGGish's front end, one patch per second, so that windows cannot drift against the frames."""
    from torchvggish import mel_features, vggish_params

    patches = []
    for second in range(num_seconds):
        start = second * SAMPLE_RATE_HZ
        patches.append(
            mel_features.log_mel_spectrogram(
                sound[start : start + PATCH_SAMPLES].astype(np.float64), audio_sample_rate=SAMPLE_RATE_HZ,
                log_offset=vggish_params.LOG_OFFSET, window_length_secs=WINDOW_S, hop_length_secs=HOP_S,
                num_mel_bins=vggish_params.NUM_MEL_BINS, lower_edge_hertz=vggish_params.MEL_MIN_HZ,
                upper_edge_hertz=vggish_params.MEL_MAX_HZ,
            )
        )
    return rearrange(torch.from_numpy(np.stack(patches)).float(), "t frame band -> t 1 frame band")
