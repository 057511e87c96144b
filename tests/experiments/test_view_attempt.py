"""What the page's Try tab answers, by a run that finds a known part of each frame."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from experiments.predict.segmenter import Stretch
from experiments.view import attempt as attempt_module
from experiments.view.attempt import MOST_LETTERS, attempt
from extract.media.film_stream import FilmStream
from refavs.errors import ConfigError
from tests.extract.make_videos import write_video


class Fixed:
    """A run that finds the same share of each frame."""

    def __init__(self, share: float, random_features: bool = False, fps: float = 1.0) -> None:
        self.share, self.fps = share, fps
        self.run = SimpleNamespace(random_features=random_features, is_cut=lambda text: len(text) > 100)

    def segment_video(self, film: FilmStream, expressions: Sequence[str]) -> Iterator[Stretch]:
        for block in film.blocks(2, [], [16_000]):
            steps = np.arange(block.first, film.num_steps if block.is_last else block.first + 2)
            masks = np.zeros((len(steps), *film.size), np.bool_)
            masks[:, : round(self.share * film.size[0])] = True
            yield Stretch(expression=0, steps=steps, masks=masks, object_probability=np.ones(len(steps), np.float32))


def test_attempt_uses_the_first_seconds_and_tells_what_is_odd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "MOST_SECONDS", 2)
    video = write_video(tmp_path / "mute.mp4", duration_s=4, rate=2, sound_codec=None)
    found = attempt(Fixed(0.25, fps=2.0), video, "the left one", tmp_path / "overlay.mp4")
    assert found.shares == ((0, 25.0), (0.5, 25.0), (1, 25.0), (1.5, 25.0))
    assert found.notes == ("the video has no sound track and counts as silent", "only the first 2 s are used")
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert len(list(container.decode(video=0))) == 4
    found = attempt(Fixed(0.0, random_features=True), video, "left " * 50, tmp_path / "overlay.mp4")
    assert found.notes[0].startswith("RANDOM FEATURES")
    absent, cut = found.notes[1:3]
    assert absent == "nothing in this video is what the expression refers to" and "its end was not read" in cut


@pytest.mark.parametrize(("text", "told"), [(" ", "the expression is empty"), ("a" * (MOST_LETTERS + 1), "up to 500")])
def test_expression_of_no_or_of_too_many_letters_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        attempt(Fixed(0.5), tmp_path / "none.mp4", text, tmp_path / "overlay.mp4")
