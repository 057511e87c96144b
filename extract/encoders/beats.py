"""BEATs (arXiv 2212.09058): tokens of a spectrogram, trained by acoustic tokenizers on AudioSet."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from extract.encoders.beats_network import Beats, BeatsConfig
from extract.encoders.hub_audio import PatchEncoder, SoundSettings
from extract.encoders.networks import DTYPES, fill, frozen, load_tensors, randomly
from extract.encoders.spectrograms import FRAME, FRAMES_PER_S, HOP, RATE_HZ, kaldi_fbank
from extract.encoders.weights import WeightPart, in_folder, weights_stamp
from refavs.errors import WeightsError
from refavs.finite import require_finite_weights

FILES = ("beats.pt", "BEATs_iter3_plus_AS2M.pt")
SOURCE = "https://github.com/microsoft/unilm/tree/master/beats"
NUM_BANDS = 128
FULL_SCALE, MEAN, STD = 2.0**15, 15.41663, 6.55582


class BeatsEncoder(PatchEncoder):
    """Patches of 16 frames by 16 bands. The whole clip is heard at once, however long it is.

    The authors publish links that expire, so the file must lie in the folder of the weights.
    """

    preprocessing = "mono 16 kHz, kaldi's log-mel 128 bands, povey window, full scale 2^15, normalised"
    sizes = tuple(field.name for field in fields(BeatsConfig))
    channels_name = "encoder_embed_dim"

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The `cfg` of the checkpoint, or the published one."""
        try:
            file = self._file
        except WeightsError:
            file = None
        return self.settings.config if file is None else asdict(self._config_in(load_tensors(file), file))

    def weight_parts(self) -> Sequence[WeightPart]:
        """The checkpoint."""
        fetch = f"get BEATs_iter3_plus_AS2M.pt from {SOURCE} and put it into {{folder}}/"
        return [WeightPart(name=self.name, find=lambda: self._file, load=lambda: self._network, fetch=fetch)]

    def inputs_of(self, sound: Float[np.ndarray, " s"], seconds: int) -> Mapping[str, Float[np.ndarray, "p ..."]]:
        """One normalised spectrogram."""
        return {"pieces": ((kaldi_fbank(sound * FULL_SCALE, NUM_BANDS, "povey") - MEAN) / (2 * STD))[None]}

    def outputs(self, inputs: Float[Tensor, "p ..."]) -> Float[Tensor, "p *n c"]:
        """All tokens."""
        return self._network(inputs)

    def columns(self, outputs: Float[Tensor, "p n c"]) -> Float[Tensor, "p column band c"]:
        """BEATs counts patches along the bands first."""
        bands = NUM_BANDS // self.config["input_patch_size"]
        return rearrange(outputs, "p (column band) c -> p column band c", band=bands)

    def middles_s(self, seconds: int) -> list[Float[np.ndarray, " column"]]:
        """The last frames of a sound, fewer than a patch, are not heard."""
        return [(np.arange(self._num_columns(seconds)) + 0.5) * self.config["input_patch_size"] / FRAMES_PER_S]

    def num_tokens(self, seconds: int) -> int:
        """496 of 10 s."""
        return self._num_columns(seconds) * (NUM_BANDS // self.config["input_patch_size"])

    def _num_columns(self, seconds: int) -> int:
        num_frames = (seconds * RATE_HZ - FRAME) // HOP + 1
        return num_frames // self.config["input_patch_size"]

    def _stamp(self) -> str:
        return weights_stamp(self._file, self.setup.weights.seed)

    @cached_property
    def _file(self) -> Path | None:
        weights = self.setup.weights
        if weights.kind == "random":
            return None
        if weights.folder is not None:
            return in_folder(weights.folder, *FILES)
        raise WeightsError(
            f"the weights of {self.name} have no lasting address; get BEATs_iter3_plus_AS2M.pt from "
            f"{SOURCE}, put it into a folder and name that by --weights-dir, or take --weights random"
        )

    def _config_in(self, found: Mapping[str, Any], file: Path) -> BeatsConfig:
        known = {field.name for field in fields(BeatsConfig)}
        cfg = found.get("cfg") if isinstance(found, dict) else None
        if not isinstance(cfg, dict) or not isinstance(found.get("model"), dict):
            raise WeightsError(f"{file} is no checkpoint of BEATs: it has no `cfg` and `model`; get "
                               f"BEATs_iter3_plus_AS2M.pt from {SOURCE}")  # fmt: skip
        return BeatsConfig(**{name: value for name, value in cfg.items() if name in known})

    @cached_property
    def _network(self) -> Beats:
        config = BeatsConfig(**self.config)
        network = randomly(lambda: Beats(config), self.setup.weights.seed)
        if self._file is not None:
            state = load_tensors(self._file)["model"]
            assert isinstance(state, dict)
            require_finite_weights(self._file, state)
            fill(network, _renamed(state), self._file)
        return frozen(network, self.setup.device, DTYPES[self.setup.precision])


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters under the names of `Beats`; the classifier of a fine-tuned network is left out."""
    shared = "encoder.layers.0.self_attn.relative_attention_bias.weight"
    found = {"encoder.relative_attention_bias.weight": state[shared]} if shared in state else {}
    for name, value in state.items():
        if name.startswith("predictor.") or "relative_attention_bias" in name:
            continue
        for old, new in (("pos_conv.0.weight_g", "pos_conv.0.parametrizations.weight.original0"),
                         ("pos_conv.0.weight_v", "pos_conv.0.parametrizations.weight.original1")):  # fmt: skip
            name = name.replace(old, new)
        found[name] = value
    return found


AUDIOSET = SoundSettings(config=asdict(BeatsConfig()), repository="microsoft/unilm beats")

# The third iteration, trained on AudioSet.
beats_audioset = partial(BeatsEncoder, "beats-iter3-plus", AUDIOSET, licence="MIT", num_parameters=90_311_792)
