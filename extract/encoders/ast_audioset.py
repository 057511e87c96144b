"""The Audio Spectrogram Transformer, trained on AudioSet."""

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from extract.encoders.hub_audio import PatchEncoder, SoundSettings
from extract.encoders.hub_folder import PREPROCESSOR
from extract.encoders.spectrograms import FRAMES_PER_S, RATE_HZ, kaldi_fbank, pieces

NUM_EXTRA = 2  # CLS and distillation
MEAN, STD = -4.2677393, 4.5689974


class AstEncoder(PatchEncoder):
    """Overlapping patches of 16 frames by 16 bands, every 10; padding behind a sound is kept, as in training."""

    config_name = "audio_spectrogram_transformer.configuration_audio_spectrogram_transformer.ASTConfig"
    network_name = "audio_spectrogram_transformer.modeling_audio_spectrogram_transformer.ASTModel"
    preprocessing = ("mono 16 kHz, kaldi's log-mel 128 bands, hann window, full scale 1, pieces of 10 s, zeros up to "
                     "1024 frames, then normalised")  # fmt: skip
    unused = (r"classifier\..*",)

    def facts(self, level: str) -> dict[str, Any]:
        """With the constants of the front end."""
        return super().facts(level) | {"mean": self._front["mean"], "std": self._front["std"]}

    def inputs_of(self, sound: Float[np.ndarray, " s"], seconds: int) -> Mapping[str, Float[np.ndarray, "p ..."]]:
        """Padded and normalised spectrograms."""
        length, bands = self.config["max_length"], self.config["num_mel_bins"]
        mels = [kaldi_fbank(piece, bands)[:length] for piece in pieces(sound, self._piece_s * RATE_HZ)]
        padded = np.stack([np.pad(mel, ((0, length - len(mel)), (0, 0))) for mel in mels])
        return {"pieces": (padded - self._front["mean"]) / (2 * self._front["std"])}

    def outputs(self, inputs: Float[Tensor, "p ..."]) -> Float[Tensor, "p *n c"]:
        """CLS, distillation, and patches."""
        return self._network(inputs).last_hidden_state

    def columns(self, outputs: Float[Tensor, "p n c"]) -> Float[Tensor, "p column band c"]:
        """The patches; AST counts them along time first."""
        return rearrange(outputs[:, NUM_EXTRA:], "p (band column) c -> p column band c", column=self._grid[1])

    def middles_s(self, seconds: int) -> list[Float[np.ndarray, " column"]]:
        """Of the patches that lie within the sound."""
        middles = np.arange(self._grid[1]) * self.config["time_stride"] + self.config["patch_size"] / 2
        middles = np.where(middles < self._piece_s * FRAMES_PER_S, middles / FRAMES_PER_S, np.inf)
        return [middles + start for start in range(0, seconds, self._piece_s)]

    def num_tokens(self, seconds: int) -> int:
        """As many for each piece."""
        return -(-seconds // self._piece_s) * (self._grid[0] * self._grid[1] + NUM_EXTRA)

    @property
    def _grid(self) -> tuple[int, int]:
        """Patches along the bands and along time."""
        config, patch = self.config, self.config["patch_size"]
        return ((config["num_mel_bins"] - patch) // config["frequency_stride"] + 1,
                (config["max_length"] - patch) // config["time_stride"] + 1)  # fmt: skip

    @property
    def _piece_s(self) -> int:
        return self.config["max_length"] // FRAMES_PER_S

    @cached_property
    def _front(self) -> Mapping[str, Any]:
        return {"mean": MEAN, "std": STD} | self._hub.settings({}, PREPROCESSOR)


AUDIOSET = SoundSettings(
    repository="MIT/ast-finetuned-audioset-10-10-0.4593",
    config={
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "patch_size": 16, "frequency_stride": 10, "time_stride": 10, "max_length": 1024, "num_mel_bins": 128,
        "layer_norm_eps": 1e-12, "qkv_bias": True,
    },
)  # fmt: skip

ast_audioset = partial(AstEncoder, "ast-audioset", AUDIOSET, licence="BSD-3-Clause", num_parameters=86_187_264)
