"""EEMC: its wiring, its ablations, and its independence of what it must not see."""

import pytest
import torch
from torch import Tensor

from refavs.data.dataset import Batch
from refavs.model.decoder import EEMCOutput, predict
from refavs.model.eemc import EEMC, EEMCConfig
from refavs.model.losses import LossConfig, eemc_loss
from refavs.model.sizes import FeatureSizes, MapSize, StreamSize

NUM_CLIPS, NUM_FRAMES, LENGTH = 2, 5, 6
SIZES = FeatureSizes(
    audio=StreamSize(path="clips/audio/vggish", channels=7), text=StreamSize(path="text/roberta/features", channels=9),
    maps=tuple(
        MapSize(name=name, path=f"clips/visual/pixel_decoder/{name}", channels=16, height=side, width=side)
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
    return EEMC(EEMCConfig(sizes=SIZES, **{**OPTIONS, **options}))  # type: ignore[arg-type]


def run(model: EEMC, batch: Batch, frames: Tensor | None = None) -> EEMCOutput:
    model.eval()
    with torch.no_grad():
        return model(batch, frames)


@pytest.mark.parametrize("decoder_layers", [0, 1, 3])
def test_eemc_trains_one_step_on_a_batch(decoder_layers: int) -> None:
    model, batch = make_model(decoder_layers=decoder_layers).train(), make_batch()
    output = model(batch, torch.tensor([1, 3]))
    assert output.mask_logits.shape == (3, 2, 3, 8, 8) and output.class_logits.shape == (3, 2, 3, 2)
    assert len(output.auxiliary) == decoder_layers
    loss = eemc_loss(output, batch.mask[:, [1, 3]], LossConfig(num_points=0))["total"]
    loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in without if "query_positions" not in name], without
    probs = predict(output, (32, 32))
    assert probs.shape == (3, 2, 32, 32) and probs.min() >= 0 and probs.max() <= 1
