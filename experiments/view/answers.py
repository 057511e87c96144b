"""What each part of the page answers to what was chosen in it; knows nothing of the library that draws the page.

Every choice comes from a browser and is looked up among what the stores and runs have. Errors become a note.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from experiments.view import clips, neighbours, runs, streams
from experiments.view.markup import render
from experiments.view.shown import Shown, ShownRun, ShownStore
from experiments.view.streams import Place
from refavs.errors import ConfigError, RefAVSError

CLIP_COLUMNS = ["clip", "s", "expressions", "splits", "flags"]
RUN_COLUMNS = ["row", "J %", "area %", "split", "cue", "expression", "clip"]
MOST_LINES = 2000  # of a table in the browser; a search finds the others
ANY = "any"


def told(answer: Callable[..., str]) -> Callable[..., str]:
    """Turns an error of what was chosen into a note."""

    @wraps(answer)
    def safe(*arguments: Any) -> str:
        try:
            return answer(*arguments)
        except RefAVSError as error:
            return render("note", str(error))

    return safe


class Answers:
    """Answers about the stores and runs that are shown."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown

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

    def clips(self, name: str, text: str = "", flag: str = ANY, split: str = ANY) -> tuple[list[list[Any]], str]:
        """The lines of the table of clips, and how many there are."""
        if name not in self.shown.stores:
            return [], ""
        table = clips.clip_table(self.shown.stores[name])
        found = clips.search(table, text, _wanted(flag), _wanted(split))
        lines = found[["id", "seconds", "expressions", "splits", "flags"]].head(MOST_LINES).to_numpy().tolist()
        return lines, _count(len(lines), len(found), len(table), "clips")

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

    def expressions(
        self, name: str, order: str = runs.WORST, text: str = "", split: str = ANY
    ) -> tuple[list[list[Any]], str]:
        """The lines of the table of a run's expressions, and how many there are or why there are none."""
        try:
            shown = self.run(name)
            found = runs.ranked(shown, order if order in runs.ORDERS else runs.WORST, text, _wanted(split))
        except RefAVSError as error:
            return [], str(error)
        columns = ["row", "J", "area", "split", "dimension", "text", "clip_id"]
        found = found.assign(J=found["J"].round(1), area=found["area"].round(2))
        lines = found[columns].head(MOST_LINES).to_numpy().tolist()
        return lines, _count(len(lines), len(found), len(shown.scored.table), "expressions")

    def splits(self, name: str) -> list[str]:
        """The entries of the menu of a run's splits."""
        try:
            return [ANY, *runs.splits_of(self.run(name))]
        except RefAVSError:
            return [ANY]

    @told
    def prediction(self, name: str, row: int) -> str:
        """A run's prediction beside the truth."""
        return render("prediction", runs.card(self.run(name), row))

    def reopen(self, name: str) -> None:
        """Opens a store again; it stays as it was if that fails."""
        try:
            self.store(name).reopen()
        except RefAVSError:
            return


def _wanted(choice: str | None) -> str:
    return "" if choice in (None, ANY) else str(choice)


def _count(shown: int, found: int, known: int, what: str) -> str:
    more = f"; the first {shown:,} are listed" if shown < found else ""
    return f"{found:,} of {known:,} {what}{more}"
