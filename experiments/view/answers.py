"""What each part of the page shows for what was chosen in it; independent of the library that draws the page.

Every choice comes from a browser and is looked up among what the stores and runs have. Errors become a note.
"""

import math
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.view import clips, neighbours, runs, streams
from experiments.view.attempt import Loaded
from experiments.view.markup import render
from experiments.view.shown import Shown, ShownRun, ShownStore
from experiments.view.streams import Place
from refavs.data.layouts import find_clip
from refavs.errors import ConfigError, DatasetError, RefAVSError

CLIP_COLUMNS = {"clip": "id", "seconds": "seconds", "expressions": "expressions", "splits": "splits", "flags": "flags"}
RUN_COLUMNS = {"expression": "text", "J %": "J", "area %": "area", "split": "split", "cue": "dimension",
               "clip": "clip_id"}  # fmt: skip
WIDE = {"seconds", "expressions", "area %", "cue", "clip"}  # columns that a narrow window leaves out
PER_PAGE = 200
ANY = "any"


def told(answer: Callable[..., str]) -> Callable[..., str]:
    """Turns an error into a note on the page."""

    @wraps(answer)
    def safe(*arguments: Any, **named: Any) -> str:
        try:
            return answer(*arguments, **named)
        except RefAVSError as error:
            return render("note", str(error))

    return safe


