"""Content keys: clips with identical frames, or identical audio, share a row in each stream."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.files.source_files import open_file, reason_of
from refavs.machine.processors import num_processors
from refavs.steps import Steps

MOST_THREADS = 32
SILENCE = "silence"  # the key of missing audio


@dataclass(frozen=True, kw_only=True)
class Content:
    """The content keys of a clip.

    Attributes:
        frames: its key in the visual streams.
        sound: its key in the audio streams.
    """

    frames: str
    sound: str

    def key(self, modality: str) -> str:
        """Its key in the streams of a modality."""
        return self.frames if modality == "visual" else self.sound


def content_of(clip: Clip, steps: Steps) -> Content:
    """SHA-256 of the files that a clip is made from.

    For a video both keys are the hash of the file; otherwise the key of the frames is the hash of their hashes.

    Raises:
        DatasetError: a file is missing or cannot be read, or the clip has no picture at the time of a step.
    """
    if clip.video is not None:
        whole = _hash("video", clip.video, clip.root)
        return Content(frames=whole, sound=whole)
    frames = hashlib.sha256(
        "".join(_hash("frame", path, clip.root) for path in clip.pictures(steps)).encode()
    ).hexdigest()
    heard = clip.audio is not None and clip.audio.exists()
    sound = _hash("sound", clip.audio, clip.root) if heard and clip.audio is not None else SILENCE
    return Content(frames=frames, sound=sound)


def contents_of(
    clips: Sequence[Clip], steps: Steps, done: Callable[[], object] = lambda: None
) -> tuple[dict[str, Content], dict[str, str]]:
    """The content keys of clips by id, and the reasons why others cannot be read; uses several threads.

    Args:
        done: called after each clip.
    """

    def content(clip: Clip) -> Content | str:
        try:
            return content_of(clip, steps)
        except DatasetError as error:
            return str(error)

    found: dict[str, Content] = {}
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(min(MOST_THREADS, 4 * num_processors(), max(1, len(clips))), "hash") as pool:
        for clip, each in zip(clips, pool.map(content, clips), strict=True):
            done()
            if isinstance(each, Content):
                found[clip.id] = each
            else:
                unreadable[clip.id] = each
    return found, unreadable


def _hash(what: str, path: Path, within: Path | None) -> str:
    try:
        with open_file(path, within) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DatasetError(f"{what} {path} is missing; copy it again") from error
    except OSError as error:
        raise DatasetError(f"{what} {path} cannot be read ({reason_of(error)}); copy or encode it again") from error
