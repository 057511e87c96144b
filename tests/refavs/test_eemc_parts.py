"""Trained and frozen parts of EEMC, the levels that they read, and errors."""

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from refavs.errors import ConfigError, StoreError
from refavs.model.feature_sizes import LEVELS, MASKS, FeatureSizes, MapSize
from refavs.model.heads.eemc import EEMC
from refavs.model.heads.options import EEMCOptions
from refavs.model.heads.protocol import ChosenSteps
from refavs.store.reader import FeatureStore
from tests.refavs.described_store import described_store
from tests.refavs.test_eemc import NUM_FRAMES, OPTIONS, SIZES, make_batch, outputs_differ, run

ALL = "fusion+transformer_decoder+pixel_decoder"
BACKBONE = replace(SIZES, maps=tuple(
    MapSize(name=f"res{level + 2}", path=f"clips/visual/made-up/backbone/res{level + 2}", channels=4 * 2**level,
            height=32 // 2**level, width=32 // 2**level)
    for level in range(4)
))  # fmt: skip


def make_model(sizes: FeatureSizes = SIZES, seed: int = 0, **options: object) -> EEMC:
    torch.manual_seed(seed)
    width = {"channels": 32, "num_heads": 8} if sizes is BACKBONE else {}
    return EEMC(EEMCOptions(**{**OPTIONS, **width, **options}), sizes)  # type: ignore[arg-type]


def count(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


@pytest.mark.parametrize(("options", "trained"), [
    ({"trained": "fusion", "decoder_weights": "mask2former"}, {"fusion", "class head"}),
    ({"trained": "fusion+transformer_decoder"}, {"fusion", "transformer decoder", "class head"}),
    ({"trained": ALL, "sizes": BACKBONE}, {"fusion", "transformer decoder", "pixel decoder", "class head"}),
    ({"decoder_weights": "mask2former", "sizes": BACKBONE}, {"fusion", "transformer decoder", "class head"}),
])  # fmt: skip
def test_parts_hold_every_parameter_once_and_those_named_are_trained(options: dict, trained: set[str]) -> None:
    model = make_model(**options)
    sizes = {size.part: size for size in model.part_sizes()}
    assert next(iter(sizes)) == "fusion" and ("pixel decoder" in sizes) == (options.get("sizes") is BACKBONE)
    assert sum(size.trained + size.frozen for size in sizes.values()) == count(model)
    assert sum(size.trained for size in sizes.values()) == sum(p.numel() for p in model.trained_parameters())
    for name, size in sizes.items():
        assert (size.trained > 0, size.frozen > 0) == (name in trained, name not in trained), size
    decoder = model.decoder
    assert sum(sizes["class head"][1:]) == count(decoder.class_head)
    assert sum(sizes["transformer decoder"][1:]) == count(decoder) - count(decoder.class_head)
    assert sum(sizes["fusion"][1:]) == count(model) - count(decoder, model.visual.pixel_decoder)


@pytest.mark.long
@pytest.mark.parametrize("options", [
    {"trained": "fusion", "decoder_weights": "mask2former"}, {}, {"trained": ALL, "sizes": BACKBONE},
    {"trained": "fusion", "decoder_weights": "mask2former", "sizes": BACKBONE},
    {"decoder_weights": "mask2former", "sizes": BACKBONE},
])  # fmt: skip
def test_a_step_changes_only_trained_parts(options: dict) -> None:
    """Frozen parts keep their bits, also in copies of the model, and what is frozen lets the gradient through."""
    model = copy.deepcopy(make_model(**options, dropout=0.1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.trained_parameters(), lr=1e-2)
    output = model(make_batch(sizes=model.sizes), ChosenSteps.of([1, 3]))
    assert len(output.auxiliary) == model.options.decoder_layers  # deep supervision, whatever is trained
    sum(part.mask_logits.square().mean() + part.class_logits.square().mean() for part in
        (*output.auxiliary, output)).backward()  # fmt: skip
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved <= expected and not [name for name in expected - moved if "query_positions" not in name]


def test_dropout_stays_off_in_frozen_parts() -> None:
    model = make_model(dropout=0.5, trained="fusion", decoder_weights="mask2former").train()
    on = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.training}
    assert on and not [name for name in on if name.startswith("decoder.")] and model.decoder.training
    assert not [module for module in model.eval().modules() if module.training]


@pytest.mark.parametrize(("sizes", "options", "text"), [
    (SIZES, {"trained": "fusion"},
     "trained is fusion, which would leave the transformer decoder at random weights; pass "
     "--set model.decoder_weights=mask2former"),
    (BACKBONE, {}, "the store has only the backbone's maps, and the pixel decoder would keep random weights; add"),
    (SIZES, {"trained": ALL}, "the maps are the output of a pixel decoder, so none can be trained"),
])  # fmt: skip
def test_weights_that_would_stay_random_are_refused(sizes: FeatureSizes, options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        make_model(sizes, **options)


def sizes_of(store: FeatureStore, **options: Any) -> FeatureSizes:
    return FeatureSizes.from_store(store, EEMCOptions(**options).needs())


def test_a_trained_pixel_decoder_reads_the_backbone_of_a_store_with_both_levels(tmp_path: Path) -> None:
    both = described_store(tmp_path / "both", BACKBONE, SIZES)
    assert sizes_of(both) == SIZES and sizes_of(both, trained=ALL) == BACKBONE
    assert sizes_of(described_store(tmp_path / "one", BACKBONE)) == BACKBONE
    with pytest.raises(StoreError, match="has no maps res2, res3, res4, res5; the head reads res2, res3, res4, res5; "
                                         "a pixel decoder is trained on them"):
        sizes_of(described_store(tmp_path / "other", SIZES), trained=ALL)


@pytest.mark.parametrize(("num_layers", "names"), [(0, []), (1, ["s32"]), (2, ["s16", "s32"]), (5, list(LEVELS))])
def test_maps_that_no_layer_reads_are_not_read(tmp_path: Path, num_layers: int, names: list[str]) -> None:
    both = described_store(tmp_path / "both", BACKBONE, SIZES)
    found = sizes_of(both, decoder_layers=num_layers).levels
    assert sorted(found) == sorted(f"pixel_decoder/{name}" for name in (MASKS, *names))
    found = sizes_of(both, trained=ALL, decoder_layers=num_layers).levels
    assert found == [f"backbone/{name}" for name in ("res2", "res3", "res4", "res5")]


def test_the_pixel_decoder_of_the_head_runs_once_for_the_expressions_of_a_clip() -> None:
    model, batch = make_model(BACKBONE, trained=ALL), make_batch(sizes=BACKBONE)
    decoder, rows = model.visual.pixel_decoder, []
    assert decoder is not None
    decoder.register_forward_hook(lambda _, inputs, __: rows.append(len(next(iter(inputs[0].values())))))
    output = run(model, batch)
    assert rows == [2 * NUM_FRAMES] and output.mask_logits.shape == (3, NUM_FRAMES, 3, 32, 32)


def test_pretrained_decoders_get_maps_as_stored_and_the_fusion_standardised_ones() -> None:
    batch = make_batch()
    statistics = {size.path: (torch.full((size.channels,), 2.0), torch.full((size.channels,), 0.5))
                  for size in (SIZES.audio, SIZES.text, *SIZES.maps)}  # fmt: skip
    plain, model = make_model(), make_model(decoder_weights="mask2former")
    assert not outputs_differ(run(plain, batch), run(model, batch)).any()
    for each in (plain, model):
        each.set_statistics(statistics)
    before, after = (each.visual(batch.visual, None) for each in (plain, model))
    assert torch.equal(before.tokens, after.tokens)
    found = dict(zip((MASKS, *LEVELS), [after.mask_features, *after.levels], strict=False))
    assert len(found) == 3 and all(torch.equal(maps, batch.visual[name].float()) for name, maps in found.items())
    torch.testing.assert_close(before.mask_features, (batch.visual[MASKS].float() - 2) * 2)
