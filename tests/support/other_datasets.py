"""Small trees in the form of other data sets; `WRITERS` has one for each layout, by its name.

Each clip shows a bright square that moves to the right on a dark ground, which is the object; a second one stands
still. Videos with sound have a tone.
"""

import json
import wave
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refavs.data.layouts.annotated_videos import held_out
from refavs.data.rle import encoded, plain

SIZE = 48
RATE_HZ = 16_000
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


def names(split: str, num_train: int = 3) -> list[str]:
    """Names of videos, the training ones such that one of them is held out and the others are not."""
    made = [f"{split}{number:03}" for number in range(200)]
    if split != "train":
        return made[:1]
    held = next(name for name in made if held_out(name))
    return [*[name for name in made if not held_out(name)][: num_train - 1], held]


def square(second: int, standing: bool = False) -> np.ndarray:
    """The pixels of the moving, or of the standing object."""
    mask = np.zeros((SIZE, SIZE), bool)
    left = 2 + 3 * (0 if standing else second)
    mask[(30 if standing else 6) :, :][:14, left : left + 14] = True
    return mask


def picture(path: Path, second: int, shade: int) -> None:
    """A frame."""
    values = np.full((SIZE, SIZE, 3), 20 + shade % 40, np.uint8)
    values[square(second)] = (250, 200, shade % 200)
    values[square(second, standing=True)] = (30, 90, 220)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def label(path: Path, values: np.ndarray, palette: list[int] | None = None) -> None:
    """A mask; with a palette `values` are indices into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = Image.fromarray(values)
    if palette is not None:
        shown.putpalette(palette)
    shown.save(path)


def tone(path: Path, seconds: int, pitch_hz: float) -> None:
    """A sound file of the kind that its name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(seconds * RATE_HZ) / RATE_HZ
    samples = (8000 * np.sin(2 * np.pi * pitch_hz * times)).astype(np.int16)
    if path.suffix == ".wav":
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes(samples.tobytes())
    else:
        import soundfile

        soundfile.write(path, samples, RATE_HZ)


def write_s4(root: Path) -> Path:
    """Training clips with one label; the clip of `test` has no sound file."""
    lines, data = ["filename,start_sec,category,split"], root / "s4_data"
    for split in ("train", "val", "test"):
        for number, name in enumerate(names(split)):
            place = f"{split}/dog_barking/{name}"
            for k in range(1, 6):
                picture(data / "visual_frames" / place / f"{name}_{k}.png", k - 1, 7 * number)
            for k in range(1, 2 if split == "train" else 6):
                label(data / "gt_masks" / place / f"{name}_{k}.png", square(k - 1))
            if split != "test":
                tone(data / "audio_wav" / f"{place}.wav", 5, 200 + 50 * number)
            lines.append(f"{name},3,dog_barking,{split}")
    (root / "s4_meta_data.csv").write_text("\n".join(lines) + "\n")
    return root


def write_ms3(root: Path) -> Path:
    """Both objects sound; their masks have indices of their own."""
    lines, data = ["video_id,split"], root / "ms3_data"
    for split in ("train", "val", "test"):
        for number, name in enumerate(names(split)):
            for k in range(1, 6):
                picture(data / "visual_frames" / name / f"{name}.mp4_{k}.png", k - 1, 7 * number)
                both = square(k - 1) + 2 * square(k - 1, standing=True).astype(np.uint8)
                label(data / "gt_masks" / split / name / f"{name}_{k}.png", both.astype(np.uint8), PALETTE)
            tone(data / "audio_wav" / split / f"{name}.wav", 5, 200 + 50 * number)
            lines.append(f"{name},{split}")
    (root / "ms3_meta_data.csv").write_text("\n".join(lines) + "\n")
    return root


def write_avss(root: Path) -> Path:
    """A clip of each subset and split, labels in colours, and a row of a split that nobody has."""
    lines = ["vid,uid,s_min,s_sec,a_obj,split,label"]
    for subset, seconds in (("v1s", 5), ("v1m", 5), ("v2", 10)):
        for split in ("train", "val", "test"):
            uid = f"{subset}_{split}"
            folder = root / subset / uid
            for second in range(seconds):
                picture(folder / "frames" / f"{second}.jpg", second, len(lines))
                if (subset, split) != ("v1s", "train") or second == 0:
                    colours = np.where(square(second)[..., None], (0, 64, 128), 0).astype(np.uint8)
                    label(folder / "labels_rgb" / f"{second}.png", colours)
            tone(folder / "audio.wav", seconds, 200 + 50 * len(lines))
            lines.append(f"x,{uid},0,0,dog,{split},{subset}")
    lines.append("x,kept_back,0,0,dog,hidden,v2")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    (root / "label2idx.json").write_text("{}")
    return root


