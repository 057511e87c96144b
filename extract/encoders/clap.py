"""CLAP: the vectors of sounds (HTSAT) and of expressions (RoBERTa) in one space."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from extract.encoders.hub_audio import SoundSettings, WindowEncoder
from extract.encoders.hub_text import Kind, TextEncoder, TextSettings
from extract.encoders.networks import of_transformers
from extract.encoders.spectrograms import centred_log10_mel, mel_filters, thirds

RATE_HZ = 48_000
MOST_SAMPLES = 10 * RATE_HZ
FFT, HOP, NUM_BANDS = 1024, 480, 64
MOST_FRAMES = MOST_SAMPLES // HOP + 1


class ClapAudioEncoder(WindowEncoder):
    """HTSAT and its projection. `fused` hears a long clip shrunk and in three crops; short ones fill all four places.

    Differs: crops of clips above 10 s lie in the middle of their range, where CLAP draws them at random. A fused one
    treats every clip as long, as transformers' front end treats a clip that it is given alone.
    """

    network_name = "clap.modeling_clap.ClapAudioModelWithProjection"
    rate_hz = RATE_HZ
    preprocessing = ("mono 48 kHz, repeated and padded up to 10 s, log-mel 64 bands 0-14000 Hz of 1024 samples every "
                     "480, in dB; of a longer clip the middle, or fused crops of three thirds")  # fmt: skip
    about: ClassVar[Mapping[str, str]] = {
        "seconds": "projected vector of each second alone, of length 1",
        "clip": "projected vector of the whole clip, of length 1, repeated for each second",
    }
    sizes = ("patch_embeds_hidden_size", "depths", "num_attention_heads", "projection_dim", "enable_fusion")
    unused = (r"text_model\..*", r"text_projection\..*", r"logit_scale.*")

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The config of the audio tower, with the projection width of the whole network."""
        return _tower_config("audio", values)

    def front_end(self, sound: Float[np.ndarray, " s"]) -> Float[np.ndarray, "channel h w"]:
        """Frames by bands, in one channel or, fused, in four."""
        fused = self.config["enable_fusion"]
        filters = mel_filters(FFT, NUM_BANDS, 0.0, 14_000.0, RATE_HZ, "htk" if fused else "slaney")
        if not fused and len(sound) > MOST_SAMPLES:
            start = (len(sound) - MOST_SAMPLES) // 2
            sound = sound[start : start + MOST_SAMPLES]
        if len(sound) < MOST_SAMPLES:
            whole = np.tile(sound, MOST_SAMPLES // len(sound))
            sound = np.pad(whole, (0, MOST_SAMPLES - len(whole)))
        mel = 10 * centred_log10_mel(sound, FFT, HOP, filters)
        if not fused:
            return mel[None]
        if len(mel) == MOST_FRAMES:
            return repeat(mel, "frame band -> 4 frame band")
        shrunk = nn.functional.interpolate(torch.from_numpy(mel)[None, None], (MOST_FRAMES, NUM_BANDS), mode="bilinear")
        return np.stack([shrunk[0, 0].numpy(), *thirds(mel, MOST_FRAMES)])

    def outputs(self, inputs: Float[Tensor, "p ..."]) -> Float[Tensor, "p *n c"]:
        """Vectors of length 1."""
        is_longer = torch.ones(len(inputs), 1, dtype=torch.bool, device=inputs.device)
        return nn.functional.normalize(self._network(inputs, is_longer=is_longer).audio_embeds, dim=-1)


class ClapTextEncoder(TextEncoder):
    """RoBERTa, its pooling layer and the projection; the tokens alone are not in the space of the sounds."""

    network_name = "clap.modeling_clap.ClapTextModelWithProjection"
    levels: ClassVar[Mapping[str, Kind]] = {"": "pooled"}
    pooled_name = "projection_dim"
    pooling = "projected vector of length 1"
    unused = (r"audio_model\..*", r"audio_projection\..*", r"logit_scale.*")

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The config of the text tower, with the projection width of the whole network."""
        return _tower_config("text", values)

    def outputs(self, ids: Int[Tensor, "b l"], valid: Bool[Tensor, "b l"]) -> Mapping[Kind, Float[Tensor, "b *l c"]]:
        """Vectors of length 1."""
        found = self._network(input_ids=ids, attention_mask=valid.long()).text_embeds
        return {"pooled": nn.functional.normalize(found, dim=-1)}


def _tower_config(tower: str, values: Mapping[str, Any]) -> Any:
    kind = "" if f"{tower}_config" in values else tower.capitalize()
    found = of_transformers(f"clap.configuration_clap.Clap{kind}Config")(**values)
    return found if kind else getattr(found, f"{tower}_config")


_HTSAT = {
    "patch_embeds_hidden_size": 96, "depths": [2, 2, 6, 2], "num_attention_heads": [4, 8, 16, 32], "hidden_size": 768,
    "projection_dim": 512, "window_size": 8, "spec_size": 256, "num_mel_bins": NUM_BANDS, "enable_fusion": False,
}  # fmt: skip
UNFUSED = SoundSettings(repository="laion/clap-htsat-unfused", config=_HTSAT)
FUSED = SoundSettings(
    repository="laion/clap-htsat-fused", config=_HTSAT | {"enable_fusion": True, "fusion_type": "aff_2d"}
)
TEXT = TextSettings(
    length=77, repository="laion/clap-htsat-unfused",
    config={
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1,
        "projection_dim": 512, "layer_norm_eps": 1e-12,
    },
)  # fmt: skip

clap_audio = partial(
    ClapAudioEncoder, "clap-htsat-unfused", UNFUSED, licence="Apache-2.0", num_parameters=28_190_872
)
clap_audio_fused = partial(
    ClapAudioEncoder, "clap-htsat-fused", FUSED, licence="Apache-2.0", num_parameters=28_205_512
)
clap_text = partial(
    ClapTextEncoder, "clap-text-unfused", TEXT, licence="Apache-2.0", num_parameters=125_302_016
)
