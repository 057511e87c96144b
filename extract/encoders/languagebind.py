"""LanguageBind's audio tower, fine-tuned: CLIP's ViT-L/14 over a spectrogram in place of a picture."""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from extract.encoders.hub_audio import SoundSettings, WindowEncoder
from extract.encoders.networks import of_transformers
from extract.encoders.spectrograms import kaldi_fbank, thirds, tiled


class LanguageBindAudioEncoder(WindowEncoder):
    """One spectrogram as three equal channels; of one that is longer than the network takes, three crops.

    Differs: the crops lie at fixed places, where the authors draw them at random.
    """

    preprocessing = ("mono 16 kHz, mean subtracted, kaldi's log-mel 112 bands, hann window, full scale 1, repeated "
                     "up to 1036 frames, three crops of more frames, (x - mean) / (2 std)")  # fmt: skip
    sizes = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "projection_dim", "patch_size",
        "num_mel_bins", "target_length", "audio_mean", "audio_std",
    )  # fmt: skip
    unused = (r"text_model\..*", r"text_projection\..*", r"logit_scale", r".*\.position_ids")

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The config of the audio tower, which a config of the whole network calls the vision tower."""
        tower = dict(values.get("vision_config", values))
        tower["projection_dim"] = values.get("projection_dim", tower.get("projection_dim"))
        tower.pop("image_size", None)  # what the network takes is in num_mel_bins and target_length
        return of_transformers("clip.configuration_clip.CLIPVisionConfig")(**tower)

    def network_class(self) -> Any:
        """CLIP's vision tower and projection, with patches of a rectangle."""
        return _tower_class()

    def front_end(self, sound: Float[np.ndarray, " s"]) -> Float[np.ndarray, "channel h w"]:
        """Bands by frames: one channel for all three, or three."""
        config, length = self.config, self.config["target_length"]
        mel = kaldi_fbank(sound - sound.mean(), config["num_mel_bins"])
        crops = thirds(mel, length) if len(mel) > length else [tiled(mel, length)] * 3
        normalised = (np.stack(crops) - config["audio_mean"]) / (2 * config["audio_std"])
        return rearrange(normalised, "channel frame band -> channel band frame")

    def outputs(self, inputs: Float[Tensor, "p ..."]) -> Float[Tensor, "p *n c"]:
        """The projection of CLS."""
        return self._network(inputs).image_embeds


@lru_cache(maxsize=1)
def _tower_class() -> type:
    tower = of_transformers("clip.modeling_clip.CLIPVisionModelWithProjection")

    class Patches(nn.Module):
        """CLIP's embeddings of a picture that is no square; its names are those of the checkpoint."""

        def __init__(self, config: Any) -> None:
            super().__init__()
            width, patch = config.hidden_size, config.patch_size
            num_patches = (config.num_mel_bins // patch) * (config.target_length // patch)
            self.class_embedding = nn.Parameter(torch.randn(width))
            self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
            self.position_embedding = nn.Embedding(num_patches + 1, width)

        def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
            patches = rearrange(self.patch_embedding(pixel_values), "b c h w -> b (h w) c")
            whole = repeat(self.class_embedding, "c -> b 1 c", b=len(patches))
            return torch.cat([whole, patches], dim=1) + self.position_embedding.weight

    class AudioTower(tower):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.vision_model.embeddings = Patches(config)

    return AudioTower


AUDIO = SoundSettings(
    repository="LanguageBind/LanguageBind_Audio_FT",
    config={
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "projection_dim": 768, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_mel_bins": 112,
        "target_length": 1036, "audio_mean": -4.2677393, "audio_std": 4.5689974,
    },
)  # fmt: skip

# The fully tuned one; its text tower is `languagebind-text`.
languagebind_audio = partial(
    LanguageBindAudioEncoder, "languagebind-audio", AUDIO, licence="MIT (code), data CC-BY-NC",
    num_parameters=304_310_272,
)  # fmt: skip
