"""Trials for `run_trials` that need no sweep: groups from a list, and what is told of them."""

from collections.abc import Callable, Sequence
from typing import Any

from experiments.grid.config import TrialResources
from experiments.records.ledger import Entry


class Listed:
    """Gives groups from a list.

    Attributes:
        started_titles: of every start, in order.
        records: what each trial reported, by its title.
        reasons: why each trial ended, by its title.
    """

    held = False
    num_changes = 0

    def __init__(self, entries: Sequence[Entry | list[Entry]]) -> None:
        self.groups = [group if isinstance(group, list) else [group] for group in entries]
        self.started_titles: list[str] = []
        self.records: dict[str, list[dict[str, Any]]] = {}
        self.reasons: dict[str, str] = {}

    def ready(self, places: Callable[[TrialResources], int]) -> None:
        """Keeps how many places there are."""
        self.places = places

    def next(self) -> list[Entry] | None:
        """The next group."""
        return self.groups.pop(0) if self.groups else None

    def started(self, entry: Entry) -> None:
        """Notes the start."""
        self.started_titles.append(entry.trial.title)

    def progressed(self, entry: Entry, records: list[dict[str, Any]]) -> None:
        """Notes the records, each epoch once."""
        known = self.records.setdefault(entry.trial.title, [])
        known.extend(record for record in records if record["epoch"] > len(known))

    def ended(self, entry: Entry, reason: str) -> None:
        """Notes the reason; a trial ends once."""
        assert entry.trial.title not in self.reasons
        self.reasons[entry.trial.title] = reason

    def waited(self) -> None:
        """Nothing."""
