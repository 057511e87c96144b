"""Audio encoders against transformers' own classes and front ends, at small sizes: each dimension differs.

VGGish is compared with torchvggish's class and front end, at its own size.
LanguageBind's tower is compared with transformers' on a square spectrogram, and BEATs with a network in NumPy written
from the paper.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from extract.encoders.beats_network import Beats, BeatsConfig
from extract.encoders.hub_audio import SoundEncoder
from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import make_encoder
from extract.encoders.vggish import BACK_TO_BACK_S, PATCH_SAMPLES, SAMPLE_RATE_HZ
from extract.encoders.weights import WeightSource
from refavs.machine.torchvision_shim import ensure_torchvision
from tests.extract.hf_weights import randomise
from tests.extract.parity.beats import beats_in_numpy

SECONDS = 2


def sound(rate_hz: int, seconds: int = SECONDS, seed: int = 0) -> np.ndarray:
    """Noise that swells, with a tone."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(seconds * rate_hz) / rate_hz
    return ((0.02 + 0.1 * time_s / seconds) * rng.standard_normal(len(time_s))
            + 0.1 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)  # fmt: skip


def _encoder(name: str, folder: Path) -> Any:
    return make_encoder(name, EncoderSetup(weights=WeightSource(folder=folder)))


def _hub(name: str, folder: Path) -> Path:
    found = folder / _encoder(name, folder).settings.repository.rsplit("/", 1)[-1]
    found.mkdir(exist_ok=True)
    return found


def _saved(model: nn.Module, folder: Path) -> Any:
    randomise(model, 0)
    for part in model.modules():  # statistics of the batches that a network saw
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.linspace(-20, 5, part.num_features))  # pyright: ignore
            part.running_var.copy_(torch.linspace(5, 90, part.num_features))  # pyright: ignore
    model.eval().save_pretrained(folder)  # pyright: ignore
    return model


def _difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and expected.abs().max() > 0.05
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _outputs(encoder: SoundEncoder, item: np.ndarray, name: str) -> Tensor:
    with torch.no_grad():
        return encoder.outputs(encoder.prepare(item).inputs[name])


def _ast(folder: Path) -> float:
    ensure_torchvision()
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    hub = _hub("ast-audioset", folder)
    sizes: Any = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 72,
                  "max_length": 208, "num_labels": 3}  # fmt: skip
    config = ASTConfig(**sizes)
    theirs = _saved(ASTForAudioClassification(config), hub)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about bands that are narrower than a bin
        front = ASTFeatureExtractor(max_length=208, mean=-4.0, std=4.4)
    front.save_pretrained(hub)
    item = sound(16_000)
    with torch.no_grad():
        inputs = front(item, sampling_rate=16_000, return_tensors="pt")
        expected = theirs.audio_spectrogram_transformer(**inputs).last_hidden_state
    return _difference(_outputs(_encoder("ast-audioset", folder), item, "pieces"), expected)


def _whisper(name: str, num_bands: int) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        ensure_torchvision()
        from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

        hub = _hub(name, folder)
        config = WhisperConfig(
            d_model=40, encoder_layers=3, encoder_attention_heads=5, encoder_ffn_dim=72, num_mel_bins=num_bands,
            max_source_positions=150, decoder_layers=1, decoder_attention_heads=5, decoder_ffn_dim=16, vocab_size=60,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, max_target_positions=8,
        )  # fmt: skip
        theirs = _saved(WhisperForConditionalGeneration(config), hub)
        front = WhisperFeatureExtractor(feature_size=num_bands, chunk_length=3)
        item = sound(16_000)
        with torch.no_grad():
            inputs = front(item, sampling_rate=16_000, return_tensors="pt").input_features
            expected = theirs.model.encoder(inputs).last_hidden_state
        return _difference(_outputs(_encoder(name, folder), item, "pieces"), expected)

    return run


def _clap(name: str, fused: bool) -> Callable[[Path], float]:
    """Single seconds, which are repeated up to 10 s."""

    def run(folder: Path) -> float:
        ensure_torchvision()
        from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

        hub = _hub(name, folder)
        audio = {
            "patch_embeds_hidden_size": 8, "depths": [1, 2, 1, 1], "num_attention_heads": [2, 4, 2, 2],
            "hidden_size": 64, "enable_fusion": fused, "fusion_type": "aff_2d" if fused else None,
        }  # fmt: skip
        text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                "vocab_size": 60}  # fmt: skip
        theirs = _saved(ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=28)), hub)
        front = ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc")
        item = sound(48_000)
        found = _outputs(_encoder(name, folder), item, "windows")
        with torch.no_grad():
            expected = [
                theirs.get_audio_features(**front(second, sampling_rate=48_000, return_tensors="pt")).pooler_output
                for second in np.split(item, SECONDS)
            ]
        return _difference(found, torch.cat(expected))

    return run


