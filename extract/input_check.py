"""Looks at a source before a run begins, while nothing is written yet.

Masks that may be meant in two ways are refused. Those of one source are of one kind, so some objects, evenly spread,
tell; what only a worker meets later is a failure of that object, named like any other. And no films are added to a
store whose own were read by other rules.
"""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from extract.media import FILM_RULES
from extract.plan import Item, Masks
from refavs.data.bench import Source
from refavs.data.files import PICTURE_ERRORS
from refavs.data.masks import MaskRuleError, is_plain_grey
from refavs.errors import DatasetError, StoreError
from refavs.processors import num_processors
from refavs.store.commits import record_files
from refavs.store.folder import Folder
from refavs.store.schema import OTHER_STORE
from refavs.store.writer import StoreWriter

MOST_CHECKED = 64  # objects; about 2 s
MOST_THREADS = 16


def check_masks(folder: Folder, objects: dict[str, Item], num_frames: int) -> None:
    """Reads some of the masks that the store at `folder` lacks.

    Args:
        objects: those of the source, by key.

    Raises:
        MaskRuleError: masks that may be meant in two ways, or that their rule cannot read.
        StoreError: the store does not say by which rule its masks were read, and there are several for these.
    """
    known, older = _known(folder)
    missing = [item for key, item in objects.items() if isinstance(item, Masks) and key not in known]
    chosen = [item for item in evenly(missing, MOST_CHECKED) if item.folder is not None]
    with ThreadPoolExecutor(min(num_processors(), MOST_THREADS), "masks") as pool:
        list(pool.map(lambda item: _check(item, num_frames), chosen))
    if older:
        paths = [item.folder / f"{second:05d}.png" for item in chosen if item.folder for second in range(num_frames)]
        for path in paths:
            if not _was_grey(path):
                raise StoreError(f"store {folder.location} was made before masks had a rule and does not say how it "
                                 f"read its own, and {path} is no plain grey picture; {OTHER_STORE}")


def check_films(folder: Folder, source: Source) -> None:
    """Compares the rules by which films are read with those of the store at `folder`, where clips are to be added.

    Raises:
        StoreError: its films were read by other rules.
    """
    rules = film_rules(folder, source)
    if source.kind != "videos" or rules == FILM_RULES:
        return
    known = StoreWriter.attach(folder.location).committed("clips")
    if missing := [clip.id for clip in source.clips if clip.id not in known]:
        raise StoreError(f"store {folder.location} was made by a version that read films by other rules (time stamps, "
                         f"mirrored pictures, choice of tracks), so that {missing[0]!r} and its own films would not be "
                         f"comparable; {OTHER_STORE}")  # fmt: skip


def film_rules(folder: Folder, source: Source) -> int:
    """The rules by which the films of the store were read; those of now where it has none."""
    if source.kind != "videos" or not folder.exists("zarr.json"):
        return FILM_RULES
    writer = StoreWriter.attach(folder.location)
    if not writer.schema.source.startswith("videos ") or not record_files(folder, "clips"):
        return FILM_RULES
    return int(writer.schema.extraction.get("film_rules", 1))


def evenly(items: Sequence[Masks], most: int) -> list[Masks]:
    """At most so many of the items, from the first to the last."""
    step = max(1, -(-len(items) // most))
    return list(items[::step])


def _known(folder: Folder) -> tuple[Collection[str], bool]:
    """The objects that the store has, and whether it says nothing of the rule by which they were read."""
    if not folder.exists("zarr.json"):
        return (), False
    writer = StoreWriter.attach(folder.location)
    known = writer.committed("objects")
    return known, bool(known) and writer.schema.mask_rule is None


def _check(item: Masks, num_frames: int) -> None:
    """Masks that cannot be read for another reason are left to the worker, which names them."""
    try:
        item.read(num_frames, 1)
    except MaskRuleError:
        raise
    except DatasetError:
        pass


def _was_grey(path: Path) -> bool:
    try:
        return is_plain_grey(path)
    except PICTURE_ERRORS:  # missing or damaged: the worker names it
        return True
