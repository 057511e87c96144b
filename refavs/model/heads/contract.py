"""The contract of heads as a test for any head: `check_head(MyOptions(width=8))`."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from refavs.data.batches import Batch
from refavs.data.maps import Maps
from refavs.model.checkpoint import load_model, save_model
from refavs.model.feature_sizes import FeatureSizes, MapSize, StreamSize
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.heads.registry import implementation_of
from refavs.model.options import HeadOptions, LossConfig
from refavs.model.target import FrameCounts, Target

CLIP_OF = (0, 0, 1)  # the clip that each expression refers to
NUM_STEPS, SIDE, CHANNELS, LENGTH = 8, 16, 32, 4
EVERYWHERE = LossConfig(num_points=0)  # compares masks at all pixels, so nothing is random


def check_head(options: HeadOptions, sizes: FeatureSizes | None = None) -> None:
    """Builds a head with these options, trains it for a few steps and saves it, all on random features.

    Args:
        options: small sizes, so that a step takes milliseconds.
        sizes: sizes of the features; None uses maps of 16 x 16 pixels and coarser with 32 channels.

    Raises:
        AssertionError: the head breaks the contract; the message says how.
    """
    torch.manual_seed(0)
    sizes = sizes or made_up_sizes(options)
    head: Head = implementation_of(options)(options, sizes)
    streams = [size for size in (sizes.audio, sizes.text, *sizes.maps) if size is not None]
    head.set_statistics({size.path: (torch.zeros(size.channels), torch.ones(size.channels)) for size in streams})
    for num_steps in (1, 3):
        _check_prediction(head, made_up_batch(sizes, num_steps))
    batch = made_up_batch(sizes, 3)
    _check_steps_read(head, batch)
    _check_quantised(head, batch)
    _check_labels(head, batch)
    if options.trainable:
        _check_parts(head, batch)
        _check_training(head, batch)
    _check_checkpoint(head, batch)


def made_up_sizes(options: HeadOptions) -> FeatureSizes:
    """Sizes of everything that the head reads."""
    needs = options.needs()
    maps = tuple(MapSize(name=name, path=f"clips/visual/made-up/{name}", channels=CHANNELS, height=(side := max(
        1, SIDE >> number)), width=side) for number, name in enumerate(needs.maps[0]))  # fmt: skip
    return FeatureSizes(
        audio=StreamSize(path="clips/audio/made-up", channels=5) if needs.audio else None,
        text=StreamSize(path="text/made-up/features", channels=6) if needs.text else None, maps=maps,
    )  # fmt: skip


def made_up_batch(sizes: FeatureSizes, num_steps: int) -> Batch:
    """Three expressions for two clips. The second's object is not visible at first; the third refers to no object."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    num_clips, number = max(CLIP_OF) + 1, len(CLIP_OF)
    masks = torch.zeros(number, num_steps, 4 * SIDE, 4 * SIDE, dtype=torch.bool)
    masks[0, :, : 2 * SIDE], masks[1, 1:, :, : 2 * SIDE] = True, True
    return Batch(
        visual={size.name: noise(num_clips, num_steps, size.channels, size.height, size.width).half()
                for size in sizes.maps},
        audio=noise(num_clips, num_steps, sizes.audio.channels if sizes.audio else 5),
        text=noise(number, LENGTH, sizes.text.channels if sizes.text else 6),
        valid=torch.arange(LENGTH) < torch.tensor([[LENGTH], [2], [LENGTH]]), clip=torch.tensor(CLIP_OF), mask=masks,
        uid=[*"abc"], split=["train"] * number, dimension=[""] * number, text_string=[*"abc"],
    )  # fmt: skip


def _loss(head: Head, batch: Batch, labelled: Bool[Tensor, "b t"] | None = None) -> dict[str, Tensor]:
    assert batch.mask is not None
    return head.loss(head(batch), Target(masks=batch.mask, labelled=labelled), EVERYWHERE)


@torch.no_grad()
def _probs(head: Head, batch: Batch, steps: ChosenSteps | None = None) -> Tensor:
    return head.eval().probs(head(batch, steps), (24, 40))


def _check_prediction(head: Head, batch: Batch) -> None:
    num_steps = batch.audio.shape[1]
    found = _probs(head, batch)
    assert found.shape == (len(batch), num_steps, 24, 40), f"probs of size (24, 40) have shape {tuple(found.shape)}"
    assert bool(((found >= 0) & (found <= 1)).all()), "probs are not between 0 and 1"
    last = _probs(head, batch, ChosenSteps.of([num_steps - 1]))
    assert torch.allclose(last, found[:, -1:], atol=1e-4), "a step's probs depend on the steps requested"


