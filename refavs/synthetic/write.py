"""Writes the synthetic benchmark in the layout of the real one; one seed always gives the same bytes.

    OUT/metadata.csv                             vid,uid,split,fid,exp
    OUT/expressions.csv                          uid,grade,dimension,template
    OUT/media/<id>/{frames/{0..9}.jpg,audio.wav}
    OUT/gt_mask/<id>/fid_<fid>/0000{0..9}.png
    OUT/videos/<id>.mp4                          some of the clips again, as video files
    OUT/synthetic.json                           the settings
"""

import errno
import json
import wave
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import Int16, UInt8
from PIL import Image

from refavs.choices import DEFAULT_VIDEOS
from refavs.errors import DatasetError
from refavs.files.tables import csv_bytes
from refavs.files.whole_folder import whole_folder
from refavs.synthetic.plan import DrawnClip, ExpressionRow, Medium, Settings, draw_clip, generator, plan
from refavs.synthetic.scene import DURATION_S, SEEN_CATEGORIES, render
from refavs.synthetic.voices import SAMPLE_RATE_HZ, synthesise
from refavs.terminal.console import ProgressBar

_NUM_FRAMES = 10
VIDEO_FPS = 10


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of what was written: original clips, null copies, videos, and expressions of each split."""

    num_clips: int
    num_nulls: int
    num_videos: int
    expressions: dict[str, int]


def write_benchmark(
    out: Path | str, num_clips: int, seed: int = 0, size: int = 96, videos: bool | int = True
) -> Summary | None:
    """Writes the synthetic benchmark to a new or empty folder.

    Args:
        out: the folder; it appears only when it is complete.
        num_clips: original clips; null references add copies of some of them with another sound.
        seed: runs with the same settings write the same bytes, except in videos.
        size: side of the square frames in pixels.
        videos: how many clips are also written as .mp4 (True: the first 16; False: none).

    Returns:
        What was written, or None if the folder already holds exactly this benchmark.

    Raises:
        ConfigError: a setting out of range.
        DatasetError: the folder holds something else.
    """
    wanted = DEFAULT_VIDEOS if videos is True else int(videos)
    settings = Settings(num_clips=num_clips, seed=seed, size=size, num_videos=min(wanted, num_clips))
    out = Path(out).resolve()
    media, rows = plan(settings)
    if _already_there(out, settings, media, rows):
        return None
    try:
        with whole_folder(out) as partial:
            _write_all(partial, settings, media, rows)
    except OSError as error:
        another_was_faster = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        if another_was_faster and _already_there(out, settings, media, rows):
            return None
        raise
    return Summary(
        num_clips=num_clips,
        num_nulls=len(media) - num_clips,
        num_videos=settings.num_videos,
        expressions=dict(Counter(row.split for row in rows)),
    )


def _fids(rows: Sequence[ExpressionRow]) -> dict[str, list[int]]:
    """The objects with masks of each clip, by the clip's folder."""
    fids: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        fids[row.uid.rsplit("_", 2)[0]].add(row.fid)
    return {folder: sorted(found) for folder, found in fids.items()}


def _write_all(root: Path, settings: Settings, media: Sequence[Medium], rows: Sequence[ExpressionRow]) -> None:
    fids = _fids(rows)
    with ProgressBar("refavs-synth", len(media), "clips") as progress:
        for medium in media:
            clip = draw_clip(settings, medium.clip)
            samples = track(settings, clip, medium.null)
            _write_medium(root, medium, clip, samples, fids.get(medium.id, []), _has_video(medium, settings))
            progress.advance()
    for name, data in _tables(rows).items():
        (root / name).write_bytes(data)
    (root / "synthetic.json").write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")


def _tables(rows: Sequence[ExpressionRow]) -> dict[str, bytes]:
    """The content of each table, by file name."""
    of_expressions = ((row.uid, row.template.grade, row.template.dimension, row.template.pattern) for row in rows)
    metadata = ((row.vid, row.uid, row.split, row.fid, row.text) for row in rows)
    return {
        "expressions.csv": csv_bytes(("uid", "grade", "dimension", "template"), of_expressions),
        "metadata.csv": csv_bytes(("vid", "uid", "split", "fid", "exp"), metadata),
    }


def _has_video(medium: Medium, settings: Settings) -> bool:
    return not medium.null and medium.clip < settings.num_videos


