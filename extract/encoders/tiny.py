"""The recipe of `tiny-swin`: pretrains its Swin and pixel decoder on densely labelled synthetic frames.

It replaces Mask2Former's pretraining of the real encoders: the maps separate foreground, shape and colour. The result
ships with the package; `python -m extract.encoders.tiny` creates it again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from extract.encoders.mask2former import TINY, VisualNetworks, VisualSettings
from extract.encoders.protocol import Frames
from refavs.synthetic.scene import CATEGORIES, COLOURS, make_scene, render
from refavs.terminal.command import CommandParser, run_command
from refavs.terminal.console import ProgressBar
from refavs.terminal.printing import say

IGNORED = -100
FOREGROUND, SHAPE, COLOUR = 2, len(CATEGORIES), len(COLOURS)


def labelled_frames(rng: np.random.Generator, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Renders `count` frames, each of a different scene.

    Returns:
        Frames, uint8 RGB (frame, row, column, channel), and labels (frame, kind, row, column) with the kinds
        foreground, shape and colour; the last two are `IGNORED` on the background.
    """
    frames, labels = [], []
    for _ in range(count):
        shown = rng.choice(CATEGORIES, size=rng.integers(2, 5), replace=False).tolist()
        scene = make_scene(rng, size, shown)
        frame, masks = render(scene, float(rng.uniform(0, 10)))
        label = np.full((3, size, size), IGNORED)
        label[0] = 0
        for thing, mask in zip(scene.objects, masks, strict=True):
            values = (1, list[str](CATEGORIES).index(thing.category), list(COLOURS).index(thing.colour))
            label[:, mask] = np.array(values)[:, None]
        frames.append(frame)
        labels.append(label)
    return torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(labels))


def dense_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of foreground, shape and colour at the resolution of `logits` (frame, class, row, column)."""
    size = logits.shape[-2:]
    labels = functional.interpolate(labels.float(), size=size, mode="nearest-exact").long()
    parts = logits.float().split([FOREGROUND, SHAPE, COLOUR], dim=1)
    losses = [functional.cross_entropy(part, labels[:, kind], ignore_index=IGNORED) for kind, part in enumerate(parts)]
    return torch.stack(losses).sum()


def accuracies(logits: Tensor, labels: Tensor) -> list[float]:
    """Fraction of correct pixels for foreground, shape and colour; the last two on objects only."""
    labels = functional.interpolate(labels.float(), size=logits.shape[-2:], mode="nearest-exact").long()
    found = []
    for kind, part in enumerate(logits.split([FOREGROUND, SHAPE, COLOUR], dim=1)):
        known = labels[:, kind] != IGNORED
        found.append((part.argmax(1) == labels[:, kind])[known].float().mean().item())
    return found


def pretrain(
    settings: VisualSettings, steps: int, batch_size: int, learning_rate: float, seed: int
) -> tuple[VisualNetworks, list[float]]:
    """Trains both networks; returns them with the accuracies of the mask features on unseen frames."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    assert settings.pixel_decoder is not None
    networks, takes = VisualNetworks(settings.swin, settings.pixel_decoder), Frames(size=settings.swin.input_size)
    mask_channels, channels = settings.pixel_decoder.mask_channels, settings.pixel_decoder.channels
    heads = nn.ModuleDict(
        {
            level: nn.Conv2d(mask_channels if level == "mask_features" else channels, FOREGROUND + SHAPE + COLOUR, 1)
            for level in ("mask_features", "s8", "s16", "s32")
        }
    )
    optimizer = torch.optim.AdamW([*networks.parameters(), *heads.parameters()], lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    with ProgressBar("pretraining tiny-swin", steps, "steps") as bar:
        for _ in range(steps):
            frames, labels = labelled_frames(rng, batch_size, takes.size)
            maps = networks(takes.normalised(frames))
            loss = torch.stack([dense_loss(heads[level](features), labels) for level, features in maps.items()]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.advance(note=f"loss {loss.item():.3f}")
    networks.eval()
    frames, labels = labelled_frames(rng, 64, takes.size)
    with torch.no_grad():
        logits = heads["mask_features"](networks(takes.normalised(frames))["mask_features"])
    return networks, accuracies(logits, labels)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m extract.encoders.tiny`; returns the exit status."""
    parser = CommandParser(prog="python -m extract.encoders.tiny", description=__doc__)
    parser.add_argument("--out", type=Path, default=TINY.shipped, help="file to write")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32, help="frames in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def command() -> int:
        networks, right = pretrain(TINY, args.steps, args.batch_size, args.learning_rate, args.seed)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half() for name, value in networks.state_dict().items()}, args.out)
        shares = dict(zip(("foreground", "shape", "colour"), right, strict=True))
        say(f"wrote {args.out}; right pixels on new frames: " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
        return 0

    return run_command("extract.encoders.tiny", command)


if __name__ == "__main__":
    sys.exit(main())
