"""The steps of a clip at several frame rates."""

from pathlib import Path

import pytest

from refavs.data.layouts.protocol import Clip
from refavs.errors import ConfigError, DatasetError
from refavs.steps import Steps


def paths(number: int) -> tuple[Path, ...]:
    return tuple(Path(f"/a/{place}.jpg") for place in range(number))


@pytest.mark.parametrize(("seconds", "fps", "times_s"), [
    (3, 1.0, [0, 1, 2]), (2, 2.0, [0.0, 0.5, 1.0, 1.5]), (6, 0.5, [0.0, 2.0, 4.0]), (10, 0.3, [0.0, 10 / 3, 20 / 3]),
    (3, 0.3333, [0.0]),
])  # fmt: skip
def test_steps_lie_one_frame_apart(seconds: int, fps: float, times_s: list[float]) -> None:
    steps = Steps(seconds, fps)
    found = [steps.time_s(step) for step in range(len(steps))]
    assert found == pytest.approx(times_s) and all(isinstance(time, int) for time in found) == (fps == 1)
    assert [steps.before(time) for time in found] == list(range(len(steps))) and steps.before(seconds) == len(steps)


@pytest.mark.parametrize(("seconds", "fps", "message"), [
    (5, 0.5, "clips of 5 seconds at 0.5 frames per second have 2.5 steps; accepted: a whole number from 1 to 32,767"),
    (1, 0.5, "have 0.5 steps"), (1000, 60.0, "have 60000 steps"), (10, 0.0, "0 frames per second; accepted: above 0"),
    (10, float("nan"), "nan frames per second"), (10, 61.0, "61 frames per second; accepted: above 0, at most 60"),
])  # fmt: skip
def test_unusable_rates_are_refused(seconds: int, fps: float, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Steps(seconds, fps)
    assert message in str(caught.value)


def test_picture_of_a_step_is_the_one_of_its_time() -> None:
    clip = Clip(id="a", frames=paths(7), fps=4.0)
    assert clip.pictures(Steps(2, 4.0)) == paths(7)
    assert clip.pictures(Steps(2, 2.0)) == paths(7)[::2]
    assert clip.pictures(Steps(2)) == paths(7)[::4] and clip.pictures(Steps(2, 0.5)) == paths(1)
    assert Clip(id="a", frames=paths(3)).pictures(Steps(4, 0.5)) == paths(3)[::2]
    with pytest.raises(DatasetError, match=r"'a' has 4 pictures per second, not 3; accepted: --fps 4, or that divided"):
        clip.pictures(Steps(2, 3.0))
    assert Clip(id="a", video=paths(1)[0]).pictures(Steps(2, 3.0)) == ()


def test_masks_between_two_steps_belong_to_none() -> None:
    assert Steps(3).places(1.0) == (0, 1, 2) and Steps(2, 2.0).places(4.0) == (0, 2, 4, 6)
    assert Steps(4, 0.5).places(1.0) == (0, 2) and Steps(2, 2.0).places(1.0) == (0, None, 1, None)
