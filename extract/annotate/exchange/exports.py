"""What leaves a project for a label tool and what comes back.

    PROJECT/exports/<n>/export.json                    `Export`
    PROJECT/exports/<n>/clips/<id>/masks.json          the masks as exported, by which edits are recognised
    PROJECT/imports/<annotator>/clips/<id>/masks.json  the masks as an annotator left them
    PROJECT/imports/<annotator>/report.json            what the annotator changed
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from extract.annotate.records import MASKS, ClipFiles, Masks, ProjectFolder, RunLengths, read_record
from refavs.data.rle import decoded
from refavs.errors import ConfigError, DatasetError
from refavs.files.tables import is_plain_path

EXPORTS, IMPORTS, EXPORT, REPORT = "exports", "imports", "export.json", "report.json"


@dataclass(frozen=True, kw_only=True)
class Export:
    """One export.

    Attributes:
        format: one of `FORMATS`.
        clips: ids of its clips.
    """

    format: str
    clips: tuple[str, ...]


def file_id(clip_id: str) -> str:
    """A clip's id in file names of tools and benchmarks, which have no folders."""
    return clip_id.replace("/", "--")


def by_file_id(clip_ids: Iterable[str]) -> dict[str, str]:
    """Ids of clips by their ids in file names.

    Raises:
        DatasetError: two clips would get the same one.
    """
    found: dict[str, str] = {}
    for clip_id in clip_ids:
        other = found.setdefault(file_id(clip_id), clip_id)
        if other != clip_id:
            raise DatasetError(f"clips {other!r} and {clip_id!r} would both be called {file_id(clip_id)!r}; rename one "
                               "of the videos and propose it again")  # fmt: skip
    return found


def chosen_clips(project: ProjectFolder, wanted: str | None) -> tuple[list[str], list[str]]:
    """The clips of a comma-separated list that have masks, by default all; and a line for each damaged one.

    Raises:
        ConfigError: the project has no such clip.
        DatasetError: none has masks.
    """
    project.settings()
    every = project.clips()
    names = every if wanted is None else [name.strip() for name in wanted.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(every)):
        known = ", ".join(every[:5]) + (", ..." if len(every) > 5 else "")
        raise ConfigError(f"--clips: the project has no clip {unknown[0]!r}; it has {known}")
    found = [name for name in every if name in set(names) and (project.clip(name).folder / MASKS).exists()]
    if not found:
        raise DatasetError(f"{project.path} has no masks yet; run refavs-annotate track {project.path}")
    problems = {}
    for name in found:
        try:
            project.clip(name).masks()
        except DatasetError as error:
            problems[name] = f"clip {name} is left out: {error}"
    if len(problems) == len(found):
        raise DatasetError(f"no clip of {project.path} can be used; {next(iter(problems.values()))}")
    return [name for name in found if name not in problems], list(problems.values())


def export_folder(project: ProjectFolder, number: int) -> Path:
    """The folder of an export in the project."""
    return project.path / EXPORTS / str(number)


def export_numbers(project: ProjectFolder) -> list[int]:
    """The numbers of all exports in ascending order."""
    folder = project.path / EXPORTS
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def imported(project: ProjectFolder, annotator: str) -> ProjectFolder:
    """What an annotator returned; only its clips are used.

    Raises:
        ConfigError: the name cannot be that of a folder.
    """
    if "/" in annotator or not is_plain_path(annotator):
        raise ConfigError(f"annotator {annotator!r}; accepted: a plain name such as anna")
    return ProjectFolder(project.path / IMPORTS / annotator)


def clips_with_masks(folder: ProjectFolder) -> list[str]:
    """The clips of an import."""
    root = folder.clip("").folder
    return sorted(path.parent.relative_to(root).as_posix() for path in root.rglob(MASKS)) if root.is_dir() else []


def masks_in(files: ClipFiles) -> Masks:
    """The masks of an export or import, which have no scenes beside them."""
    return read_record(files.folder / MASKS, Masks)


def copy_frame(files: ClipFiles, second: int, target: Path) -> None:
    """Copies the frame of a second.

    Raises:
        DatasetError: it is missing.
    """
    try:
        shutil.copyfile(files.frame(second), target)
    except FileNotFoundError as error:
        raise DatasetError(f"{files.frame(second)} is missing; copy it back, or remove {files.folder} and propose the "
                           "clip again") from error  # fmt: skip


def picture(rle: RunLengths | None, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The mask; an absent object has an empty one."""
    return np.zeros((height, width), bool) if rle is None else decoded(rle)
