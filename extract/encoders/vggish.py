"""The audio stream: VGGish over one window of sound per second."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from extract.encoders import DTYPES, frozen
from extract.encoders.weights import (
    WeightPart,
    WeightSource,
    fill,
    from_url,
    in_folder,
    load_tensors,
    random_stamp,
    randomly,
)
from extract.media.clip import SAMPLE_RATE_HZ
from refavs.choices import Precision
from refavs.config import file_stamp
from refavs.store.format.schema import ArraySpec

PATH = "clips/audio/vggish"
CHANNELS = 128
PATCH_FRAMES = 96
HOP_S = 0.010
WINDOW_S = 0.025
FFT_LENGTH = 512
# The 96 short windows of a patch start in [t, t + 0.96) s; the last one reaches this far.
PATCH_SAMPLES = round(((PATCH_FRAMES - 1) * HOP_S + WINDOW_S) * SAMPLE_RATE_HZ)
Windows = Literal["second", "back_to_back"]
# Seconds from the start of one window to that of the next.
STRIDES_S: dict[Windows, float] = {"second": 1.0, "back_to_back": 0.96}
PREPROCESSING: dict[Windows, str] = {
    "second": "mono 16 kHz, log-mel 64 bands 125-7500 Hz, second t from samples of [t, t+0.96) s, no PCA",
    "back_to_back": "mono 16 kHz, log-mel 64 bands 125-7500 Hz, row t from samples of [.96t, .96t+.96) s, no PCA",
}
OUTPUT = "signed, before the last ReLU"
URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"


@dataclass(frozen=True, kw_only=True)
class VGGishSettings:
    """How VGGish is used.

    Attributes:
        windows: `second` starts a window at each second, so that sound and frames stay together; `back_to_back` puts
            one after the other as the paper's public release does, whose row 9 therefore starts at 8.64 s.
        always_random: a preset that ships no weights keeps to its generator, whatever the user chose.
    """

    num_frames: int
    windows: Windows = "second"
    always_random: bool = False


@dataclass
class VGGishEncoder:
    """Sound of clips to 128 channels per second, float32.

    The values are those before the network's last ReLU, as in Google's graph and in the paper's release; a head that
    wants the rectified form of torchvggish applies the ReLU (`model.rectified_audio`).
    """

    settings: VGGishSettings
    weights: WeightSource
    precision: Precision = "fp32"
    device: str = "cpu"

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Facts about network and front end."""
        stamp = random_stamp(self.weights.seed) if self._weights_file is None else file_stamp(self._weights_file)
        facts = {
            "name": "vggish", "weights": stamp, "preprocessing": PREPROCESSING[self.settings.windows],
            "input_size": PATCH_SAMPLES, "output": OUTPUT, "precision": self.precision, "dtype": "float32",
        }
        return {"audio": facts}

    def specs(self) -> Sequence[ArraySpec]:
        """One array."""
        shape = (self.settings.num_frames, CHANNELS)
        return [
            ArraySpec(path=PATH, shape=shape, dtype="float32", axes=("t", "c"), statistics=True)
        ]

    def weight_parts(self) -> Sequence[WeightPart]:
        """The network's file."""
        fetch = f"curl -L {URL} -o {{folder}}/vggish.pth"
        return [
            WeightPart(name="audio, VGGish", find=lambda: self._weights_file, load=lambda: self._network, fetch=fetch)
        ]

    def prepare(self, item: Float[np.ndarray, " s"]) -> Float[Tensor, "t 1 96 64"]:
        """The log-mel patches of one sound."""
        return log_mel_patches(item, self.settings.num_frames, STRIDES_S[self.settings.windows])

    @torch.no_grad()
    def encode(self, items: Sequence[Float[Tensor, "t 1 96 64"]]) -> list[dict[str, np.ndarray]]:
        """Features of every second of each sound; a GPU takes all of them in one pass, a processor one by one."""
        if self.device == "cpu":
            return [{PATH: self._features(patches).numpy()} for patches in items]
        features = self._features(torch.cat(list(items))).cpu().numpy() if items else np.empty((0, CHANNELS))
        return [{PATH: part} for part in np.split(features, max(len(items), 1))[: len(items)]]

    def _features(self, patches: Float[Tensor, "p 1 96 64"]) -> Float[Tensor, "p c"]:
        patches = patches.to(self.device, DTYPES[self.precision]).contiguous(memory_format=torch.channels_last)
        return self._network(patches).float()

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
        network = frozen(network, self.device, DTYPES[self.precision])
        return nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)


def build_vggish() -> nn.Module:
    """torchvggish's network without its last ReLU and its post-processing; its own constructor always downloads."""
    from torchvggish.torchvggish import VGG, make_layers

    network = VGG(make_layers(), postprocess=False)
    network.embeddings[-1] = nn.Identity()
    return network


def log_mel_patches(
    sound: Float[np.ndarray, " s"], num_windows: int, stride_s: float = 1.0
) -> Float[Tensor, "t 1 96 64"]:
    """VGGish's front end, each window by itself, so that windows cannot drift against the frames.

    Args:
        sound: mono at 16 kHz.
        num_windows: rows of the result; a window beyond the end of the sound is silence.
        stride_s: seconds from the start of one window to that of the next.
    """
    from torchvggish import mel_features, vggish_params

    starts = [round(index * stride_s * SAMPLE_RATE_HZ) for index in range(num_windows)]
    missing = starts[-1] + PATCH_SAMPLES - len(sound)
    padded = np.pad(sound.astype(np.float64), (0, max(missing, 0)))
    window, hop = round(WINDOW_S * SAMPLE_RATE_HZ), round(HOP_S * SAMPLE_RATE_HZ)
    patches = [
        mel_features.stft_magnitude(padded[start : start + PATCH_SAMPLES], FFT_LENGTH, hop, window) @ _mel_matrix()
        for start in starts
    ]
    return rearrange(
        torch.from_numpy(np.log(np.stack(patches) + vggish_params.LOG_OFFSET)).float(), "t frame band -> t 1 frame band"
    )


@lru_cache(maxsize=1)
def _mel_matrix() -> Float[np.ndarray, "257 64"]:
    """Spectrum to mel bands; it depends on constants alone, and building it takes longer than using it."""
    from torchvggish import mel_features, vggish_params

    return mel_features.spectrogram_to_mel_matrix(
        num_spectrogram_bins=FFT_LENGTH // 2 + 1, audio_sample_rate=SAMPLE_RATE_HZ,
        num_mel_bins=vggish_params.NUM_MEL_BINS, lower_edge_hertz=vggish_params.MEL_MIN_HZ,
        upper_edge_hertz=vggish_params.MEL_MAX_HZ,
    )
