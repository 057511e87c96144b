"""Models by name: the built-in ones, those of packages, and names that nobody has."""

from importlib.metadata import EntryPoint

import pytest

from extract.annotate.choices import DETECTORS, TRACKERS, detector_named, tracker_named
from extract.encoders.protocol import EncoderSetup
from extract.encoders.weights import WeightSource
from refavs.errors import ConfigError
from tests.extract.annotate.small_models import BoxTracker

SETUP = EncoderSetup(weights=WeightSource(kind="random"))


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_have_their_names(name: str) -> None:
    assert detector_named(name, SETUP, 0.25, 0.25).name == name


@pytest.mark.parametrize("name", TRACKERS)
def test_trackers_have_their_names_and_stamps(name: str) -> None:
    found = tracker_named(name, SETUP)
    assert (found.name, found.revision()) == (name, "random:0")


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'grounding-dino-tny'; did you mean 'grounding-dino-tiny'\?"):
        detector_named("grounding-dino-tny", SETUP, 0.25, 0.25)
    with pytest.raises(ConfigError, match=r"refavs.trackers has no 'sam2'; .*sam2.1-hiera"):
        tracker_named("sam2", SETUP)


def boxes(setup: EncoderSetup) -> BoxTracker:
    return BoxTracker()


def test_a_package_adds_a_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    own = EntryPoint("boxes", f"{__name__}:boxes", "refavs.trackers")
    monkeypatch.setattr("refavs.plugins.entry_points", lambda group: [own] if group == own.group else [])
    assert tracker_named("boxes", SETUP).name == "boxes"
