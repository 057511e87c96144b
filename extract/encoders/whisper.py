"""The encoders of Whisper, trained for speech: 50 tokens a second."""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from extract.encoders.hub_audio import PatchEncoder, SoundSettings
from extract.encoders.networks import of_transformers
from extract.encoders.spectrograms import RATE_HZ, centred_log10_mel, mel_filters, pieces

FFT, HOP = 400, 160
TOKENS_PER_S = RATE_HZ // HOP // 2


class WhisperEncoder(PatchEncoder):
    """Whisper always hears 30 s; the tokens of the silence behind a sound are left out."""

    config_name = "whisper.configuration_whisper.WhisperConfig"
    preprocessing = ("mono 16 kHz, pieces of 30 s, zeros up to there, log10-mel 0-8000 Hz of 25 ms every 10 ms, 8 "
                     "below the loudest at least, (x + 4) / 4")  # fmt: skip
    sizes = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins")
    channels_name = "d_model"
    unused = (r"(model\.)?decoder\..*", r"proj_out\..*")

    def network_class(self) -> Any:
        """The encoder under the name that it has in checkpoints."""
        return _encoder_class()

    def inputs_of(self, sound: Float[np.ndarray, " s"], seconds: int) -> Mapping[str, Float[np.ndarray, "p ..."]]:
        """Spectrograms of bands by frames."""
        samples = self._piece_s * RATE_HZ
        filters = mel_filters(FFT, self.config["num_mel_bins"], 0.0, 8000.0, RATE_HZ, "slaney")
        mels = [centred_log10_mel(np.pad(piece, (0, samples - len(piece))), FFT, HOP, filters)[:-1]
                for piece in pieces(sound, samples)]  # fmt: skip
        return {"pieces": np.stack([(np.maximum(mel, mel.max() - 8).T + 4) / 4 for mel in mels])}

    def outputs(self, inputs: Float[Tensor, "p ..."]) -> Float[Tensor, "p *n c"]:
        """Tokens of the whole piece."""
        return self._network.encoder(inputs).last_hidden_state

    def columns(self, outputs: Float[Tensor, "p n c"]) -> Float[Tensor, "p column band c"]:
        """One token at a time."""
        return rearrange(outputs, "p n c -> p n 1 c")

    def middles_s(self, seconds: int) -> list[Float[np.ndarray, " column"]]:
        """Pieces follow each other without a gap."""
        num_tokens = -(-seconds // self._piece_s) * self._piece_s * TOKENS_PER_S
        return [(np.arange(num_tokens) + 0.5) / TOKENS_PER_S]

    def tokens(self, outputs: Float[Tensor, "p n c"], seconds: int) -> Float[Tensor, "n c"]:
        """Those of the sound."""
        return super().tokens(outputs, seconds)[: self.num_tokens(seconds)]

    def num_tokens(self, seconds: int) -> int:
        """50 a second."""
        return seconds * TOKENS_PER_S

    @property
    def _piece_s(self) -> int:
        return self.config["max_source_positions"] // TOKENS_PER_S


@lru_cache(maxsize=1)
def _encoder_class() -> type:
    base, encoder = (of_transformers(f"whisper.modeling_whisper.{name}")
                     for name in ("WhisperPreTrainedModel", "WhisperEncoder"))  # fmt: skip

    class EncoderAlone(base):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.encoder = encoder(config)
            self.post_init()

    return EncoderAlone


def _of_size(
    size: str, num_parameters: int, channels: int, num_layers: int, num_heads: int, num_bands: int = 80
) -> partial[WhisperEncoder]:
    settings = SoundSettings(repository=f"openai/whisper-{size}", config={
        "d_model": channels, "encoder_layers": num_layers, "encoder_attention_heads": num_heads,
        "encoder_ffn_dim": 4 * channels, "num_mel_bins": num_bands, "max_source_positions": 1500,
    })  # fmt: skip
    return partial(WhisperEncoder, f"whisper-{size}", settings, licence="Apache-2.0 (code MIT)",
                   num_parameters=num_parameters)  # fmt: skip


whisper_tiny = _of_size("tiny", 8_208_384, 384, 4, 6)
whisper_base = _of_size("base", 20_590_592, 512, 6, 8)
whisper_small = _of_size("small", 88_154_112, 768, 12, 12)
whisper_medium = _of_size("medium", 307_216_384, 1024, 24, 16)
whisper_large_v3 = _of_size("large-v3", 636_968_960, 1280, 32, 20, num_bands=128)