class Answers:
    """Answers about the stores and runs that are shown.

    Args:
        weights_dir: the encoders' weights for new videos; None for the hub's cache.
    """

    def __init__(self, shown: Shown, weights_dir: Path | None = None) -> None:
        self.shown, self._loaded = shown, Loaded(weights_dir)

    def store(self, name: str) -> ShownStore:
        """The store of this name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.shown.stores:
            raise ConfigError(f"no store {name!r} is shown")
        return self.shown.stores[name]

    def run(self, name: str) -> ShownRun:
        """The run of this name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.shown.runs:
            raise ConfigError(f"no run {name!r} is shown")
        return self.shown.runs[name]

    @told
    def head(self, name: str) -> str:
        """A store's place, size and warnings."""
        shown = self.store(name)
        store, table = shown.store, clips.clip_table(shown)
        facts = [f"{len(table):,} clips", f"{len(store.objects):,} objects",
                 f"{len(store.expressions) if 'expressions' in store.tables else 0:,} expressions",
                 f"{len(store.streams)} streams", f"{store.seconds} s per clip"]  # fmt: skip
        warnings = []
        if not store.finished:
            warnings.append("This store is being written, or its extraction was interrupted. Refresh shows what was "
                            "committed since.")
        if store.random_weights:
            warnings.append("Random features: at least one encoder of this store has random weights.")
        return render("head", shown.name, store.location, facts, warnings)

    @told
    def clips(self, name: str, text: str = "", flag: str = ANY, split: str = ANY, page: float | None = 1) -> str:
        """One page of the table of clips."""
        table = clips.clip_table(self.store(name))
        found = clips.search(table, text, _wanted(flag), _wanted(split))
        return _lines(CLIP_COLUMNS, found, found["id"], page, f"{len(found):,} of {len(table):,} clips")

    def values(self, name: str, column: str) -> list[str]:
        """The entries of the menu of flags or of splits."""
        if name not in self.shown.stores:
            return [ANY]
        return [ANY, *clips.values_in(clips.clip_table(self.shown.stores[name]), column)]

    def first_clip(self, name: str) -> str:
        """The clip that is shown first; empty if there is none."""
        table = clips.clip_table(self.store(name))
        return str(table["id"].iloc[0]) if len(table) else ""

    @told
    def clip(self, name: str, clip_id: str) -> str:
        """A clip with its frames, sound, masks and expressions."""
        return render("clip", clips.clip_view(self.store(name), clip_id))

    def places(self) -> dict[str, Place]:
        """The arrays of all stores by their names in the menu."""
        found = [place for shown in self.shown.stores.values() for place in streams.places_of(shown)]
        several = len(self.shown.stores) > 1
        return {f"{place.store}: " * several + place.path.removeprefix("clips/"): place for place in found}

    @told
    def streams(self, clip_id: str, chosen: list[str]) -> str:
        """Arrays of a clip side by side."""
        places = self.places()
        found = [places[one] for one in chosen if one in places]
        return render("streams", clip_id, streams.side_by_side(self.shown.stores, found, clip_id))

    def stream_names(self, name: str) -> list[str]:
        """The visual and audio streams of a store."""
        known = self.shown.stores[name].store.streams if name in self.shown.stores else []
        return [stream for kind in ("visual/", "audio/") for stream in known if stream.startswith(kind)]

    @told
    def neighbours(self, name: str, stream: str, clip_id: str) -> str:
        """The clips nearest to a clip, with their first frames."""
        shown = self.store(name)
        near = neighbours.nearest(shown, stream, clip_id)
        return render("neighbours", clip_id, near, [clips.thumbnail(shown.store, one.clip_id) for one in near.found])

    @told
    def expressions(
        self, name: str, order: str = runs.WORST, text: str = "", split: str = ANY, page: float | None = 1
    ) -> str:  # fmt: skip
        """One page of the table of a run's expressions."""
        shown = self.run(name)
        found = runs.ranked(shown, order if order in runs.ORDERS else runs.WORST, text, _wanted(split))
        found = found.assign(J=found["J"].round(1), area=found["area"].round(2))
        count = f"{len(found):,} of {len(shown.scored.table):,} expressions"
        return _lines(RUN_COLUMNS, found, found["row"], page, count)

    @told
    def first_prediction(self, name: str) -> str:
        """The prediction for the first expression of a run's table."""
        shown = self.run(name)
        found = runs.ranked(shown)
        return render("prediction", runs.card(shown, int(found["row"].iloc[0]))) if len(found) else ""

    def splits(self, name: str) -> list[str]:
        """The entries of the menu of a run's splits."""
        try:
            return [ANY, *runs.splits_of(self.run(name))]
        except RefAVSError:
            return [ANY]

    @told
    def prediction(self, name: str, row: str) -> str:
        """A run's prediction beside the truth."""
        return render("prediction", runs.card(self.run(name), int(row) if row.isascii() and row.isdigit() else -1))

    def videos(self, name: str) -> list[str]:
        """The clips of a store that are videos and still where they were."""
        if name not in self.shown.stores or not (first := self.first_clip(name)):
            return []
        store = self.shown.stores[name].store
        clip = find_clip(store.attributes, first)
        return [] if clip is None or clip.video is None else clips.clip_table(self.shown.stores[name])["id"].tolist()

    @told
    def attempt(self, name: str, uploaded: str | None, store: str, clip_id: str, expression: str, out: Path) -> str:
        """Writes a run's masks over a video to `out`; returns what was found, in words.

        Args:
            uploaded: the file's place on this machine, as the page's server chose it.
            clip_id: a video of the store, if nothing is uploaded.
        """
        run, video = self.run(name), Path(uploaded) if uploaded else None
        if video is None and clip_id in self.videos(store):
            clip = find_clip(self.store(store).store.attributes, clip_id)
            video = clip and clip.video
        if video is None:
            raise ConfigError("there is no video; choose one, or upload one")
        try:
            return render("attempt", self._loaded.attempt(run.run.checkpoint, video, expression, out))
        except DatasetError as error:
            raise DatasetError(str(error).replace(str(video), video.name)) from error

    def reopen(self, name: str) -> None:
        """Opens a store again; it stays as it was if that fails."""
        try:
            self.store(name).reopen()
        except RefAVSError:
            return


def _wanted(choice: str | None) -> str:
    return "" if choice in (None, ANY) else str(choice)


def _lines(columns: Mapping[str, str], found: pd.DataFrame, keys: pd.Series, page: float | None, count: str) -> str:
    """A page of a table; `columns` are its headings with their columns in `found`."""
    pages = max(1, math.ceil(len(found) / PER_PAGE))
    number = min(max(1, int(page or 1)), pages)
    part = slice((number - 1) * PER_PAGE, number * PER_PAGE)
    told = count if pages == 1 else f"{count}; page {number} of {pages}"
    rows = list(zip(keys[part].astype(str), found[list(columns.values())][part].to_numpy().tolist(), strict=True))
    wide = [place for place, head in enumerate(columns) if place and head in WIDE]
    return render("lines", list(columns), rows, wide, told)
