"""The steps of a clip: a store keeps a frame, a mask and a piece of sound for each."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

from refavs.errors import ConfigError

MOST, MOST_FPS = 2**15 - 1, 60
_MOST_PARTS = 1000  # 0.3333 means 1/3, and 0.3 exactly 3/10, which it is not in binary


@dataclass(frozen=True)
class Steps:
    """The steps of a clip: the first at 0 s, one every `1 / fps` seconds.

    Attributes:
        seconds: length of a clip.
        fps: steps per second.

    Raises:
        ConfigError: they are not a whole number of steps.
    """

    seconds: int
    fps: float = 1.0

    def __post_init__(self) -> None:
        refuse_rate(self.fps)
        number = self.seconds * self.rate
        if number.denominator > 1 or not 1 <= number <= MOST:
            raise ConfigError(f"clips of {self.seconds} seconds at {self.fps:g} frames per second have "
                              f"{float(number):g} steps; accepted: a whole number from 1 to {MOST:,}")

    def __len__(self) -> int:
        return int(self.seconds * self.rate)

    @cached_property
    def rate(self) -> Fraction:
        """Steps per second, exactly."""
        return exact_rate(self.fps)

    def time_s(self, step: int) -> int | float:
        """The time of a step; an integer at one step per second."""
        return step if self.rate == 1 else float(step / self.rate)

    def before(self, time_s: int | float) -> int:
        """How many steps come before a time that `time_s` returned."""
        return round(time_s * self.rate)

    @lru_cache(maxsize=8)  # noqa: B019 - values of few settings
    def places(self, fps: float) -> tuple[int | None, ...]:
        """For each step, which of the items of a series with `fps` items per second has its time; None if none has."""
        times = [step * exact_rate(fps) / self.rate for step in range(len(self))]
        return tuple(int(time) if time.denominator == 1 else None for time in times)


def refuse_rate(fps: int | float) -> None:
    """Raises ConfigError if no store or video is read at this rate."""
    if not 0 < fps <= MOST_FPS:
        raise ConfigError(f"{fps:g} frames per second; accepted: above 0, at most {MOST_FPS}")


def exact_rate(fps: int | float) -> Fraction:
    """A rate as the fraction that its decimals stand for."""
    return Fraction(fps).limit_denominator(_MOST_PARTS)
