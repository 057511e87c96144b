"""Checks a source before a run writes anything.

Ambiguous masks are rejected. The masks of one source are of one kind, so an evenly spread sample of objects is enough;
a problem that only a worker finds is reported as a failure of that object. Videos are not added to a store whose own
videos were read by other rules.
"""

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from extract.media.clip import FILM_RULES
from extract.pipeline.plan import Masks, Unit
from refavs.data.layouts import Source
from refavs.data.masks import MaskRuleError, is_plain_grey, num_labels
from refavs.errors import ConfigError, DatasetError, StoreError
from refavs.files.source_files import PICTURE_ERRORS, open_file
from refavs.machine.processors import num_processors
from refavs.steps import Steps
from refavs.store.backends.base import Folder
from refavs.store.format.schema import OTHER_STORE
from refavs.store.writer import StoreWriter

MOST_CHECKED = 64  # objects; about 2 s
MOST_THREADS = 16
Each = TypeVar("Each")


def check_masks(folder: Folder, objects: Sequence[Unit], steps: Steps) -> None:
    """Reads a sample of the masks that the store at `folder` lacks.

    Args:
        objects: objects of the source.

    Raises:
        MaskRuleError: masks are ambiguous, or their rule does not apply to them.
        StoreError: the store does not record the rule by which its masks were read, and several rules are possible.
    """
    known, older = _known(folder)
    missing = [unit.item for unit in objects if isinstance(unit.item, Masks) and unit.name not in known]
    chosen = [item for item in evenly(missing, MOST_CHECKED) if item.object.masks]
    with ThreadPoolExecutor(min(num_processors(), MOST_THREADS), "masks") as pool:
        list(pool.map(lambda item: _check(item, steps), chosen))
    _refuse_shared(missing, steps)
    if older:
        for path, root in ((path, item.object.root) for item in chosen for path in item.paths(steps)):
            if not _was_grey(path, root):
                raise StoreError(f"store {folder.location} was made before masks had a rule and does not say how it "
                                 f"read its own, and {path} is no plain grey picture; {OTHER_STORE}")


def native_size(objects: Sequence[Unit], room: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the largest masks; of masks that cannot be read the worker says so.

    Args:
        room: height and width that the store has room for; None for a new store.

    Raises:
        ConfigError: they are larger than that.
    """
    items = [unit.item for unit in objects if isinstance(unit.item, Masks)]
    with ThreadPoolExecutor(MOST_THREADS, "masks") as pool:
        sizes = [(1, 1), *pool.map(_size, items)]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    if room is None:
        return height, width
    if height > room[0] or width > room[1]:
        raise ConfigError(f"the masks of SOURCE have up to {height} x {width} px, and the store has room for {room[0]} "
                          f"x {room[1]}; {OTHER_STORE}")  # fmt: skip
    return room


def _size(item: Masks) -> tuple[int, int]:
    try:
        return item.size()
    except DatasetError:
        return 1, 1


def check_films(folder: Folder, source: Source) -> None:
    """Checks that the store at `folder` reads videos by the current rules, if clips are to be added.

    Raises:
        StoreError: its videos were read by other rules.
    """
    rules = film_rules(folder, source)
    if not has_films(source) or rules == FILM_RULES:
        return
    known = StoreWriter.attach(folder.location).table("clips")
    ids = set() if known is None else set(known["id"])
    if missing := [clip.id for clip in source.clips if clip.id not in ids]:
        raise StoreError(f"store {folder.location} was made by a version that read films by other rules (time stamps, "
                         f"mirrored pictures, choice of tracks), so that {missing[0]!r} and its own films would not be "
                         f"comparable; {OTHER_STORE}")  # fmt: skip


def film_rules(folder: Folder, source: Source) -> int:
    """The version of the rules by which the store's videos were read; the current one if it has none."""
    if not has_films(source) or not folder.exists("zarr.json"):
        return FILM_RULES
    writer = StoreWriter.attach(folder.location)
    if not writer.schema.source.startswith("videos ") or writer.table("clips") is None:
        return FILM_RULES
    return int(writer.schema.extraction.get("film_rules", 1))


def has_films(source: Source) -> bool:
    """Whether clips of a source are video files."""
    return any(clip.video for clip in source.clips)


def evenly(items: Sequence[Each], most: int) -> list[Each]:
    """At most `most` of the items, evenly spread from the first to the last."""
    step = max(1, -(-len(items) // most))
    return list(items[::step])


def _refuse_shared(missing: Sequence[Masks], steps: Steps) -> None:
    """Checks that the objects of a clip do not share one label image, which would be read as a single object.

    Raises:
        MaskRuleError: two objects of a clip have the same files with several labels, and no rule is given.
    """
    by_clip: dict[str, list[Masks]] = {}
    for item in missing:
        if item.rule == "auto" and not item.object.null:
            by_clip.setdefault(item.clip.id, []).append(item)
    for items in evenly([items for items in by_clip.values() if len(items) > 1], MOST_CHECKED):
        known: dict[bytes, Masks] = {}
        for item in items:
            paths, root = item.paths(steps), item.object.root
            with suppress(*PICTURE_ERRORS):  # missing or damaged: the worker names it
                other = known.setdefault(_digest(paths, root), item) if paths else item
                if other is not item and (path := next((path for path in paths if num_labels(path, root) > 1), None)):
                    raise MaskRuleError(
                        f"{path} has several labels, and {other.paths(steps)[0].parent} the same files, so that "
                        "both objects would be one; draw each object's own masks, 0 where it is not, or give "
                        "--mask-rule nonzero if every label is the object"
                    )


def _digest(paths: Sequence[Path], within: Path | None) -> bytes:
    whole = hashlib.sha256()
    for path in paths:
        with open_file(path, within) as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.digest()


def _known(folder: Folder) -> tuple[Collection[str], bool]:
    """The objects that the store has, and whether it does not record the rule by which they were read."""
    if not folder.exists("zarr.json"):
        return (), False
    writer = StoreWriter.attach(folder.location)
    known = writer.committed("objects")
    return known, bool(known) and writer.schema.mask_rule is None


def _check(item: Masks, steps: Steps) -> None:
    """Checks masks for ambiguity only; other errors are left to the worker, which reports them."""
    try:
        item.read(steps, 1)
    except MaskRuleError:
        raise
    except DatasetError:
        pass


def _was_grey(path: Path, root: Path | None) -> bool:
    try:
        return is_plain_grey(path, root)
    except PICTURE_ERRORS:  # missing or damaged: the worker names it
        return True
