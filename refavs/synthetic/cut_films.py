"""Films with a cut, for trying an annotation: another camera shows the same objects from a second on.

    OUT/videos/<id>.mp4
    OUT/names.csv      vid,name
    OUT/facts.csv      clip,fid,class,colour,sound: what people would say about the objects
    OUT/truth.json     `Truth` of each film

Objects are numbered from 1 in the order of names.csv.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from refavs.data.rle import PlainRunLengths, plain
from refavs.errors import DatasetError
from refavs.files.plain_file import read_plain
from refavs.files.tables import csv_bytes
from refavs.files.typed_json import Count, OddRecord, read_json, shaped
from refavs.files.whole_folder import refuse_full, whole_folder
from refavs.synthetic.plan import DrawnClip, Settings, draw_clip, generator
from refavs.synthetic.scene import DURATION_S, Scene, SceneObject, make_scene, render
from refavs.synthetic.voices import SoundSchedule
from refavs.synthetic.write import VIDEO_FPS, track, write_video
from refavs.terminal.console import ProgressBar

TRUTH, NAMES, FACTS, VIDEOS = "truth.json", "names.csv", "facts.csv", "videos"
_CUTS = (3, 4, 5, 6, 7)  # seconds
_PURPOSE = 5  # of the random numbers, see `generator`
_MOST_BYTES = 2**28


class Truth(TypedDict):
    """What a film shows.

    Attributes:
        cut: the first second of the second scene.
        names: of the objects.
        masks: of each object in each second.
    """

    cut: Count
    names: list[str]
    masks: list[list[PlainRunLengths]]


def write_cut_films(out: Path, num_clips: int, seed: int = 0, size: int = 96) -> None:
    """Writes films into a new or empty folder.

    Raises:
        ConfigError: a setting is out of range, or the folder holds files.
    """
    settings = Settings(num_clips=num_clips, seed=seed, size=size)
    out = out.resolve()
    refuse_full(out)
    truths: dict[str, Truth] = {}
    names: list[tuple[str, str]] = []
    facts: list[tuple[object, ...]] = []
    with whole_folder(out) as folder, ProgressBar("films with cuts", num_clips, "films") as progress:
        (folder / VIDEOS).mkdir()
        for index in range(num_clips):
            clip, scenes, cut = cut_clip(settings, index)
            truths[clip.id] = _write_film(folder / VIDEOS / f"{clip.id}.mp4", settings, clip, scenes, cut)
            names += [(clip.id, name) for name in clip.categories]
            facts += [(clip.id, fid, item.category, item.colour, _sound_text(schedule)) for fid, (item, schedule)
                      in enumerate(zip(clip.scene.objects, clip.schedules, strict=True), start=1)]  # fmt: skip
            progress.advance()
        (folder / NAMES).write_bytes(csv_bytes(("vid", "name"), names))
        (folder / FACTS).write_bytes(csv_bytes(("clip", "fid", "class", "colour", "sound"), facts))
        (folder / TRUTH).write_text(json.dumps(truths), encoding="utf-8")


def cut_clip(settings: Settings, index: int) -> tuple[DrawnClip, tuple[Scene, Scene], int]:
    """A clip, its two scenes, and the second of the cut."""
    clip = draw_clip(settings, index)
    rng = generator(settings, index, _PURPOSE)
    staged = make_scene(rng, settings.size, clip.categories)
    objects = tuple(_seen_again(new, old) for new, old in zip(staged.objects, clip.scene.objects, strict=True))
    return clip, (clip.scene, replace(staged, objects=objects)), int(rng.choice(_CUTS))


def _seen_again(new: SceneObject, old: SceneObject) -> SceneObject:
    return replace(new, colour=old.colour, rgb=old.rgb, visible_from_s=old.visible_from_s)


def _write_film(path: Path, settings: Settings, clip: DrawnClip, scenes: tuple[Scene, Scene], cut: int) -> Truth:
    def rendered(time_s: float) -> tuple[np.ndarray, np.ndarray]:
        return render(scenes[time_s >= cut], time_s)

    moments = (np.arange(round(DURATION_S * VIDEO_FPS)) / VIDEO_FPS).tolist()
    write_video(path, np.stack([rendered(time_s)[0] for time_s in moments]), track(settings, clip))
    by_second = [rendered(float(second))[1] for second in range(round(DURATION_S))]
    masks = [[plain(labels[index]) for labels in by_second] for index in range(len(clip.categories))]
    return Truth(cut=cut, names=list(clip.categories), masks=masks)


def _sound_text(schedule: SoundSchedule | None) -> str:
    """When and how loudly, as a table of facts says it: `0-10@-6`, from -20 to -6 dB `0-10@-20..-6`."""
    if schedule is None:
        return "silent"
    levels = [f"{20 * np.log10(gain):.6f}" for gain in (schedule.gain_from, schedule.gain_to)]
    level = levels[0] if levels[0] == levels[1] else "..".join(levels)
    return f"{schedule.on_s:g}-{schedule.off_s:g}@{level}"


def read_truth(folder: Path) -> dict[str, Truth]:
    """What the films of a folder show, by clip.

    Raises:
        DatasetError: it holds no such films.
    """
    try:
        return shaped(read_json(read_plain(folder / TRUTH, _MOST_BYTES)), dict[str, Truth])
    except (OSError, OddRecord) as error:
        raise DatasetError(f"{folder} holds no films with known masks ({' '.join(str(error).split())}); make some by "
                           "refavs-synth --cut-films") from error  # fmt: skip
