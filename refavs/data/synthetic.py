"""The synthetic benchmark, written in the layout of the real one, byte for byte the same from one seed.

    OUT/metadata.csv                             vid,uid,split,fid,exp
    OUT/expressions.csv                          uid,grade,dimension,template
    OUT/media/<id>/{frames/{0..9}.jpg,audio.wav}
    OUT/gt_mask/<id>/fid_<fid>/0000{0..9}.png
    OUT/videos/<id>.mp4                          some of the clips once more, as real containers
    OUT/synthetic.json                           the settings it was made with
"""

import csv
import json
import shutil
import wave
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import Bool, Int16, UInt8
from PIL import Image

from refavs.console import ProgressBar
from refavs.data.scene import DURATION_S, SEEN_CATEGORIES, render
from refavs.data.sound import SAMPLE_RATE_HZ, synthesise
from refavs.data.synthetic_plan import DEFAULT_VIDEOS, Clip, Medium, Row, Settings, draw_clip, generator, plan
from refavs.errors import DatasetError

_NUM_FRAMES = 10
_VIDEO_FPS = 10


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was written: clips of their own, null copies, videos, and expressions of each split."""

    num_clips: int
    num_nulls: int
    num_videos: int
    expressions: dict[str, int]


def write_benchmark(
    out: Path | str, num_clips: int, seed: int = 0, size: int = 96, videos: bool | int = True
) -> Summary | None:
    """Writes the synthetic benchmark to a folder that does not exist yet, or is empty.

    Args:
        out: the folder; it appears only when it is complete.
        num_clips: clips of their own; null references add copies of some of them with another sound.
        seed: two runs with the same settings write the same bytes (videos excepted).
        size: side of the square frames in pixels.
        videos: how many clips also become an .mp4 (True: the first 16; False: none).

    Returns:
        What was written, or None when the folder already holds exactly this benchmark and nothing was done.

    Raises:
        ConfigError: a setting out of range.
        DatasetError: the folder holds something else.
    """
    wanted = DEFAULT_VIDEOS if videos is True else int(videos)
    settings = Settings(num_clips=num_clips, seed=seed, size=size, num_videos=min(wanted, num_clips))
    out = Path(out).resolve()
    if _already_there(out, settings):
        return None
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    media, rows = plan(settings)
    try:
        _write_all(partial, settings, media, rows)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Summary(
        num_clips=num_clips,
        num_nulls=len(media) - num_clips,
        num_videos=settings.num_videos,
        expressions=dict(Counter(row.split for row in rows)),
    )


def _write_all(root: Path, settings: Settings, media: Sequence[Medium], rows: Sequence[Row]) -> None:
    fids: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        folder = row.uid.rsplit("_", 2)[0]
        if row.fid not in fids[folder]:
            fids[folder].append(row.fid)
    with ProgressBar("refavs-synth", len(media), "clips") as progress:
        for medium in media:
            clip = draw_clip(settings, medium.clip)
            samples = track(settings, clip, medium.null)
            video = not medium.null and medium.clip < settings.num_videos
            _write_medium(root, medium, clip, samples, sorted(fids[medium.id]), video)
            progress.advance()
    _write_csv(
        root / "expressions.csv", ("uid", "grade", "dimension", "template"),
        ((row.uid, row.template.grade, row.template.dimension, row.template.pattern) for row in rows),
    )
    (root / "synthetic.json").write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")
    _write_csv(
        root / "metadata.csv", ("vid", "uid", "split", "fid", "exp"),
        ((row.vid, row.uid, row.split, row.fid, row.text) for row in rows),
    )


def track(settings: Settings, clip: Clip, null: str = "") -> Int16[np.ndarray, " n"]:
    """The sound of a clip, or of its null copy: nothing ("m"), or voices of categories that are not in it ("c")."""
    sounding = [(name, found) for name, found in zip(clip.categories, clip.schedules, strict=True) if found is not None]
    if null == "m":
        sounding = []
    elif null == "c":
        absent = [category for category in SEEN_CATEGORIES if category not in clip.categories]
        names = generator(settings, clip.index, 3).permutation(absent).tolist()
        sounding = [(name, found) for name, (_, found) in zip(names, sounding, strict=False)]
    return synthesise(sounding, generator(settings, clip.index, 4))


def _write_medium(
    root: Path, medium: Medium, clip: Clip, samples: Int16[np.ndarray, " n"], fids: Sequence[int], video: bool
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
            _write_mask(folder / f"{second:05d}.png", labels[fid] & (not medium.null))
    write_wav(frames.parent / "audio.wav", samples)
    if video:
        moments = (np.arange(round(DURATION_S * _VIDEO_FPS)) / _VIDEO_FPS).tolist()
        moving = np.stack([render(clip.scene, time_s)[0] for time_s in moments])
        (root / "videos").mkdir(exist_ok=True)
        write_video(root / "videos" / f"{medium.id}.mp4", moving, samples)


def write_video(path: Path, frames: UInt8[np.ndarray, "f h w 3"], samples: Int16[np.ndarray, " n"]) -> None:
    """Writes an .mp4 with H.264 at 10 frames per second and the 16 kHz track as AAC."""
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "14", "threads": "1"}
        picture = container.add_stream("libx264", rate=_VIDEO_FPS, options=options)
        sound = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono", options={"aac_coder": "fast"})
        picture.pix_fmt = "yuv420p"
        picture.height, picture.width = frames.shape[1:3]
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts = number
            container.mux(picture.encode(image))
        block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        block.sample_rate = SAMPLE_RATE_HZ
        block.pts = 0  # else the encoder's start-up samples are taken for sound, and delay it
        container.mux(sound.encode(block))
        container.mux(picture.encode())
        container.mux(sound.encode())


def _write_mask(path: Path, mask: Bool[np.ndarray, "h w"]) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def write_wav(path: Path, samples: Int16[np.ndarray, " n"]) -> None:
    """Writes a 16 kHz mono track."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _already_there(out: Path, settings: Settings) -> bool:
    """Whether the folder holds this benchmark; DatasetError where it holds anything else."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise DatasetError(f"{path} is a file; name a folder that does not exist yet.")
    if not out.is_dir() or not any(out.iterdir()):
        return False
    record = out / "synthetic.json"
    if not record.is_file():
        raise DatasetError(f"{out} holds other files; name a folder that does not exist yet, or is empty.")
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{record} is damaged ({error}); name another folder or delete {out}.") from error
    if found != asdict(settings):
        raise DatasetError(
            f"{out} holds a synthetic benchmark made with {found}, this run asks for {asdict(settings)}; "
            "name another folder or delete that one."
        )
    return True
