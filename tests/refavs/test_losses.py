"""Losses against plain NumPy and SciPy's assignment, frame by frame."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from refavs.data.clip_groups import ClipGroups
from refavs.errors import ConfigError
from refavs.model.decoder import EEMCOutput
from refavs.model.losses import LossConfig, eemc_loss, matching_costs, uncertain_points
from refavs.model.target import LabelCounts, Target

ALL_PIXELS = LossConfig(num_points=0)


def case(seed: int = 0, size: int = 8) -> tuple[EEMCOutput, torch.Tensor]:
    """Two expressions of three frames; the last frame of the second has no object."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 4, 8, 8, generator=generator)
    output = output_of(logits, torch.randn(2, 3, 4, 2, generator=generator))
    masks = torch.rand(2, 3, size, size, generator=generator) > 0.6
    masks[1, 2] = False
    return output, masks


def output_of(logits: torch.Tensor, class_logits: torch.Tensor, **more: object) -> EEMCOutput:
    """An output with these masks: one feature is 1 at one pixel each, and the embeddings are the logits."""
    num_expressions, num_frames, _, height, width = logits.shape
    pixels = torch.eye(height * width).unflatten(1, (height, width)).expand(1, num_frames, -1, -1, -1)
    embeddings = torch.cat([logits.flatten(3), torch.zeros(*logits.shape[:3], 1)], dim=3)
    groups = ClipGroups.of([0] * num_expressions, 1)
    return EEMCOutput(embeddings, pixels, groups, class_logits, **more)  # type: ignore[arg-type]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def bce(logits: np.ndarray, labels: np.ndarray) -> float:
    probs = sigmoid(logits)
    return float(-(labels * np.log(probs) + (1 - labels) * np.log(1 - probs)).mean())


def dice(logits: np.ndarray, labels: np.ndarray) -> float:
    probs = sigmoid(logits)
    return float(1 - (2 * (probs * labels).sum() + 1) / (probs.sum() + labels.sum() + 1))


def numpy_loss(output: EEMCOutput, masks: torch.Tensor, config: LossConfig) -> dict[str, float]:
    """All losses with SciPy's solver, at the resolution of the logits."""
    logits = output.mask_logits.double().flatten(0, 1).numpy()
    classes = output.class_logits.double().flatten(0, 1).numpy()
    probs = np.exp(classes) / np.exp(classes).sum(-1, keepdims=True)
    targets = masks.flatten(0, 1).double().numpy()
    bces, dices, entropy, weights = [], [], 0.0, 0.0
    for frame, target in enumerate(targets):
        matched, unmatched_weight = -1, config.null_frame
        if target.any():
            cost = [[config.bce * bce(z, target) + config.dice * dice(z, target) - config.matching * p]
                    for z, p in zip(logits[frame], probs[frame, :, 0], strict=True)]
            matched, unmatched_weight = int(linear_sum_assignment(np.array(cost))[0][0]), config.no_object
            bces.append(bce(logits[frame, matched], target))
            dices.append(dice(logits[frame, matched], target))
        for query in range(logits.shape[1]):
            weight = 1.0 if query == matched else unmatched_weight
            entropy -= weight * np.log(probs[frame, query, 0 if query == matched else 1])
            weights += weight
    parts = {"bce": np.mean(bces), "dice": np.mean(dices), "classification": entropy / weights}
    total = sum(getattr(config, name) * value for name, value in parts.items())
    return {"total": float(total), **{name: float(value) for name, value in parts.items()}}


@pytest.mark.parametrize("config", [
    ALL_PIXELS,
    LossConfig(num_points=0, bce=1.0), LossConfig(num_points=0, dice=0.5), LossConfig(num_points=0, classification=7.0),
    LossConfig(num_points=0, no_object=0.7), LossConfig(num_points=0, null_frame=0.2),
    LossConfig(num_points=0, matching=50.0),
])  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eemc_loss_equals_numpy_with_scipys_assignment(config: LossConfig, seed: int) -> None:
    output, masks = case(seed)
    losses, expected = eemc_loss(output, Target(masks=masks), config), numpy_loss(output, masks, config)
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_every_weight_changes_the_loss() -> None:
    output, masks = case()
    known = float(eemc_loss(output, Target(masks=masks), ALL_PIXELS)["total"])
    for name in ("bce", "dice", "classification", "no_object", "null_frame", "matching"):
        changed = LossConfig(num_points=0, **{name: 50.0})
        assert float(eemc_loss(output, Target(masks=masks), changed)["total"]) != pytest.approx(known), name


def test_eemc_loss_compares_masks_at_their_own_resolution() -> None:
    output, masks = case(size=16)
    upsampled = torch.nn.functional.interpolate(
        output.mask_logits.flatten(0, 1), size=(16, 16), mode="bilinear", align_corners=False
    ).unflatten(0, (2, 3))
    alone = output_of(upsampled[:, :, :1], output.class_logits[:, :, :1])
    small = output_of(output.mask_logits[:, :, :1], output.class_logits[:, :, :1])
    expected = numpy_loss(alone, masks, ALL_PIXELS)
    found = eemc_loss(small, Target(masks=masks), ALL_PIXELS)["total"]
    assert float(found) == pytest.approx(expected["total"], rel=1e-5)


