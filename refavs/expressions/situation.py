"""What is seen and heard in a clip, and comparisons of its objects that hold clearly or not at all."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

CLIP_S = 10.0
_MARGIN = 1 / 12  # of the frame's side: a gap this large is clearly left (right, ...), half of it clearly is not
_CLEAR_RATIO = 2.5  # smallest ratio of gains that is clearly louder
_CLEAR_S = 1.5  # smallest difference that is clearly before, or longer
_GAP_S = 0.5  # of silence in a sound that still lasts all the time

Objects = frozenset[int]


@runtime_checkable
class Seen(Protocol):
    """An object as it looks and moves."""

    @property
    def category(self) -> str:
        """What it is."""
        ...

    @property
    def colour(self) -> str:
        """The word for its colour; empty if it has none."""
        ...

    @property
    def visible_from_s(self) -> float:
        """When it first shows."""
        ...

    def visible(self, time_s: float) -> bool:
        """Whether it shows at that time."""
        ...

    def centre(self, time_s: float) -> tuple[float, float] | None:
        """Its centre (x, y) at that time, in the unit of the situation's `size`; None where it does not show."""
        ...


@runtime_checkable
class Heard(Protocol):
    """The sound of an object; gains are relative to full scale."""

    @property
    def on_s(self) -> float:
        """When it first sounds."""
        ...

    @property
    def duration_s(self) -> float:
        """How long it sounds in all."""
        ...

    @property
    def gain_from(self) -> float:
        """Gain at the start of the clip, or of the sound."""
        ...

    @property
    def gain_to(self) -> float:
        """Gain at the end."""
        ...


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is seen and heard in one clip.

    Attributes:
        size: side of the frame.
        schedules: one per object; None for a silent one.
        times: moments at which places are compared; between them, objects move straight.
        unknown: by kind of fact, the objects of which it is not known.
    """

    size: int
    objects: tuple[Seen, ...]
    schedules: tuple[Heard | None, ...]
    times: tuple[float, ...] = (0.0, CLIP_S)
    unknown: dict[str, Objects] = field(default_factory=dict)

    @property
    def everything(self) -> Objects:
        """All objects."""
        return frozenset(range(len(self.objects)))

    @property
    def sounding(self) -> Objects:
        """The objects that make a sound."""
        return frozenset(index for index, schedule in enumerate(self.schedules) if schedule is not None)

    def where(self, holds: Callable[[Seen], bool]) -> Objects:
        """The objects for which a condition holds."""
        return frozenset(index for index, item in enumerate(self.objects) if holds(item))

    def of(self, category: str) -> Objects:
        """The objects of a category."""
        return self.where(lambda item: item.category == category)

    def heard(self, index: int) -> Heard:
        """The schedule of a sounding object."""
        schedule = self.schedules[index]
        assert schedule is not None
        return schedule

    def throughout(self, index: int) -> bool:
        """Whether a sounding object sounds all the time."""
        return self.heard(index).duration_s >= CLIP_S - _GAP_S

    def stays(self, index: int) -> bool:
        """Whether an object shows all the time."""
        return all(self.objects[index].visible(time_s) for time_s in self.times)


# Relations of the first to the second object; None if unclear.

Relation = Callable[[Situation, int, int], bool | None]


def towards(axis: int, sign: int) -> Relation:
    """Whether the first object lies further to one side whenever both show."""

    def relation(situation: Situation, first: int, second: int) -> bool | None:
        one, other = situation.objects[first], situation.objects[second]
        places = [(one.centre(time_s), other.centre(time_s)) for time_s in situation.times]
        gaps = [sign * (there[axis] - here[axis]) for here, there in places if here and there]
        if not gaps:
            return None
        if min(gaps) >= _MARGIN * situation.size:
            return True
        return False if max(gaps) <= _MARGIN / 2 * situation.size else None

    return relation


SPATIAL: dict[str, Relation] = {
    "on the left of": towards(0, 1),
    "on the right of": towards(0, -1),
    "above": towards(1, 1),
    "beneath": towards(1, -1),
}


def louder(situation: Situation, first: int, second: int) -> bool | None:
    """Whether the first of two steady sounds is louder."""
    one, other = situation.heard(first), situation.heard(second)
    if one.gain_from != one.gain_to or other.gain_from != other.gain_to:
        return None
    return clearly_more(one.gain_from / other.gain_from, _CLEAR_RATIO)


def change_of_level(heard: Heard) -> int | None:
    """1 for a sound that gets louder, -1 for one that gets quieter, 0 for neither."""
    more = clearly_more(heard.gain_to / heard.gain_from, _CLEAR_RATIO)
    return 0 if heard.gain_to == heard.gain_from else None if more is None else 1 if more else -1


def clearly_more(ratio: float, clear: float) -> bool | None:
    """Whether a ratio is above 1 by the factor `clear`; None if it is near 1."""
    return ratio > 1 if max(ratio, 1 / ratio) >= clear else None


def longer(situation: Situation, first: int, second: int) -> bool | None:
    """Whether the first sounds longer."""
    return clearly_later(situation.heard(first).duration_s - situation.heard(second).duration_s)


def sounds_before(situation: Situation, first: int, second: int) -> bool | None:
    """Whether the first starts to sound earlier."""
    return clearly_later(situation.heard(second).on_s - situation.heard(first).on_s)


def appears_before(situation: Situation, first: int, second: int) -> bool | None:
    """Whether the first shows up earlier."""
    return clearly_later(situation.objects[second].visible_from_s - situation.objects[first].visible_from_s)


def clearly_later(difference_s: float) -> bool | None:
    """Whether a difference in time is positive; None if it is neither 0 nor long enough."""
    return difference_s > 0 if abs(difference_s) >= _CLEAR_S or difference_s == 0 else None


def reverse(relation: Relation) -> Relation:
    """The relation of the second object to the first."""
    return lambda situation, first, second: relation(situation, second, first)


def related(situation: Situation, relation: Relation, anchor: int, among: Objects) -> Objects | None:
    """The given objects that stand in a relation to the anchor; None if the relation is unclear for one of them."""
    answers = {index: relation(situation, index, anchor) for index in sorted(among - {anchor})}
    return None if None in answers.values() else frozenset(index for index, holds in answers.items() if holds)


def foremost(situation: Situation, relation: Relation, among: Objects) -> Objects | None:
    """The objects that stand in a relation to all others; None if it is unclear for some."""
    beaten = {index: related(situation, reverse(relation), index, among) for index in sorted(among)}
    if None in beaten.values():
        return None
    return frozenset(index for index, others in beaten.items() if others == among - {index})
