"""EEMC: its wiring, its ablations, and that its outputs do not depend on masked inputs."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refavs.data.batches import Batch
from refavs.errors import ConfigError, StoreError
from refavs.model.decoder import EEMCOutput, predict
from refavs.model.feature_sizes import FeatureSizes, MapSize, StreamSize
from refavs.model.heads.eemc import EEMC
from refavs.model.heads.options import EEMCOptions
from refavs.model.heads.protocol import ChosenSteps
from refavs.model.losses import LossConfig, eemc_loss
from refavs.model.target import Target
from refavs.model.visual import Standardisation
from tests.refavs.described_store import described_store

NUM_CLIPS, NUM_FRAMES, LENGTH = 2, 5, 6
SIZES = FeatureSizes(
    audio=StreamSize(path="clips/audio/vggish/features", channels=7),
    text=StreamSize(path="text/roberta/features", channels=9),
    maps=tuple(
        MapSize(name=name, path=f"clips/visual/made-up/pixel_decoder/{name}", channels=16, height=side, width=side)
        for name, side in (("mask_features", 8), ("s8", 4), ("s16", 2), ("s32", 1))
    ),
)
OPTIONS = {
    "num_layers": 1, "num_queries": 3, "num_heads": 2, "feedforward_channels": 8, "visual_downsample": 4,
    "decoder_layers": 2, "decoder_feedforward_channels": 8,
}


def make_batch(seed: int = 0, sizes: FeatureSizes = SIZES) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.zeros(3, NUM_FRAMES, 32, 32, dtype=torch.bool)
    mask[:2, :, 4:20, 8:24] = True
    return Batch(
        visual={
            size.name: noise(NUM_CLIPS, NUM_FRAMES, size.channels, size.height, size.width).half()
            for size in sizes.maps
        },
        audio=noise(NUM_CLIPS, NUM_FRAMES, sizes.audio.channels), text=noise(3, LENGTH, sizes.text.channels),
        valid=torch.arange(LENGTH) < torch.tensor([[3], [5], [4]]), clip=torch.tensor([0, 1, 1]), mask=mask,
        uid=["a", "b", "c"], split=["train"] * 3, dimension=["acoustic"] * 3, text_string=["one", "two", "three"],
    )  # fmt: skip


def make_model(seed: int = 0, **options: object) -> EEMC:
    torch.manual_seed(seed)
    return EEMC(EEMCOptions(**{**OPTIONS, **options}), SIZES)  # type: ignore[arg-type]


def run(model: EEMC, batch: Batch, frames: ChosenSteps | None = None) -> EEMCOutput:
    model.eval()
    with torch.no_grad():
        return model(batch, frames)


@pytest.mark.parametrize("decoder_layers", [0, 1, 3])
def test_eemc_trains_one_step_on_a_batch(decoder_layers: int) -> None:
    model, batch = make_model(decoder_layers=decoder_layers).train(), make_batch()
    output = model(batch, ChosenSteps.of([1, 3]))
    assert output.mask_logits.shape == (3, 2, 3, 8, 8) and output.class_logits.shape == (3, 2, 3, 2)
    assert len(output.auxiliary) == decoder_layers
    loss = eemc_loss(output, Target(masks=batch.mask[:, [1, 3]]), LossConfig(num_points=0))["total"]
    loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in without if "query_positions" not in name], without
    probs = predict(output, (32, 32))
    assert probs.shape == (3, 2, 32, 32) and probs.min() >= 0 and probs.max() <= 1


def outputs_differ(first: EEMCOutput, second: EEMCOutput) -> Tensor:
    """For each expression and frame, whether any prediction differs by a bit."""
    masks = (first.mask_logits != second.mask_logits).flatten(2).any(-1)
    return masks | (first.class_logits != second.class_logits).flatten(2).any(-1)


def with_other(batch: Batch, stream: str) -> Batch:
    return replace(batch, **{stream: getattr(make_batch(seed=7), stream)})


@pytest.mark.parametrize("stream", ["audio", "text"])
def test_eemc_without_a_cue_is_not_influenced_by_it(stream: str) -> None:
    batch = make_batch()
    assert outputs_differ(run(make_model(), batch), run(make_model(), with_other(batch, stream))).all()
    ablated = make_model(**{stream: False})
    assert not outputs_differ(run(ablated, batch), run(ablated, with_other(batch, stream))).any()
    assert not [name for name, _ in ablated.named_parameters() if stream in name]


def test_eemc_without_text_is_not_influenced_by_its_length() -> None:
    batch, ablated = make_batch(), make_model(text=False)
    other = replace(batch, valid=torch.ones_like(batch.valid))
    assert not outputs_differ(run(ablated, batch), run(ablated, other)).any()


@pytest.mark.parametrize("ablation", [{"memory": False}, {"beta": 0.0}])
def test_eemc_without_memory_sees_one_step_only(ablation: dict) -> None:
    batch, later = make_batch(), make_batch()
    for features in (later.audio, *later.visual.values()):
        features[:, 2] += 1
    changed = outputs_differ(run(make_model(), batch), run(make_model(), later))
    assert not changed[:, :2].any() and changed[:, 2:].all()
    ablated = make_model(**ablation)
    changed = outputs_differ(run(ablated, batch), run(ablated, later))
    assert changed[:, 2].all() and not changed[:, [0, 1, 3, 4]].any()


@pytest.mark.long
def test_eemc_without_memory_equals_beta_zero() -> None:
    batch = make_batch()
    torch.testing.assert_close(
        run(make_model(memory=False), batch).mask_logits, run(make_model(beta=0.0), batch).mask_logits
    )


def test_eemc_reads_only_its_own_maps_of_a_batch() -> None:
    model, batch = make_model(decoder_layers=0, memory=False), make_batch()
    alone = replace(batch, visual={name: maps if name == "mask_features" else maps[:0, :0]
                                   for name, maps in batch.visual.items()})  # fmt: skip
    frames = ChosenSteps.of([1])  # which an empty map does not have
    assert outputs_differ(run(model, batch, frames), run(model, alone, frames)).max() == 0


def test_eemc_without_modality_tokens_has_none() -> None:
    tokens = [name for name, _ in make_model().named_parameters() if name.endswith("_token")]
    assert tokens == ["integration.audio_token", "integration.visual_token"]
    ablated = make_model(modality_tokens=False)
    assert not [name for name, _ in ablated.named_parameters() if name.endswith("_token")]
    model, batch = make_model(), make_batch()
    for token in ("audio_token", "visual_token"):
        before = run(model, batch)
        with torch.no_grad():
            model.integration.get_parameter(token).add_(1)
        assert outputs_differ(before, run(model, batch)).all()


def test_eemc_combines_the_cues_as_the_equations_say() -> None:
    model, batch = make_model().eval(), make_batch()
    visual, clip = model.visual(batch.visual, None).tokens, batch.clip
    audio, (text, valid) = model._audio(batch.audio), model._text(batch)
    assert audio is not None and text is not None and model.audio_fusion is not None
    features_a, aware_a = model.audio_fusion(audio, text, valid, clip)
    features_v, aware_v = model.visual_fusion(visual, text, valid, clip)
    cue_a, cue_v, cue_t = model.cues(audio, visual, text, valid, clip)
    torch.testing.assert_close(cue_t, (text[:, None] + aware_a + aware_v) / 3)
    for cue, features in ((cue_a, features_a), (cue_v, features_v)):
        past = torch.stack([features[:, :step].mean(1) for step in range(1, NUM_FRAMES)], 1)
        torch.testing.assert_close(cue[:, 0], 2 * features[:, 0])
        torch.testing.assert_close(cue[:, 1:], 2 * features[:, 1:] - past)


def test_eemc_ignores_padding() -> None:
    batch, model = make_batch(), make_model()
    filled = replace(batch, text=torch.where(batch.valid[..., None], batch.text, torch.full_like(batch.text, 9.0)))
    assert not outputs_differ(run(model, batch), run(model, filled)).any()
    longer = replace(
        batch, text=torch.cat([batch.text, torch.ones(3, 2, 9)], 1),
        valid=torch.cat([batch.valid, torch.zeros(3, 2, dtype=torch.bool)], 1),
    )  # fmt: skip
    assert not outputs_differ(run(model, batch), run(model, longer)).any()


def test_eemc_predicts_a_step_alike_whichever_others_are_decoded() -> None:
    model, batch = make_model(), make_batch()
    everything, some = run(model, batch), run(model, batch, ChosenSteps.of([1, 4]))
    torch.testing.assert_close(some.mask_logits, everything.mask_logits[:, [1, 4]])
    torch.testing.assert_close(some.class_logits, everything.class_logits[:, [1, 4]])


def test_eemc_predicts_an_expression_alike_in_any_company() -> None:
    model, batch = make_model(), make_batch()
    together = run(model, batch)
    alone = replace(
        batch, visual={name: maps[1:] for name, maps in batch.visual.items()}, audio=batch.audio[1:],
        text=batch.text[2:], valid=batch.valid[2:], clip=torch.tensor([0]), mask=None,
    )  # fmt: skip
    torch.testing.assert_close(run(model, alone).mask_logits[0], together.mask_logits[2])


def test_eemc_distinguishes_mirrored_positions() -> None:
    """The same content at another place gives other queries, which needs positions on the visual tokens."""
    model, batch = make_model(decoder_layers=0), make_batch()
    mirrored = replace(batch, visual={name: maps.flip(-1) for name, maps in batch.visual.items()})
    assert (run(model, batch).class_logits != run(model, mirrored).class_logits).any()


@pytest.mark.parametrize(("field", "value"), [
    ("beta", 2.0), ("num_layers", 2), ("num_queries", 4), ("num_heads", 4), ("channels", 8),
    ("feedforward_channels", 12), ("visual_downsample", 2), ("text", False), ("audio", False), ("memory", False),
    ("rectified_audio", True),
    ("modality_tokens", False), ("decoder_layers", 1), ("decoder_feedforward_channels", 12), ("dropout", 0.5),
])  # fmt: skip
def test_every_option_changes_the_prediction(field: str, value: object) -> None:
    batch, known, changed = make_batch(), make_model().train(), make_model(**{field: value}).train()
    torch.manual_seed(3)
    before = known(batch)
    torch.manual_seed(3)
    after = changed(batch)
    assert before.mask_logits.shape != after.mask_logits.shape or outputs_differ(before, after).any()


def test_every_option_has_a_test() -> None:
    tested = test_every_option_changes_the_prediction.pytestmark[0].args[1]  # type: ignore[attr-defined]
    elsewhere = {"trained", "decoder_weights", "head", "visual"}  # test_eemc_parts.py, test_heads.py, test_stores.py
    assert {name for name, _ in tested} | elsewhere == {field.name for field in fields(EEMCOptions)}


def test_eemc_standardises_every_stream() -> None:
    batch, plain, standardising = make_batch(), make_model(), make_model()
    statistics = {
        size.path: (torch.full((size.channels,), 2.0), torch.full((size.channels,), 0.5))
        for size in (SIZES.audio, SIZES.text, *SIZES.maps)
    }
    standardising.set_statistics(statistics)
    shifted = replace(
        batch, visual={name: maps.float() * 0.5 + 2 for name, maps in batch.visual.items()},
        audio=batch.audio * 0.5 + 2, text=batch.text * 0.5 + 2,
    )  # fmt: skip
    torch.testing.assert_close(run(standardising, shifted).mask_logits, run(plain, batch).mask_logits)


def test_standardisation_silences_channels_that_never_change() -> None:
    standardise = Standardisation(3)
    standardise.set(torch.tensor([1.0, 2.0, 100.0]), torch.tensor([2.0, 0.0, 1e-7]))
    torch.testing.assert_close(standardise(torch.tensor([[5.0, 2.5, 101.0]])), torch.tensor([[2.0, 0.0, 0.0]]))


@pytest.mark.parametrize(("options", "text"), [
    ({"num_layers": 0}, "num_layers is 0; accepted: a whole number from 1 up"),
    ({"decoder_layers": -1}, "decoder_layers is -1; accepted: a whole number from 0 up"),
    ({"beta": float("nan")}, "beta is nan; accepted: a finite number, 1 in the paper"),
    ({"dropout": 1.0}, "dropout is 1.0; accepted: from 0 to below 1"),
    ({"num_heads": 3}, "the model's width 16 must be a multiple of 4 and of model.num_heads=3"),
    ({"visual_downsample": 3}, "visual_downsample=3 does not divide the 8 x 8 mask features"),
])  # fmt: skip
def test_eemc_refuses_options_that_cannot_be_used(options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        make_model(**options)


def test_sizes_come_from_the_store(tmp_path: Path) -> None:
    assert FeatureSizes.from_store(described_store(tmp_path / "s", SIZES), EEMCOptions().needs()) == SIZES
    lacking = described_store(tmp_path / "lacking", replace(SIZES, maps=tuple(
        size for size in SIZES.maps if size.name != "s16")))
    with pytest.raises(StoreError, match=r"store .* has no maps s16; the head reads mask_features, s8"):
        FeatureSizes.from_store(lacking, EEMCOptions().needs())
