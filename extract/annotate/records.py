"""The files of an annotation project: what each step writes and the next one reads.

    PROJECT/annotate.json                 `Project`
    PROJECT/clips/<id>/frames/<k>.jpg     the frame of second k
    PROJECT/clips/<id>/audio.wav          the sound, where the clip has one
    PROJECT/clips/<id>/scenes.json        `Scenes`
    PROJECT/clips/<id>/candidates.json    `Candidates`
    PROJECT/clips/<id>/masks.json         `Masks`

Each file is the JSON form of a dataclass below. Files that people or other programs changed are checked when they are
read: types, ranges of seconds, and the size of every mask.
"""

import json
import types
from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from refavs.data.rle import PlainRunLengths as RunLengths
from refavs.errors import DatasetError
from refavs.files.atomic import write_atomically
from refavs.files.source_files import open_file, reason_of
from refavs.files.tables import is_plain_path
from refavs.files.typed_json import OddRecord, read_json, shaped

SCHEMA = 1
PROJECT, CLIPS, FRAMES, SOUND = "annotate.json", "clips", "frames", "audio.wav"
SCENES, CANDIDATES, MASKS = "scenes.json", "candidates.json", "masks.json"
Origin = Literal["auto", "edited"]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in px
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class Project:
    """The settings of a project.

    Attributes:
        source: absolute path of the folder that the clips came from.
        layout: name of its layout.
        seconds: frames of a clip; a shorter film repeats its last frame.
        fps: frames per second.
        models: name and stamp of the weights of each model that was used: the `detector`, the `tracker` that made the
            candidates, and the one that made the `masks`.
        options: thresholds and other options of the steps.
    """

    schema: int = SCHEMA
    source: str
    layout: str
    seconds: int
    fps: float = 1.0
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    options: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The seconds between two cuts, inclusive."""

    first: int
    last: int

    @property
    def seconds(self) -> range:
        """Its seconds."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """The scenes of a clip; together they hold each second once, in order.

    Attributes:
        width: of the frames, px.
        seconds: number of frames.
        cuts_s: times of the cuts that were found, in seconds.
        method: how they were found.
        threshold: of the method; None where it has none.
        notes: lines for people, such as a scene that no frame falls into.
    """

    width: int
    height: int
    seconds: int
    scenes: tuple[Scene, ...]
    cuts_s: tuple[float, ...] = ()
    method: str
    threshold: float | None
    notes: tuple[str, ...] = ()

    def scene_of(self, second: int) -> int:
        """Number of the scene that a second belongs to."""
        return next(number for number, scene in enumerate(self.scenes) if second in scene.seconds)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A mask that the segmenter proposes, with the IoU that it expects of it."""

    rle: RunLengths
    iou_score: float


@dataclass(frozen=True, kw_only=True)
class ProposedObject:
    """An object in one scene.

    Attributes:
        fid: number of the object in the clip, from 1; the same in all scenes.
        scene: number of the scene.
        pivot: second in which it is clearest.
        detector_score: None where a person gave the box.
        label: what the detector called it.
        candidates: three masks.
        chosen: number of the candidate that a person chose; None takes the one with the best score.
    """

    fid: int
    name: str
    scene: int
    pivot: int
    box: Box
    detector_score: float | None
    label: str
    candidates: tuple[Candidate, ...]
    chosen: int | None = None

    @property
    def mask(self) -> RunLengths:
        """The chosen candidate, else the best one."""
        scores = [candidate.iou_score for candidate in self.candidates]
        return self.candidates[scores.index(max(scores)) if self.chosen is None else self.chosen].rle


@dataclass(frozen=True, kw_only=True)
class Request:
    """A row of the table of names.

    Attributes:
        pivot: second given for it; None searches all of them.
        box: given for the pivot; None asks the detector.
    """

    fid: int
    name: str
    pivot: int | None = None
    box: Box | None = None


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What was proposed for a clip.

    Attributes:
        requests: the rows of the table that it answers.
        problems: lines for people, such as an object that was not found.
    """

    requests: tuple[Request, ...] = ()
    objects: tuple[ProposedObject, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MaskSecond:
    """An object's mask in one second.

    Attributes:
        rle: the mask; None where the object is absent.
        presence: the tracker's probability that the object shows; 1 in the pivot, 0 in a scene without the object.
        origin: `edited` where a person made the mask, which no program overwrites.
    """

    second: int
    rle: RunLengths | None
    presence: float
    origin: Origin = "auto"
    scene: int


@dataclass(frozen=True, kw_only=True)
class TrackedObject:
    """The masks of an object, one entry for each second of the clip."""

    fid: int
    name: str
    seconds: tuple[MaskSecond, ...]


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The masks of a clip.

    Attributes:
        tracker: name of the model.
        revision: stamp of its weights.
        inputs: digest of the candidates and edited masks that it was given, by which a rerun knows what is done.
        problems: lines for people.
    """

    objects: tuple[TrackedObject, ...]
    tracker: str
    revision: str
    inputs: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClipFiles:
    """The files of a clip in a project."""

    folder: Path

    def frame(self, second: int) -> Path:
        """The picture of a second."""
        return self.folder / FRAMES / f"{second}.jpg"

    @property
    def sound(self) -> Path:
        """The sound; there is none where the clip is silent."""
        return self.folder / SOUND

    def scenes(self) -> Scenes:
        """The scenes.

        Raises:
            DatasetError: the file is missing or damaged, as for the two below.
        """
        found = read_record(self.folder / SCENES, Scenes)
        covered = [second for scene in found.scenes for second in scene.seconds]
        if covered != list(range(found.seconds)):
            raise _odd(self.folder / SCENES, f"its scenes do not hold the seconds 0 to {found.seconds - 1} in order")
        return found

    def candidates(self) -> Candidates:
        """What was proposed."""
        path, scenes = self.folder / CANDIDATES, self.scenes()
        found = read_record(path, Candidates)
        for number, one in enumerate(found.objects):
            where = f"objects.{number}"
            if not 0 <= one.scene < len(scenes.scenes) or one.pivot not in scenes.scenes[one.scene].seconds:
                raise _odd(path, f"{where} has its pivot {one.pivot} outside of scene {one.scene}")
            if not one.candidates or one.chosen not in (None, *range(len(one.candidates))):
                raise _odd(path, f"{where}.chosen is {one.chosen}; accepted: null, or 0 to {len(one.candidates) - 1}")
            for candidate in one.candidates:
                _check_mask(path, where, candidate.rle, scenes)
        return found

    def masks(self) -> Masks:
        """The masks of every second."""
        path, scenes = self.folder / MASKS, self.scenes()
        found = read_record(path, Masks)
        for number, one in enumerate(found.objects):
            if [each.second for each in one.seconds] != list(range(scenes.seconds)):
                raise _odd(path, f"objects.{number} does not have the seconds 0 to {scenes.seconds - 1} in order")
            for each in one.seconds:
                if each.rle is not None:
                    _check_mask(path, f"objects.{number}, second {each.second}", each.rle, scenes)
        return found

    def write(self, record: Scenes | Candidates | Masks) -> None:
        """Replaces the file of a record."""
        names = {Scenes: SCENES, Candidates: CANDIDATES, Masks: MASKS}
        write_record(self.folder / names[type(record)], record)


