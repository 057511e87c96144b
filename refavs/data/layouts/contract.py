"""The contract test of layouts; a package that adds a layout calls `check_layout(Kitchen(), root)` in its tests."""

import math
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from refavs.choices import VALIDATION, Role
from refavs.data.layouts.protocol import EXPRESSION_COLUMNS, Layout, Object, Source
from refavs.data.masks import read_masks
from refavs.data.splits import MIX
from refavs.errors import DatasetError
from refavs.files.tables import is_plain_path


def check_layout(layout: Layout, root: Path) -> Source:
    """Reads a small folder and checks everything that refavs relies on.

    Raises:
        AssertionError: the layout breaks the contract; the message lists every violation.
    """
    root = root.absolute()
    source = layout.read(root)
    found = [*_of_folders(layout, root, source), *_of_clips(source), *_of_objects(source), *_of_expressions(source)]
    if found:
        raise AssertionError(f"{type(layout).__name__} on {root}:\n" + "\n".join(found))
    return source


def _of_folders(layout: Layout, root: Path, source: Source) -> Iterator[str]:
    if not layout.accepts or "\n" in layout.accepts:
        yield "`accepts` is not one line"
    with tempfile.TemporaryDirectory() as empty:
        if not layout.detect(root) or layout.detect(Path(empty)):
            yield "`detect` returns False for this folder, or True for an empty one"
    if source.root != root:
        yield f"the source's root is {source.root}"
    for clip in source.clips[:1] + source.clips[-1:]:
        if layout.clip(root, clip.id) != clip:
            yield f"`clip` does not find {clip.id!r}"
    for name in ("", "..", "../x", "/etc/passwd", "no such clip"):
        if layout.clip(root, name) is not None:
            yield f"`clip` finds {name!r}"


def _of_clips(source: Source) -> Iterator[str]:
    ids = [clip.id for clip in source.clips]
    if not ids or ids != sorted(set(ids)):
        yield "there are no clips, or they are not sorted by id without repeats"
    for clip in source.clips:
        if not is_plain_path(clip.id):
            yield f"{clip.id!r} is not a valid clip id; accepted: plain names joined by '/'"
        if (clip.video is None) != bool(clip.frames):
            yield f"clip {clip.id!r} needs either frames or a video"
        if not 0 < clip.fps < math.inf:
            yield f"clip {clip.id!r} has {clip.fps} pictures per second"
        for path in (*clip.frames, *([clip.video] if clip.video else ())):
            if not path.is_absolute() or not path.is_file():
                yield f"{path} of clip {clip.id!r} is not a file with an absolute path"


def _of_objects(source: Source) -> Iterator[str]:
    clips = {clip.id: clip for clip in source.clips}
    for key, count in Counter((one.clip_id, one.fid) for one in source.objects).items():
        if count > 1 or key[0] not in clips or key[1] < 0:
            yield f"object {key} occurs {count} times, belongs to no clip, or has a negative fid"
    for one in source.objects:
        num_frames = len(clips[one.clip_id].frames) if one.clip_id in clips else 0
        odd = [frame for frame in one.masks if frame < 0 or (num_frames and frame >= num_frames)]
        if odd or not (one.masks or one.null):
            yield f"object {one.fid} of {one.clip_id!r} has masks outside the clip, of frames {odd}, or no mask"
        yield from _of_masks(one)


def _of_masks(one: Object) -> Iterator[str]:
    try:
        pickle.dumps(one)
        if one.masks and read_masks(list(one.masks.values()), root=one.root).any() and one.null:
            yield f"object {one.fid} of {one.clip_id!r} is null but its masks have pixels"
    except (DatasetError, ValueError, pickle.PicklingError, AttributeError) as error:  # ValueError: sizes differ
        yield f"masks of object {one.fid} of {one.clip_id!r}: {error}"


def _of_expressions(source: Source) -> Iterator[str]:
    table = source.expressions
    if list(table.columns) != list(EXPRESSION_COLUMNS):
        yield f"the expressions have the columns {list(table.columns)}; make them by `expression_table`"
        return
    clips, objects = {clip.id for clip in source.clips}, {(one.clip_id, one.fid) for one in source.objects}
    for uid, clip_id, fid, split, text in zip(
        *(table[name] for name in ("uid", "clip_id", "fid", "split", "text")), strict=True
    ):
        if clip_id not in clips or (fid >= 0 and (clip_id, fid) not in objects) or not text.strip():
            yield f"expression {uid!r} has no clip {clip_id!r}, no object {fid}, or no text"
        if fid >= 0 and split not in source.splits:
            yield f"expression {uid!r} has split {split!r}, which `splits` does not list"
    for split, role in source.splits.items():
        if role not in get_args(Role):
            yield f"split {split!r} has role {role!r}; accepted: {', '.join(get_args(Role))}"
        if split == MIX or (split == VALIDATION) > (role == "validation"):
            yield f"a {role} split cannot be called {split!r}, because other metrics have that name"