def track(settings: Settings, clip: DrawnClip, null: str = "") -> Int16[np.ndarray, " n"]:
    """The sound of a clip, or of its null copy: silence ("m"), or voices of categories absent from the clip ("c")."""
    sounding = [(name, found) for name, found in zip(clip.categories, clip.schedules, strict=True) if found is not None]
    if null == "m":
        sounding = []
    elif null == "c":
        absent = [category for category in SEEN_CATEGORIES if category not in clip.categories]
        names = generator(settings, clip.index, 3).permutation(absent).tolist()
        sounding = [(name, found) for name, (_, found) in zip(names, sounding, strict=False)]
    return synthesise(sounding, generator(settings, clip.index, 4))


def _write_medium(
    root: Path, medium: Medium, clip: DrawnClip, samples: Int16[np.ndarray, " n"], fids: Sequence[int], video: bool
) -> None:
    frames = root / "media" / medium.id / "frames"
    frames.mkdir(parents=True)
    folders = [root / "gt_mask" / medium.id / f"fid_{fid}" for fid in fids]
    for folder in folders:
        folder.mkdir(parents=True)
    for second in range(_NUM_FRAMES):
        frame, labels = render(clip.scene, float(second))
        Image.fromarray(frame).save(frames / f"{second}.jpg", quality=95, subsampling=0)
        for fid, folder in zip(fids, folders, strict=True):
            mask = labels[fid] & (not medium.null)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{second:05d}.png")
    write_wav(frames.parent / "audio.wav", samples)
    if video:
        moments = (np.arange(round(DURATION_S * VIDEO_FPS)) / VIDEO_FPS).tolist()
        moving = np.stack([render(clip.scene, time_s)[0] for time_s in moments])
        (root / "videos").mkdir(exist_ok=True)
        write_video(root / "videos" / f"{medium.id}.mp4", moving, samples)


def write_video(path: Path, frames: UInt8[np.ndarray, "f h w 3"], samples: Int16[np.ndarray, " n"]) -> None:
    """Writes an .mp4 with H.264 at 10 frames per second and the 16 kHz track as AAC."""
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "14", "threads": "1"}
        picture = container.add_stream("libx264", rate=VIDEO_FPS, options=options)
        sound = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono", options={"aac_coder": "fast"})
        picture.pix_fmt = "yuv420p"
        picture.height, picture.width = frames.shape[1:3]
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts = number
            container.mux(picture.encode(image))
        block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        block.sample_rate = SAMPLE_RATE_HZ
        block.pts = 0  # else the encoder's priming samples count as sound and delay it
        container.mux(sound.encode(block))
        container.mux(picture.encode())
        container.mux(sound.encode())


def write_wav(path: Path, samples: Int16[np.ndarray, " n"]) -> None:
    """Writes a 16 kHz mono track."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())


def _already_there(out: Path, settings: Settings, media: Sequence[Medium], rows: Sequence[ExpressionRow]) -> bool:
    """Whether the folder holds this benchmark; raises DatasetError if it holds anything else."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise DatasetError(f"{path} is a file; name a folder that does not exist yet.")
    if not out.is_dir() or not any(out.iterdir()):
        return False
    record = out / "synthetic.json"
    if not record.is_file():
        raise DatasetError(f"{out} holds other files; name a new or empty folder.")
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{record} is damaged ({error}); name another folder or delete {out}.") from error
    if found != asdict(settings):
        raise DatasetError(
            f"{out} holds a synthetic benchmark made with {found}, this run asks for {asdict(settings)}; "
            "name another folder or delete that one."
        )
    for name in _wrong(out, settings, media, rows):
        raise DatasetError(
            f"{out} holds a damaged synthetic benchmark: {name} is missing, empty or changed; move what you want to "
            f"keep out of it and delete it, then run the same command again, or name another folder."
        )
    return True


def _wrong(out: Path, settings: Settings, media: Sequence[Medium], rows: Sequence[ExpressionRow]) -> Iterator[str]:
    """Files that are missing or empty, and tables that have changed."""
    for name, data in _tables(rows).items():
        if not (out / name).is_file() or (out / name).read_bytes() != data:
            yield name
    fids = _fids(rows)
    for medium in media:
        names = [f"media/{medium.id}/audio.wav"]
        names += [f"media/{medium.id}/frames/{second}.jpg" for second in range(_NUM_FRAMES)]
        names += [f"gt_mask/{medium.id}/fid_{fid}/{second:05d}.png"
                  for fid in fids.get(medium.id, []) for second in range(_NUM_FRAMES)]  # fmt: skip
        names += [f"videos/{medium.id}.mp4"] * _has_video(medium, settings)
        yield from (name for name in names if not _holds_something(out / name))


def _holds_something(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False
