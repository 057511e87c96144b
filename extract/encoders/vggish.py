"""VGGish: one audio window per step, 128 channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from extract.encoders.networks import DTYPES, fill, frozen, load_tensors, randomly
from extract.encoders.protocol import Encoder, EncoderSetup, Sound
from extract.encoders.weights import WeightPart, from_url, in_folder, weights_stamp
from refavs.steps import Steps
from refavs.store.format.schema import ArraySpec

SAMPLE_RATE_HZ = 16_000
CHANNELS = 128
PATCH_FRAMES = 96
HOP_S = 0.010
WINDOW_S = 0.025
FFT_LENGTH = 512
# The 96 short windows of a patch start in [t, t + 0.96) s; this is the end of the last one.
PATCH_SAMPLES = round(((PATCH_FRAMES - 1) * HOP_S + WINDOW_S) * SAMPLE_RATE_HZ)
Windows = Literal["second", "back_to_back"]
BACK_TO_BACK_S = 0.96
PREPROCESSING: dict[Windows, str] = {
    "second": "mono 16 kHz, log-mel 64 bands 125-7500 Hz, second t from samples of [t, t+0.96) s, no PCA",
    "back_to_back": "mono 16 kHz, log-mel 64 bands 125-7500 Hz, row t from samples of [.96t, .96t+.96) s, no PCA",
}
OUTPUT = "signed, before the last ReLU"
URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"


@dataclass
class VGGishEncoder(Encoder):
    """Encodes audio of clips as 128 float32 channels per step.

    The values are taken before the network's last ReLU, as in Google's graph and in the paper's release; a head that
    needs the rectified form of torchvggish applies the ReLU (`model.rectified_audio`).

    Attributes:
        windows: `second` starts a window at each step, in sync with the frames; `back_to_back` uses contiguous windows
            like the paper's public release, one for each second, where row 9 therefore starts at 8.64 s.
        always_random: whether weights are random regardless of the user's choice.
    """

    name: str
    setup: EncoderSetup
    windows: Windows = "second"
    always_random: bool = False
    licence: str = "Apache-2.0"
    num_parameters: int = 72_141_184

    def __post_init__(self) -> None:
        self.modality = "audio"
        self.takes = Sound(rate_hz=SAMPLE_RATE_HZ)
        self.weights = "random" if self.always_random else URL

    def facts(self, level: str) -> dict[str, Any]:
        """Facts about network and front end."""
        return {
            "name": self.name, "weights": weights_stamp(self._weights_file, self.setup.weights.seed),
            "preprocessing": PREPROCESSING[self.windows], "input_size": PATCH_SAMPLES, "output": OUTPUT,
            "precision": self.setup.precision, "dtype": "float32",
        }  # fmt: skip

    def arrays(self, length: int) -> dict[str, list[ArraySpec]]:
        """One array."""
        shape = (self._num_windows(length), CHANNELS)
        return {"": [ArraySpec(name="features", shape=shape, dtype="float32", axes=("t", "c"), statistics=True)]}

    def weight_parts(self) -> Sequence[WeightPart]:
        """The network's file."""
        fetch = f"curl -L {URL} -o {{folder}}/vggish.pth"
        return [WeightPart(name=self.name, find=lambda: self._weights_file, load=lambda: self._network, fetch=fetch)]

    def prepare(self, item: Float[np.ndarray, " s"]) -> Float[Tensor, "t 1 96 64"]:
        """Computes the log-mel patches of one clip's audio."""
        seconds = len(item) // SAMPLE_RATE_HZ
        stride_s = Steps(seconds, self.setup.fps).time_s(1) if self.windows == "second" else BACK_TO_BACK_S
        return log_mel_patches(item, self._num_windows(seconds), float(stride_s))

    def _num_windows(self, seconds: int) -> int:
        return len(Steps(seconds, self.setup.fps)) if self.windows == "second" else seconds

    @torch.no_grad()
    def encode(
        self, batch: Sequence[Float[Tensor, "t 1 96 64"]], levels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Computes one vector per window.

        A GPU processes the windows of all clips in one pass, a CPU clip by clip, so that results do not depend on the
        batch.
        """
        if self.setup.device == "cpu":
            parts = [self._features(item).numpy() for item in batch]
        else:
            features = self._features(torch.cat(list(batch))).cpu().numpy()
            parts = np.split(features, max(len(batch), 1))[: len(batch)]
        return [{"features": part} for part in parts]

    def _features(self, patches: Float[Tensor, "p 1 96 64"]) -> Float[Tensor, "p c"]:
        patches = patches.to(self.setup.device, DTYPES[self.setup.precision])
        return self._network(patches.contiguous(memory_format=torch.channels_last)).float()

    @cached_property
    def _weights_file(self) -> Path | None:
        weights = self.setup.weights
        if weights.kind == "random" or self.always_random:
            return None
        if weights.folder is not None:
            return in_folder(weights.folder, "vggish.safetensors", "vggish.pth")
        return from_url(URL, "10086976", fetch=weights.fetch)

    @cached_property
    def _network(self) -> nn.Module:
        network = randomly(build_vggish, self.setup.weights.seed)
        if self._weights_file is not None:
            fill(network, load_tensors(self._weights_file), self._weights_file)
        network = frozen(network, self.setup.device, DTYPES[self.setup.precision])
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
    """VGGish's front end, applied to each window separately, so that windows cannot drift relative to the frames.

    Args:
        sound: mono audio at 16 kHz.
        num_windows: number of rows; windows beyond the end of the audio are silence.
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
    """Matrix from spectrum to mel bands; cached, because building it takes longer than using it."""
    from torchvggish import mel_features, vggish_params

    return mel_features.spectrogram_to_mel_matrix(
        num_spectrogram_bins=FFT_LENGTH // 2 + 1, audio_sample_rate=SAMPLE_RATE_HZ,
        num_mel_bins=vggish_params.NUM_MEL_BINS, lower_edge_hertz=vggish_params.MEL_MIN_HZ,
        upper_edge_hertz=vggish_params.MEL_MAX_HZ,
    )

# The paper's, with a window at each step; with the windows of its public release; and random, for demonstrations.
vggish = partial(VGGishEncoder, "vggish")
vggish_back_to_back = partial(VGGishEncoder, "vggish-back-to-back", windows="back_to_back")
tiny_vggish = partial(VGGishEncoder, "tiny-vggish", always_random=True)