def test_eemc_loss_of_points_approaches_that_of_all_pixels() -> None:
    output, masks = case()
    torch.manual_seed(0)
    uniform = LossConfig(num_points=20000, importance=0.0, oversampling=1.0)
    # Between pixels both are interpolated, so that points see softer masks than pixels do.
    target = Target(masks=masks)
    pointwise, pixelwise = (float(eemc_loss(output, target, config)["dice"]) for config in (uniform, ALL_PIXELS))
    assert pointwise == pytest.approx(pixelwise, abs=0.1)
    torch.manual_seed(0)
    assert float(eemc_loss(output, Target(masks=masks), uniform)["dice"]) == pointwise


def test_uncertain_points_lie_where_the_logits_are_near_zero() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)

    def distance(**options: float) -> float:
        torch.manual_seed(0)
        points = uncertain_points(ramp, LossConfig(num_points=200, **options))  # type: ignore[arg-type]
        assert points.shape == (1, 200, 2)
        return float((points[..., 0] - 0.5).abs().mean())

    plain, half, full, more = (
        distance(importance=0.0), distance(importance=0.5), distance(importance=1.0),
        distance(importance=1.0, oversampling=9.0),
    )  # fmt: skip
    assert plain > half > full > more


def test_deep_supervision_adds_the_losses_of_earlier_predictions() -> None:
    (output, masks), (earlier, _) = case(), case(seed=5)
    parts = [float(eemc_loss(part, Target(masks=masks), ALL_PIXELS)["total"]) for part in (output, earlier)]
    deep = replace(output, auxiliary=[earlier])
    assert float(eemc_loss(deep, Target(masks=masks), ALL_PIXELS)["total"]) == pytest.approx(sum(parts))
    shallow = LossConfig(num_points=0, deep_supervision=False)
    assert float(eemc_loss(deep, Target(masks=masks), shallow)["total"]) == pytest.approx(parts[0])


def test_losses_of_parts_add_up_to_those_of_the_whole() -> None:
    output, masks = case()
    whole = LabelCounts.of(masks)
    assert whole == LabelCounts(shown=5, null=1)
    parts = [
        eemc_loss(output_of(mask_logits, class_logits), Target(masks=mask, counts=whole), ALL_PIXELS)
        for mask_logits, class_logits, mask in zip(
            output.mask_logits.split(1), output.class_logits.split(1), masks.split(1), strict=True
        )
    ]
    for name, value in eemc_loss(output, Target(masks=masks), ALL_PIXELS).items():
        assert float(sum(part[name] for part in parts)) == pytest.approx(float(value), rel=1e-6), name


def test_losses_are_those_of_the_labelled_frames_alone() -> None:
    output, masks = case()
    labelled = torch.tensor([[True, False, True]] * 2)
    chosen = output_of(output.mask_logits[:, [0, 2]], output.class_logits[:, [0, 2]])
    expected = eemc_loss(chosen, Target(masks=masks[:, [0, 2]]), ALL_PIXELS)
    for name, value in eemc_loss(output, Target(masks=masks, labelled=labelled), ALL_PIXELS).items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-5), name
    none = eemc_loss(output, Target(masks=masks, labelled=torch.zeros_like(labelled)), ALL_PIXELS)
    assert all(float(value) == 0 for value in none.values())


def test_frames_without_object_have_only_a_classification_loss() -> None:
    output, masks = case()
    output.mask_embeddings.requires_grad_()
    losses = eemc_loss(output, Target(masks=torch.zeros_like(masks)), ALL_PIXELS)
    losses["total"].backward()
    assert float(losses["bce"]) == float(losses["dice"]) == 0 and float(losses["classification"]) > 0
    assert output.mask_embeddings.grad is None or not output.mask_embeddings.grad.any()


def test_matching_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    output, masks = case()
    whole = eemc_loss(output, Target(masks=masks), ALL_PIXELS)
    monkeypatch.setattr("refavs.model.losses.CACHED", 1)
    assert eemc_loss(output, Target(masks=masks), ALL_PIXELS) == whole


def test_matching_costs_prefer_the_right_mask() -> None:
    target = (torch.rand(5, 1, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    logits = torch.cat([1 - 2 * target, 2 * target - 1, torch.zeros_like(target)], dim=1) * 9
    assert matching_costs(logits, target, torch.zeros(5, 3, 2), ALL_PIXELS).argmin(1).tolist() == [1] * 5


@pytest.mark.parametrize(("options", "text"), [
    ({"dice": -1.0}, "dice is -1.0; accepted: a number from 0 up"),
    ({"bce": float("nan")}, "bce is nan"),
    ({"num_points": -1}, "num_points is -1; accepted: 0 (all pixels) or more"),
])  # fmt: skip
def test_loss_config_refuses_what_cannot_be_used(options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        LossConfig(**options)
