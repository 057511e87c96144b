"""Extraction and head with weights from a folder in the hub's layout equal the transformers model."""

import json
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from extract.encoders.mask2former import BASE, VisualEncoder, VisualSettings
from extract.encoders.pixel_decoder import PixelDecoderSettings
from extract.encoders.protocol import EncoderSetup, Frames
from extract.encoders.swin import SwinSettings
from extract.encoders.weights import WeightSource
from refavs.data.batches import Batch
from refavs.data.clip_groups import ClipGroups
from refavs.errors import WeightsError
from refavs.model.checkpoint import load_model, save_model
from refavs.model.decoder import EEMCOutput
from refavs.model.feature_sizes import LEVELS, MASKS, FeatureSizes, MapSize, StreamSize
from refavs.model.heads.eemc import EEMC
from refavs.model.heads.options import EEMCOptions
from refavs.model.pretrained import Mask2Former
from tests.extract.hf_weights import write_mask2former

pytestmark = pytest.mark.long  # for what its fixtures make

SMALL = VisualSettings(
    swin=SwinSettings(input_size=128, window=4, channels=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
    pixel_decoder=PixelDecoderSettings(in_channels=(16, 32, 64, 128), channels=64, mask_channels=64),
    repository="facebook/mask2former-swin-base-ade-semantic", folder="mask2former",
)
SMALL_HEAD = {"num_queries": 7, "decoder_layers": 4, "decoder_feedforward_channels": 48}
STAGES = ("res2", "res3", "res4", "res5")


@dataclass
class Case:
    """transformers' model, the folder it was saved in, frames, and the maps of our encoder before they are stored."""

    visual: VisualSettings
    head: dict[str, int]
    folder: Path
    theirs: nn.Module
    encoder: VisualEncoder
    frames: np.ndarray
    maps: dict[str, Tensor]

    def sizes(self, *levels: str) -> FeatureSizes:
        maps = tuple(
            MapSize(name=spec.name, path=f"clips/visual/small/{level}/{spec.name}", channels=spec.shape[1],
                    height=spec.shape[2], width=spec.shape[3])
            for level, specs in self.encoder.arrays(2).items() if level in levels for spec in specs
        )  # fmt: skip
        return FeatureSizes(audio=StreamSize(path="clips/audio/vggish/features", channels=128),
                            text=StreamSize(path="text/roberta/features", channels=8), maps=maps)

    def fingerprints(self) -> dict[str, dict]:
        return {f"visual/small/{level}": dict(self.encoder.facts(level)) for level in self.encoder.arrays(2)}

    def model(self, *levels: str, **options: object) -> EEMC:
        torch.manual_seed(5)
        settings = {"num_layers": 1, "feedforward_channels": 8, "visual_downsample": 8, **self.head}
        chosen = EEMCOptions(decoder_weights="mask2former", **{**settings, **options})
        return EEMC(chosen, self.sizes(*levels)).eval()

    def loaded(self, *levels: str, **options: object) -> EEMC:
        model = self.model(*levels, **options)
        model.load_pretrained(self.folder / "mask2former", self.fingerprints())
        return model


def normalised(frames: np.ndarray) -> Tensor:
    return Frames(size=frames.shape[1]).normalised(torch.from_numpy(frames))


def make_case(folder: Path, visual: VisualSettings, head: dict[str, int], num_frames: int) -> Case:
    theirs = write_mask2former(
        folder / "mask2former", visual, num_labels=1, num_queries=head["num_queries"],
        decoder_layers=head["decoder_layers"] + 1, dim_feedforward=head["decoder_feedforward_channels"],
    )
    encoder = VisualEncoder("small", visual, EncoderSetup(weights=WeightSource(folder=folder)))
    shape = (num_frames, visual.swin.input_size, visual.swin.input_size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    swin, pixel_decoder = encoder._frozen
    with torch.no_grad():
        pyramid = swin(normalised(frames))
        return Case(visual, head, folder, theirs, encoder, frames, {**pyramid, **pixel_decoder(pyramid)})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("weights"), SMALL, SMALL_HEAD, 1)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def errors_of(case: Case) -> dict[str, float]:
    """Relative error of each map and of the head's logits, from the same frames to the end on either side."""
    with torch.no_grad():
        theirs = case.theirs(normalised(case.frames), output_hidden_states=True)
    expected = dict(zip(STAGES, theirs.encoder_hidden_states, strict=True))
    expected |= dict(zip(LEVELS, theirs.pixel_decoder_hidden_states, strict=True))
    expected[MASKS] = theirs.pixel_decoder_last_hidden_state
    assert all(0.2 < maps.std() < 5 for maps in expected.values())
    found = {name: relative_error(case.maps[name], maps) for name, maps in expected.items()}
    stored = case.encoder.encode([case.frames], ("backbone", "pixel_decoder"))[0]
    for name, maps in expected.items():
        level = "backbone" if name in STAGES else "pixel_decoder"
        read = torch.from_numpy(stored[f"{level}/{name}"]).float()
        found[f"{name}, stored"] = relative_error(read, maps)
    for maps, name in ((case.maps, ""), ({**case.maps, **{
        name: torch.from_numpy(stored[f"pixel_decoder/{name}"]) for name in (MASKS, *LEVELS)}}, ", stored")):
        output = decoded(case.loaded("pixel_decoder"), maps, case)
        found[f"mask logits{name}"] = relative_error(flat(output.mask_logits), theirs.masks_queries_logits)
        found[f"class logits{name}"] = relative_error(flat(output.class_logits), theirs.class_queries_logits)
    assert 0.1 < theirs.masks_queries_logits.std() < 10 and 0.1 < theirs.class_queries_logits.std() < 10
    return found


def flat(values: Tensor) -> Tensor:
    return rearrange(values, "b t ... -> (b t) ...")


@torch.no_grad()
def decoded(model: EEMC, maps: dict[str, Tensor], case: Case) -> EEMCOutput:
    """Our head on `maps`, with the query features of the checkpoint in place of prompted queries."""
    names = [size.name for size in model.sizes.maps]
    visual = model.visual({name: rearrange(maps[name], "t ... -> 1 t ...") for name in names}, None)
    learned = case.theirs.model.transformer_module.queries_features.weight
    queries = repeat(learned, "q c -> 1 t q c", t=len(case.frames))
    return model.decoder(queries, visual.mask_features, visual.levels, ClipGroups.of([0], 1))


def assert_equal(errors: dict[str, float]) -> None:
    print(*(f"{name}: {error:.1e}" for name, error in errors.items()), sep="\n")
    assert len(errors) == 2 * (8 + 2)
    assert {name: error for name, error in errors.items() if error > 1e-5 and "stored" not in name} == {}
    # float16 has 11 bits: what a store costs. One pixel that changes sides of an attention mask costs more.
    assert {name: error for name, error in errors.items() if error > 5e-4 and "logits" not in name} == {}


def test_small_mask2former_gives_its_own_values_through_our_path(small: Case) -> None:
    assert_equal(errors_of(small))


@pytest.mark.slow
def test_mask2former_of_the_paper_gives_its_own_values_through_our_path(tmp_path: Path) -> None:
    head = {"num_queries": 100, "decoder_layers": 9, "decoder_feedforward_channels": 2048}
    assert_equal(errors_of(make_case(tmp_path, BASE, head, 1)))


def test_pixel_decoder_of_the_head_gives_the_same_masks(small: Case) -> None:
    stored = decoded(small.loaded("pixel_decoder"), small.maps, small)
    for trained in ("fusion+transformer_decoder", "fusion+transformer_decoder+pixel_decoder"):
        own = decoded(small.loaded("backbone", channels=64, trained=trained), small.maps, small)
        assert relative_error(own.mask_logits, stored.mask_logits) < 1e-5
        assert relative_error(own.class_logits, stored.class_logits) < 1e-5


def batch_of(case: Case) -> Batch:
    """The frames as one clip, with made-up sound and text."""
    generator = torch.Generator().manual_seed(4)
    num_frames = len(case.frames)
    return Batch(
        visual={name: rearrange(maps, "t ... -> 1 t ...") for name, maps in case.maps.items()},
        audio=torch.randn(1, num_frames, 128, generator=generator), text=torch.randn(1, 3, 8, generator=generator),
        valid=torch.ones(1, 3, dtype=torch.bool), clip=torch.tensor([0]), mask=None, uid=["a"], split=["train"],
        dimension=[""], text_string=["the one"],
    )  # fmt: skip


def test_head_with_its_own_pixel_decoder_begins_where_the_stored_maps_are(small: Case) -> None:
    """The tokens of the fusion too: their statistics are those of the mask features in the store."""
    stored = small.loaded("pixel_decoder")
    statistics = {size.path: (torch.randn(size.channels), torch.rand(size.channels) + 0.5)
                  for size in (stored.sizes.audio, stored.sizes.text,
                               *small.sizes("backbone", "pixel_decoder").maps)}  # fmt: skip
    own = small.loaded("backbone", channels=64, trained="fusion+transformer_decoder+pixel_decoder")
    for model in (stored, own):
        model.set_statistics(statistics)
    own.load_state_dict(stored.state_dict(), strict=False)
    with torch.no_grad():
        outputs = [model(batch_of(small)) for model in (stored, own)]
    assert relative_error(outputs[1].mask_logits, outputs[0].mask_logits) < 1e-4
    assert outputs[0].mask_logits.std() > 0.1


def test_checkpoint_of_a_pretrained_head_needs_no_weights_folder(small: Case, tmp_path: Path) -> None:
    model = small.loaded("backbone", channels=64)
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert (loaded.options, loaded.sizes) == (model.options, model.sizes)
    with torch.no_grad():
        assert torch.equal(loaded(batch_of(small)).mask_logits, model(batch_of(small)).mask_logits)


def test_what_starts_fresh_is_said(small: Case, tmp_path: Path) -> None:
    encoders = small.fingerprints()
    model = small.model("pixel_decoder")
    before = model.decoder.class_head.weight.clone()
    assert model.load_pretrained(small.folder / "mask2former", encoders) == []
    assert not torch.equal(model.decoder.class_head.weight, before)
    checkpoint = damaged(small, tmp_path, {"class_predictor.weight": torch.zeros(151, 64),
                                           "class_predictor.bias": torch.zeros(151)})
    model = small.model("pixel_decoder")
    same_maps = {"visual/small/pixel_decoder": {"weights": checkpoint.stamp}}
    fresh = model.load_pretrained(checkpoint.folder, same_maps)
    assert fresh == ["class head (2 outputs here, 151 outputs in the checkpoint)"]
    assert torch.equal(model.decoder.class_head.weight, before)


def damaged(case: Case, folder: Path, change: dict[str, Tensor | None]) -> Mask2Former:
    """A copy of the checkpoint with tensors replaced, added, or left out where they are None."""
    copy = folder / "mask2former"
    shutil.copytree(case.folder / "mask2former", copy)
    state = {**load_file(copy / "model.safetensors"), **change}
    save_file({name: value for name, value in state.items() if value is not None}, copy / "model.safetensors")
    return Mask2Former(copy)


@pytest.mark.parametrize(("change", "text"), [
    ({"model.transformer_module.decoder.layernorm.bias": None}, "the transformer decoder of PATH lacks norm.bias;"),
    ({"model.transformer_module.decoder.layers.1.self_attn.k_proj.bias": None},
     "lacks layers.1.self_attention.project.bias"),
    ({"model.transformer_module.extra": torch.zeros(1)}, "the transformer decoder of PATH has the unknown extra"),
    ({"model.transformer_module.input_projections.0.weight": torch.zeros(64, 64, 1, 1)},
     "has the unknown level_projections.0.weight"),
    ({"model.transformer_module.queries_embedder.weight": torch.zeros(9, 64)},
     "has the wrong size of query_positions (9, 64) instead of (7, 64)"),
    ({"model.pixel_level_module.decoder.level_embed": None}, "the pixel decoder of PATH lacks level_embed"),
])  # fmt: skip
def test_checkpoint_of_other_tensors_is_refused(small: Case, tmp_path: Path, change: dict, text: str) -> None:
    checkpoint = damaged(small, tmp_path, change)
    with pytest.raises(WeightsError, match=re.escape(text.replace("PATH", str(checkpoint.path)))):
        small.model("backbone", channels=64).load_pretrained(
            checkpoint.folder, {"visual/small/backbone": {"weights": checkpoint.stamp}}
        )


@pytest.mark.parametrize(("damage", "text"), [
    ("truncated", "is not a whole safetensors file"), ("pickle", "is not a whole safetensors file"),
    ("bin", r"has no model.safetensors \(its pytorch_model.bin is a pickle\); download the checkpoint with hf"),
    ("missing", "has no model.safetensors; download the checkpoint with hf download facebook/mask2former-swin-base"),
    ("no config", "config.json cannot be read .* download the whole checkpoint with hf download"),
    ("other config", "config.json describes no mask2former"),
    ("heads", "says num_attention_heads=4, the head has 8; use --set model.num_heads=4"),
    ("layers", "says decoder_layers=10, the head has 5; use --set model.decoder_layers=9"),
    ("pre-norm", "says pre_norm=True, the head has False; use a checkpoint such as facebook/"),
])  # fmt: skip
def test_damaged_checkpoint_is_refused(small: Case, tmp_path: Path, damage: str, text: str) -> None:
    folder = tmp_path / "mask2former"
    shutil.copytree(small.folder / "mask2former", folder)
    weights, described = folder / "model.safetensors", folder / "config.json"
    config = json.loads(described.read_text())
    if damage in ("truncated", "pickle"):
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-100] if damage == "truncated" else pickle.dumps({"a": 1}))
    elif damage in ("bin", "missing"):
        weights.rename(folder / ("pytorch_model.bin" if damage == "bin" else "other"))
    elif damage == "no config":
        described.unlink()
    else:
        changes = {"other config": {"model_type": "swin"}, "heads": {"num_attention_heads": 4},
                   "layers": {"decoder_layers": 10}, "pre-norm": {"pre_norm": True}}
        described.write_text(json.dumps(config | changes[damage]))
    with pytest.raises(WeightsError, match=text):
        maps = {"visual/small/pixel_decoder": {"weights": Mask2Former(folder).stamp}}
        small.model("pixel_decoder").load_pretrained(folder, maps)


def test_decoder_of_another_checkpoint_than_the_maps_is_refused(small: Case) -> None:
    with pytest.raises(WeightsError, match=r"the store's maps visual/small/pixel_decoder were made with the weights "
                       r"random:0, .*safetensors is sha256:\w{16}, .* extract with that folder as --weights-dir"):
        small.model("pixel_decoder").load_pretrained(
            small.folder / "mask2former", {"visual/small/pixel_decoder": {"weights": "random:0"}}
        )
