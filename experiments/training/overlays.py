"""Overlays of a trial: all frames of a clip side by side, with the prediction filled and the ground truth outlined."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from experiments.training.evaluate import Trained, predictions_together, rows_of
from refavs.config import digest
from refavs.data.layouts import find_clip
from refavs.data.splits import Splits
from refavs.files.source_files import PICTURE_ERRORS, open_picture
from refavs.steps import Steps
from refavs.store import FeatureStore

OVERLAYS = "overlays"  # in a trial's folder
NUM_PICTURES = 2
LONGEST_CAPTION = 300  # characters; more do not fit the picture
LONGEST_NAME = 200  # bytes of a file name; most file systems allow 255
FRAME_PX = 160
CAPTION_PX = 44
GAP_PX = 3
PREDICTION = (230, 60, 60)
TARGET = (80, 240, 120)
BACKDROP = 60


def write_overlays(
    folders: Sequence[Path], heads: Sequence[Trained], store: FeatureStore, device: torch.device
) -> list[list[Path] | str]:
    """Writes pictures of two expressions, the same for every trial, into a folder for each head.

    Pictures do not affect results, so failures are returned and not raised.

    Returns:
        For each head its pictures, or the reason why not all could be written.

    Raises:
        torch.OutOfMemoryError: several heads do not fit on the device together; each may fit alone.
    """
    written: list[list[Path]] = [[] for _ in heads]
    errors: dict[int, str] = {}
    try:
        for number, name, picture in _pictures(heads, store, device):
            path = folders[number] / f"{len(written[number]) + 1}-{name}"
            written[number].append(path)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
            except (OSError, ValueError) as error:
                errors[number] = _told(error)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) and len(heads) > 1:
            raise
        errors = dict.fromkeys(range(len(heads)), _told(error)) | errors
    return [errors.get(number, paths) for number, paths in enumerate(written)]


def _pictures(
    heads: Sequence[Trained], store: FeatureStore, device: torch.device
) -> Iterator[tuple[int, str, Image.Image]]:
    """Yields each picture with the number of its head and the suffix of its name."""
    backdrops: dict[str, list[Image.Image]] = {}
    for row in chosen_rows(store):
        clip_id = str(store.expressions["clip_id"].iloc[row])
        for batch, found in predictions_together(heads, store, [row], device):
            assert batch.mask is not None
            target = batch.mask[0].cpu().numpy()
            if clip_id not in backdrops:
                backdrops[clip_id] = frame_pictures(store, clip_id, store.steps)
            for number, probs in found:
                pred = (probs[0] > 0.5).cpu().numpy()
                origin = f"{batch.uid[0]} ({batch.split[0]})"
                picture = draw(backdrops[clip_id], pred, target, batch.text_string[0], origin)
                yield number, f"{safe_name(batch.uid[0])}.png", picture


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def chosen_rows(store: FeatureStore) -> list[int]:
    """The first expression of the first test split, and the first of another dimension and clip; deterministic."""
    table, splits = store.expressions, Splits.of(store.attributes)
    rows = rows_of(store, splits.test[:1]) or rows_of(store, splits.validation) or rows_of(store, splits.train)
    if not rows:
        return []
    first, chosen = table.iloc[rows[0]], rows[:1]
    others = sorted(
        rows[1:],
        key=lambda row: (
            table["dimension"].iloc[row] == first["dimension"], table["clip_id"].iloc[row] == first["clip_id"], row,
        ),
    )
    return (chosen + others)[:NUM_PICTURES]


def frame_pictures(store: FeatureStore, clip_id: str, steps: Steps) -> list[Image.Image]:
    """The clip's frames, if the source is still where it was extracted from; plain backdrops for missing ones."""
    clip = find_clip(store.attributes, clip_id)
    found = [Image.new("RGB", (FRAME_PX, FRAME_PX), (BACKDROP,) * 3) for _ in range(len(steps))]
    for step, path in enumerate(clip.pictures(steps) if clip else ()):
        # A missing frame does no harm.
        with contextlib.suppress(*PICTURE_ERRORS), open_picture(path, clip and clip.root) as picture:
            found[step] = picture.convert("RGB").resize((FRAME_PX, FRAME_PX))
    return found


def draw(
    frames: list[Image.Image], pred: np.ndarray, target: np.ndarray, sentence: str, origin: str
) -> Image.Image:
    """Draws one strip: the sentence above, the frames below. `pred` and `target` are boolean, (t, h, w)."""
    pitch = FRAME_PX + GAP_PX
    strip = Image.new("RGB", (pitch * len(frames) - GAP_PX, FRAME_PX + CAPTION_PX), (20, 20, 20))
    pen = ImageDraw.Draw(strip)
    pen.text((8, 4), sentence[:LONGEST_CAPTION], fill=(255, 255, 255), font=ImageFont.load_default(size=16))
    pen.text((8, 26), f"{origin[:LONGEST_CAPTION]}; red: prediction, green: ground truth", fill=(170, 170, 170))
    for step, frame in enumerate(frames):
        pixels = np.asarray(frame, dtype=np.float32).copy()
        filled, wanted = enlarged(pred[step]), enlarged(target[step])
        pixels[filled] = 0.45 * pixels[filled] + 0.55 * np.array(PREDICTION, dtype=np.float32)
        pixels[outline(wanted)] = TARGET
        strip.paste(Image.fromarray(pixels.astype(np.uint8)), (step * pitch, CAPTION_PX))
    return strip


def enlarged(mask: np.ndarray) -> np.ndarray:
    """Resizes the mask to the size of the picture by nearest neighbour."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((FRAME_PX, FRAME_PX), Image.Resampling.NEAREST)) > 0


def outline(mask: np.ndarray) -> np.ndarray:
    """The outline of the mask, two pixels wide, inside it."""
    inner = np.pad(mask, 2, constant_values=False)
    kept = mask.copy()
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4)):
        kept &= inner[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return mask & ~kept


def safe_name(uid: str) -> str:
    """`uid` as part of a file name; a long one is shortened and ends with a digest."""
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in uid)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[:LONGEST_NAME - 9].decode(errors='ignore')}-{digest(uid)[:8]}"