def _languagebind(folder: Path) -> float:
    """The projection of a square spectrogram; then transformers' own parts behind an embedding step of a rectangle."""
    ensure_torchvision()
    from transformers import CLIPConfig, CLIPModel

    name, patch = "languagebind-audio", 14
    vision = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 72,
              "patch_size": patch, "hidden_act": "gelu", "image_size": 112, "num_channels": 3}  # fmt: skip
    text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "vocab_size": 60}  # fmt: skip
    worst = 0.0
    for length in (112, 140):
        hub = _hub(name, folder)
        shape = {"num_mel_bins": 112, "target_length": length, "audio_mean": -4.1, "audio_std": 4.4}
        theirs: Any = CLIPModel(CLIPConfig(text_config=text, vision_config={**vision, **shape}, projection_dim=28))
        tower = theirs.vision_model
        num_patches = (112 // patch) * (length // patch)
        tower.embeddings.position_embedding = nn.Embedding(num_patches + 1, 40)
        _saved(theirs, hub)
        encoder = _encoder(name, folder)
        inputs = encoder.prepare(sound(16_000)).inputs["windows"]
        with torch.no_grad():
            found = encoder.outputs(inputs)
            if length == 112:
                expected = theirs.get_image_features(pixel_values=inputs).pooler_output
            else:
                parts = tower.embeddings
                patches = parts.patch_embedding(inputs).flatten(2).transpose(1, 2)
                whole = torch.cat([parts.class_embedding.expand(len(inputs), 1, -1), patches], 1)
                hidden = tower.pre_layrnorm(whole + parts.position_embedding.weight)
                last = tower.encoder(inputs_embeds=hidden).last_hidden_state[:, 0]
                expected = theirs.visual_projection(tower.post_layernorm(last))
        worst = max(worst, _difference(found, expected))
    return worst


def _beats(folder: Path) -> float:
    small = BeatsConfig(embed_dim=24, encoder_layers=3, encoder_embed_dim=40, encoder_ffn_embed_dim=72, conv_pos=8,
                        encoder_attention_heads=5, conv_pos_groups=4, num_buckets=16, max_distance=40)  # fmt: skip
    network = Beats(small)
    randomise(network, 0)
    state = _published_names(network.state_dict(), small)
    torch.save({"cfg": {**asdict(small), "finetuned_model": True, "predictor_class": 3, "dropout": 0.1},
                "model": state}, folder / "beats.pt")  # fmt: skip
    encoder = _encoder("beats-iter3-plus", folder)
    item = sound(16_000)
    found = _outputs(encoder, item, "pieces")
    expected = beats_in_numpy(item, {name: value.double().numpy() for name, value in state.items()}, asdict(small))
    return _difference(found[0].double(), torch.from_numpy(expected))


def _published_names(state: Mapping[str, Tensor], config: BeatsConfig) -> dict[str, Tensor]:
    """As the authors' checkpoints have them, with a classifier."""
    found = {"predictor.weight": torch.ones(3, config.encoder_embed_dim), "predictor.bias": torch.ones(3)}
    for name, value in state.items():
        if name == "encoder.relative_attention_bias.weight":
            found |= {f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight": value
                      for layer in range(config.encoder_layers)}  # fmt: skip
            continue
        name = name.replace("parametrizations.weight.original0", "weight_g")
        found[name.replace("parametrizations.weight.original1", "weight_v")] = value
    return found


def _vggish(name: str, stride_s: float) -> Callable[[Path], float]:
    """torchvggish rectifies its output, and so ours is rectified here."""

    def run(folder: Path) -> float:
        from torchvggish.torchvggish import VGG, make_layers
        from torchvggish.vggish_input import waveform_to_examples

        theirs = VGG(make_layers(), postprocess=False)
        randomise(theirs, 0, gain=1.4)
        torch.save(theirs.state_dict(), folder / "vggish.pth")
        encoder, item = _encoder(name, folder), sound(SAMPLE_RATE_HZ)
        found = torch.from_numpy(encoder.encode([encoder.prepare(item)], [""])[0]["features"]).relu()
        starts = [round(second * stride_s * SAMPLE_RATE_HZ) for second in range(SECONDS)]
        windows = [waveform_to_examples(item[start : start + PATCH_SAMPLES].astype(np.float64), SAMPLE_RATE_HZ)
                   for start in starts]  # fmt: skip
        with torch.no_grad():
            return _difference(found, theirs(torch.cat(windows)))

    return run


CASES: dict[str, Callable[[Path], float]] = {
    "vggish": _vggish("vggish", 1.0),
    "vggish-back-to-back": _vggish("vggish-back-to-back", BACK_TO_BACK_S),
    "languagebind-audio": _languagebind,
    "clap-htsat-unfused": _clap("clap-htsat-unfused", fused=False),
    "clap-htsat-fused": _clap("clap-htsat-fused", fused=True),
    "ast-audioset": _ast,
    "beats-iter3-plus": _beats,
    **{f"whisper-{size}": _whisper(f"whisper-{size}", 80) for size in ("tiny", "base", "small", "medium")},
    "whisper-large-v3": _whisper("whisper-large-v3", 128),
}