@dataclass(frozen=True)
class ProjectFolder:
    """An annotation project on disk."""

    path: Path

    def clip(self, clip_id: str) -> ClipFiles:
        """The files of a clip, which need not exist."""
        return ClipFiles(self.path / CLIPS / clip_id)

    def clips(self) -> list[str]:
        """Ids of the clips that have been proposed, sorted; an id may contain slashes."""
        root = self.path / CLIPS
        found = [path.parent.relative_to(root).as_posix() for path in root.rglob(SCENES)]
        return sorted(name for name in found if is_plain_path(name))

    @property
    def exists(self) -> bool:
        """Whether there is a project."""
        return (self.path / PROJECT).exists()

    def settings(self) -> Project:
        """The settings.

        Raises:
            DatasetError: there is no project, or it was made by a newer version.
        """
        if not self.exists:
            raise DatasetError(f"{self.path} is no annotation project: it has no {PROJECT}; make one by "
                               "refavs-annotate propose")  # fmt: skip
        found = read_record(self.path / PROJECT, Project)
        if found.schema != SCHEMA:
            raise DatasetError(f"{self.path / PROJECT} has schema {found.schema}; this version reads {SCHEMA}; use the "
                               "version that made it, or a new project")  # fmt: skip
        return found

    def write(self, settings: Project) -> None:
        """Replaces the settings."""
        write_record(self.path / PROJECT, settings)


def read_record(path: Path, kind: type[Record]) -> Record:
    """Reads a record from its JSON file.

    Raises:
        DatasetError: the file is missing, no JSON, or of another shape; the message names the place.
    """
    try:
        with open_file(path) as file:
            found = read_json(file.read())
        return _built(kind, found, path.name)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; run the step that writes it again (refavs-annotate --help)") from error
    except OddRecord as error:
        raise _odd(path, str(error)) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({reason_of(error)}); copy it again") from error


def write_record(path: Path, record: Any) -> None:
    """Replaces a record's JSON file, whole or not at all."""
    write_atomically(path, json.dumps(asdict(record), ensure_ascii=False, indent=1).encode())


def _odd(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path}: {what}; correct the file, or remove it and run the step that writes it again")


def _check_mask(path: Path, where: str, mask: RunLengths, scenes: Scenes) -> None:
    if mask["size"] != [scenes.height, scenes.width]:
        raise _odd(path, f"{where} has a mask of {mask['size']}; accepted: [{scenes.height}, {scenes.width}], height "
                         "and width of the frames")  # fmt: skip
    if sum(mask["counts"]) != scenes.height * scenes.width or min(mask["counts"]) < 0:
        raise _odd(path, f"{where} has a mask whose runs add up to {sum(mask['counts'])} pixels, not "
                         f"{scenes.height * scenes.width}")  # fmt: skip


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _built(kind: Any, value: Any, where: str) -> Any:
    """Builds dataclasses, and tuples of them, from JSON; other values are only checked.

    Raises:
        OddRecord: the value has another shape.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        shaped(value, dict, where)
        missing = [each.name for each in fields(kind) if each.name not in value and _required(each)]
        if missing:
            raise OddRecord(f"{where} has no {missing[0]!r}")
        hints = _hints(kind)  # type: ignore[arg-type]
        make: Any = kind
        return make(**{name: _built(hints[name], value[name], f"{where}.{name}") for name in hints if name in value})
    if origin is tuple:
        items: Sequence[Any] = shaped(value, list[Any], where)
        kinds = arguments[:1] * len(items) if arguments[-1] is ... else arguments
        if len(items) != len(kinds):
            raise OddRecord(f"{where} has {len(items)} values; accepted: {len(kinds)}")
        return tuple(_built(each, item, f"{where}.{number}")
                     for number, (each, item) in enumerate(zip(kinds, items, strict=True)))  # fmt: skip
    if origin in (Union, types.UnionType) and type(None) in arguments and len(arguments) == 2:
        return None if value is None else _built(arguments[0], value, where)
    return shaped(value, kind, where)


def _required(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING
