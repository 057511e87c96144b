"""Which clips are made from the same bytes, so that their features are computed and stored once.

The same video under two names shares everything. A benchmark clip whose frames are another's, as a null clip's are its
base clip's, shares the visual features, and the sound's as well only if that is the same too.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.files.source_files import open_file, reason_of
from refavs.machine.processors import num_processors

VISUAL, AUDIO = "clips/visual", "clips/audio"
VISUAL_INPUT, AUDIO_INPUT = "visual_input", "audio_input"
# Digests that must be equal for what lies under each start of array paths to be shared.
INPUTS = {VISUAL: (VISUAL_INPUT,), AUDIO: (VISUAL_INPUT, AUDIO_INPUT)}
MOST_THREADS = 32

Digests = dict[str, str]
Shared = Mapping[str, Mapping[str, str]]


def input_digests(clip: Clip, num_frames: int) -> Digests:
    """SHA-256 of the bytes that each stream of a clip is made from; that of the sound is empty where there is no file.

    Both are the video's where the clip is one; otherwise the first is of the frames' digests, one after the other.

    Raises:
        DatasetError: a file is missing or cannot be read.
    """
    if clip.video is not None:
        whole = _file_digest(clip.video, clip.root)
        return {VISUAL_INPUT: whole, AUDIO_INPUT: whole}
    frames = [_file_digest(path, clip.root) for path in clip.frames[:num_frames]]
    heard = clip.audio is not None and clip.audio.exists()
    return {
        VISUAL_INPUT: hashlib.sha256("".join(frames).encode()).hexdigest(),
        AUDIO_INPUT: _file_digest(clip.audio, clip.root) if heard and clip.audio is not None else "",
    }


def digests_of(clips: Sequence[Clip], num_frames: int) -> dict[str, Digests]:
    """`input_digests` of many clips, read by several threads; clips that cannot be read are left out."""

    def digests(clip: Clip) -> Digests | None:
        try:
            return input_digests(clip, num_frames)
        except DatasetError:
            return None

    num_threads = min(MOST_THREADS, 4 * num_processors(), max(1, len(clips)))
    with ThreadPoolExecutor(num_threads, "digest") as pool:
        found = zip(clips, pool.map(digests, clips), strict=True)
        return {clip.id: each for clip, each in found if each is not None}


def shared_inputs(
    clips: Iterable[Clip], num_frames: int, noted: Mapping[str, Mapping[str, str]], shared: Shared
) -> dict[str, dict[str, str]]:
    """Of clips that the store lacks and that have the same input as another one: that other one, for each stream.

    The other one is a clip that the store has, or one that clips of the store wait for, or the one that comes first by
    its id; it is never one that shares itself. So an interrupted run finds what the undisturbed one would have found.

    Args:
        clips: those of the source.
        num_frames: seconds taken of each.
        noted: what the store noted of the clips it has, with their digests.
        shared: owners of the clips of the store that share, by the start of the array paths.
    """
    here = {clip.id: clip for clip in clips}
    new = [clip for clip in here.values() if clip.id not in noted]
    if not new:
        return {}
    # What has sizes of its own has bytes of its own; of clips that lie elsewhere nobody knows the sizes.
    sizes = {clip.id: _sizes(clip, num_frames) for clip in here.values()}
    alike = Counter(sizes.values())
    elsewhere = not noted.keys() <= here.keys()
    alike_or_unknown = [clip for clip in new if sizes[clip.id] and (elsewhere or alike[sizes[clip.id]] > 1)]
    digests: dict[str, Mapping[str, str]] = {key: facts for key, facts in noted.items() if VISUAL_INPUT in facts}
    digests |= digests_of(alike_or_unknown, num_frames)

    found: dict[str, dict[str, str]] = defaultdict(dict)
    for start, names in INPUTS.items():
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for key, facts in sorted(digests.items()):
            if start == VISUAL or facts[AUDIO_INPUT]:
                groups[tuple(facts[name] for name in names)].append(key)
        awaited = {owners[start] for owners in shared.values() if start in owners}
        for group in groups.values():
            for key, owner in _owned(group, noted, {key for key in shared if start in shared[key]}, awaited).items():
                found[key][start] = owner
    return dict(found)


def _owned(
    group: list[str], noted: Mapping[str, object], sharing: set[str], awaited: set[str]
) -> dict[str, str]:
    """Owner of each new clip of a group with the same input, in the order of their ids, that needs not be encoded."""
    new = [key for key in group if key not in noted]
    there = [key for key in group if key in noted and key not in sharing]
    owners = there or [key for key in new if key in awaited] or new
    return {key: owners[0] for key in new if key != owners[0] and key not in awaited}


def _sizes(clip: Clip, num_frames: int) -> tuple[int, ...]:
    """Sizes of the files that a clip's frames are read from; nothing where one is missing."""
    try:
        paths = [clip.video] if clip.video is not None else clip.frames[:num_frames]
        return tuple(path.stat().st_size for path in paths)
    except OSError:
        return ()


def _file_digest(path: Path, within: Path | None) -> str:
    try:
        with open_file(path, within) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({reason_of(error)}); copy it again") from error