def write_omniavs(root: Path) -> Path:
    """Four frames a second; in the last second the moving object is gone. One expression of each kind."""
    videos: dict[str, Any] = {}
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for split, own in rows.items():
        for number, name in enumerate(names(split)):
            files = [f"{frame:05}.jpg" for frame in range(12)]
            for frame, file in enumerate(files):
                picture(root / "images" / name / file, frame // 4, 9 * number)
            tone(root / "audios" / f"{name}.mp3", 3, 300 + 60 * number)
            moving = [encoded(square(frame // 4)) if frame < 8 else None for frame in range(12)]
            standing = [plain(square(0, standing=True)) for _ in range(12)]
            videos[name] = {"file_name": files, "duration": 3.0, "mask_dict": {"1": moving, "2": standing}}
            for kind, text, objects in (
                ("text", "the one that moves", [1]), ("speech", "both of them", [2, 1]), ("text", "the elephant", []),
                ("text_sound", "the one that makes <audio>", [1]), ("speech_image", "the one like <image>", [2]),
            ):
                own.append({"exp_id": len(own), "video_name": name, "expr": text, "obj_id": objects,
                            "expr_type": kind, "expl": None})  # fmt: skip
        (root / f"meta_expressions_{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in own))
    (root / "video_dict.json").write_text(json.dumps(videos))
    return root


def write_mevis(root: Path) -> Path:
    """Videos of 24 frames, and one of 4; an expression about one object and one about two."""
    for split in ("train", "valid_u", "valid"):
        listed: dict[str, Any] = {}
        masks: dict[str, list[Any]] = {}
        for number, name in enumerate(names(split)):
            frames = [f"{frame:05}" for frame in range(4 if number == 1 else 24)]
            for frame, file in enumerate(frames):
                picture(root / split / "JPEGImages" / name / f"{file}.jpg", frame // 3, 9 * number)
            ids = [len(masks), len(masks) + 1]
            masks[str(ids[0])] = [encoded(square(frame // 3)) for frame in range(len(frames))]
            masks[str(ids[1])] = [encoded(square(0, standing=True)) for _ in frames]
            told = [{"exp": "moves to the right", "obj_id": [0], "anno_id": ids[:1]},
                    {"exp": "the two", "obj_id": [0, 1], "anno_id": ids}]  # fmt: skip
            if split == "valid":
                told = [{"exp": one["exp"]} for one in told]
            listed[name] = {"vid_id": number, "frames": frames, "expressions": dict(enumerate(told))}
        (root / split / "meta_expressions.json").write_text(json.dumps({"videos": listed}))
        if split != "valid":
            (root / split / "mask_dict.json").write_text(json.dumps(masks))
    return root


def write_ref_youtube_vos(root: Path) -> Path:
    """Videos of every fifth frame; an expression about each of two objects."""
    for split in ("train", "valid"):
        listed: dict[str, Any] = {}
        for number, name in enumerate(names(split)):
            frames = [f"{5 * frame:05}" for frame in range(20)]
            for frame, file in enumerate(frames):
                picture(root / split / "JPEGImages" / name / f"{file}.jpg", frame // 2, 9 * number)
                numbers = square(frame // 2) + 2 * square(0, standing=True).astype(np.uint8)
                if split == "train":
                    label(root / split / "Annotations" / name / f"{file}.png", numbers.astype(np.uint8), PALETTE)
            told = {str(k): {"exp": text, "obj_id": str(k + 1)} for k, text in enumerate(("it moves", "it stands"))}
            if split == "valid":
                told = {number: {"exp": one["exp"]} for number, one in told.items()}
            listed[name] = {"frames": frames, "expressions": told}
        path = root / "meta_expressions" / split / "meta_expressions.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"videos": listed}))
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {
    "avsbench-s4": write_s4, "avsbench-ms3": write_ms3, "avss": write_avss, "omniavs": write_omniavs,
    "mevis": write_mevis, "ref-youtube-vos": write_ref_youtube_vos,
}  # fmt: skip


def written(root: Path, layouts: Iterable[str] = WRITERS) -> dict[str, Path]:
    """A tree of each layout."""
    return {name: WRITERS[name](root / name) for name in layouts}