def _check_steps_read(head: Head, batch: Batch) -> None:
    """A training step reads only the steps that the head names for those that it decodes."""
    num_steps = batch.audio.shape[1]
    chosen = [num_steps - 1]
    read: dict[str, set[int]] = {}
    for name, steps in head.steps_read(chosen).items():  # a store without pooled maps has the maps instead
        source, _, pooling = name.rpartition("/")
        own = source if pooling.isdigit() and source in batch.visual else name
        read[own] = read.get(own, set()) | {*steps}
    stored, places = {}, {}
    for name, maps in batch.visual.items():
        own = sorted(read.get(name, range(num_steps)))
        stored[name] = maps[:, own]
        if own != [*range(len(own))]:
            places[name] = Maps.places_of(own, num_steps)
    expected, told = _probs(head, batch, ChosenSteps.of(chosen)), "`steps_read` lacks steps that `forward` reads"
    try:
        found = _probs(head, replace(batch, visual=Maps(stored, {}, places)), ChosenSteps.of(chosen))
    except (IndexError, RuntimeError, ValueError) as error:
        raise AssertionError(told) from error
    assert torch.equal(found, expected), told


def _check_quantised(head: Head, batch: Batch) -> None:
    """A store may keep maps in one byte a value; a head that takes them from `batch.visual` gets their values."""
    generator = torch.Generator().manual_seed(2)
    stored = {name: torch.randint(-127, 128, maps.shape, generator=generator, dtype=torch.int8)
              for name, maps in batch.visual.items()}  # fmt: skip
    scales = {name: 0.05 * torch.rand(maps.shape[0], maps.shape[2], generator=generator)
              for name, maps in stored.items()}  # fmt: skip
    quantised = Maps(stored, scales)
    found, expected = (_probs(head, replace(batch, visual=maps)) for maps in (quantised, dict(quantised)))
    assert torch.allclose(found, expected, atol=1e-4), "probs of quantised maps are not those of their values"


def _check_labels(head: Head, batch: Batch) -> None:
    assert batch.mask is not None
    labelled = torch.ones(batch.mask.shape[:2], dtype=torch.bool)
    losses, all_labelled = _loss(head, batch), _loss(head, batch, labelled)
    assert losses.keys() == {"total", *head.losses}, f"loss returns {', '.join(losses)}; `losses` lists {head.losses}"
    for name, value in losses.items():
        assert bool(value.isfinite()), f"the loss {name} is not finite for a frame without an object"
        assert torch.allclose(value, all_labelled[name]), f"the loss {name} changes if all steps are labelled"
    labelled[:, 1] = False
    before = _loss(head, batch, labelled)["total"]
    batch.mask[:, 1] = ~batch.mask[:, 1]
    after = _loss(head, batch, labelled)["total"]
    batch.mask[:, 1] = ~batch.mask[:, 1]
    assert torch.allclose(before, after), "a step without a label contributes to the loss"


def _check_parts(head: Head, batch: Batch) -> None:
    """Checks that a batch can be computed in parts, here one expression at a time."""
    assert batch.mask is not None
    whole, output = FrameCounts.of(batch.mask), _loss(head, batch)["total"]
    parts = []
    for row in range(len(batch)):
        part = expression_of(batch, row)
        assert part.mask is not None
        parts.append(head.loss(head(part), Target(masks=part.mask, counts=whole), EVERYWHERE)["total"])
    assert torch.allclose(torch.stack(parts).sum(), output, rtol=1e-3), "the losses of the parts do not add up"


def expression_of(batch: Batch, row: int) -> Batch:
    """The batch of a single expression and its clip."""
    assert batch.mask is not None
    clip, rows = slice(CLIP_OF[row], CLIP_OF[row] + 1), slice(row, row + 1)
    return replace(
        batch, visual={name: maps[clip] for name, maps in batch.visual.items()}, audio=batch.audio[clip],
        text=batch.text[rows], valid=batch.valid[rows], clip=torch.zeros(1, dtype=torch.long), mask=batch.mask[rows],
        uid=batch.uid[rows], split=batch.split[rows], dimension=batch.dimension[rows],
        text_string=batch.text_string[rows],
    )  # fmt: skip


def _check_training(head: Head, batch: Batch) -> None:
    head.train()
    trained = head.trained_parameters()
    assert trained, "the head has no trained parameter"
    optimizer, totals = torch.optim.AdamW(trained, lr=3e-3), []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        total = _loss(head, batch)["total"]
        total.backward()
        totals.append(float(total.detach()))
        unreached = [name for name, one in head.named_parameters() if one.requires_grad and one.grad is None]
        assert not unreached, f"no gradient reaches {', '.join(unreached[:5])}"
        optimizer.step()
    assert totals[-1] < totals[0], f"the loss does not fall: {totals[0]:.4g}, {totals[-1]:.4g} after {NUM_STEPS} steps"
    counted = sum(size.trained for size in head.part_sizes())
    assert counted == sum(one.numel() for one in trained), "`parts` must hold each trained parameter once"


def _check_checkpoint(head: Head, batch: Batch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), head)
        loaded = load_model(Path(folder))
    assert (loaded.options, loaded.sizes) == (head.options, head.sizes), "a saved and loaded head has other options"
    assert torch.equal(_probs(loaded, batch), _probs(head, batch)), "a saved and loaded head predicts otherwise"
