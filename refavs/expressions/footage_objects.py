"""Objects of real footage and their sounds, as people and masks describe them."""

from dataclasses import dataclass

_GAP_S = 0.5  # of silence that interrupts a sound


@dataclass(frozen=True, kw_only=True)
class Sound:
    """When and how loudly an object sounds.

    Attributes:
        spans: start and end of each stretch of sound, in order.
        rhythm_from: beats per minute at the start; None if it has no rhythm that people would name.
    """

    spans: tuple[tuple[float, float], ...]
    gain_from: float = 1.0
    gain_to: float = 1.0
    rhythm_from: float | None = None
    rhythm_to: float | None = None

    @property
    def on_s(self) -> float:
        """When it first sounds."""
        return self.spans[0][0]

    @property
    def duration_s(self) -> float:
        """How long it sounds in all."""
        return sum(end - start for start, end in self.spans)

    @property
    def intermittent(self) -> bool:
        """Whether it pauses."""
        pairs = zip(self.spans, self.spans[1:], strict=False)
        return any(later[0] - earlier[1] >= _GAP_S for earlier, later in pairs)


@dataclass(frozen=True, kw_only=True)
class FootageObject:
    """An object of real footage.

    Attributes:
        centres: its centre (x, y) as parts of width and height in each second; None where it is absent.
        surfaces: words for its looks that go before the category, e.g. colours.
        looks: words that go after it, e.g. "in a red t-shirt".
        verbs: what it does, and the number of the object that it does this to, if any.
        places: relations to other objects that people stated, e.g. ("near", 2).
    """

    category: str
    centres: tuple[tuple[float, float] | None, ...]
    colour: str = ""
    surfaces: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
    verbs: tuple[tuple[str, int | None], ...] = ()
    places: tuple[tuple[str, int], ...] = ()

    @property
    def visible_from_s(self) -> float:
        """The first second in which it shows."""
        return float(next((t for t, centre in enumerate(self.centres) if centre), len(self.centres)))

    @property
    def visible_s(self) -> float:
        """How many seconds it shows."""
        return float(sum(centre is not None for centre in self.centres))

    def centre(self, time_s: float) -> tuple[float, float] | None:
        """Its centre in a second."""
        return self.centres[int(time_s)]

    def visible(self, time_s: float) -> bool:
        """Whether it shows in a second."""
        return self.centres[int(time_s)] is not None
