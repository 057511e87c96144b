"""Sources that are large and otherwise in order: many videos, many expressions, a long video."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from extract.cli import main
from extract.media.clip import read_media
from extract.media.forms import Frames
from refavs.data.layouts import Clip
from refavs.steps import Steps
from refavs.store import FeatureStore
from refavs.store.verify import verify
from tests.extract.command import in_this_process, run_with, tiny
from tests.extract.make_videos import write_video

pytestmark = pytest.mark.faults

NUM_VIDEOS, NUM_EXPRESSIONS, NUM_SECONDS = 20_000, 100_000, 3 * 3600
RATE_HZ = 8000


@contextmanager
def memory_below(most_bytes: int) -> Iterator[None]:
    """Fails where the block takes more memory than this process has ever had before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert taken < most_bytes, f"{taken / 2**20:.0f} MiB"


def test_folder_of_20_000_videos_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films = tmp_path / "films"
    film = write_video(tmp_path / "film.mp4", duration_s=1.0, size=(32, 32)).read_bytes()
    for number in range(NUM_VIDEOS):
        path = films / f"day{number // 1000}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        # A box that no reader looks into gives each its own content.
        path.write_bytes(film + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))
    with memory_below(2**30):
        assert main([*map(str, tiny(films, tmp_path / "store", "--dry-run"))]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    missing = {name.strip(): int(count) for name, count, _ in rows if count.strip().isdigit()}
    counts = {count for name, count in missing.items() if name.startswith(("clips", "visual/", "audio/"))}
    assert counts == {NUM_VIDEOS}, missing
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("small_networks")
def test_sentence_about_two_videos_is_encoded_once_however_often_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    (tmp_path / "films").mkdir()
    for number in range(2):
        write_video(tmp_path / "films" / f"{number}.mp4", duration_s=1.0 + number)
    table = tmp_path / "say.csv"
    table.write_text("video,exp\n" + "0.mp4,The dog that barks\n1,The dog that barks\n" * (NUM_EXPRESSIONS // 2))
    with memory_below(2**30):
        assert main([*map(str, tiny(tmp_path / "films", tmp_path / "store", "--expressions", table))]) == 0
    store = FeatureStore(tmp_path / "store")
    assert len(store.expressions) == store.expressions["uid"].nunique() == NUM_EXPRESSIONS
    verdict = verify(tmp_path / "store")
    assert not verdict.damage and not verdict.uncommitted
    (text,) = (tmp_path / "store" / "commits").glob("text*/**/*.json")
    assert text.read_text().count("The dog that barks") <= 1


def gray_of(second: int) -> int:
    """Brightness of a second; neighbours differ by more than the codec loses."""
    return 30 + 37 * second % 200


def loudness_of(second: int) -> float:
    """Amplitude of the tone of a second."""
    return 0.1 + 0.05 * (7 * second % 17)


def write_long_film(path: Path) -> Path:
    """Three hours: one picture a second, and a tone."""
    import av

    wave = np.sin(2 * np.pi * 500 * np.arange(RATE_HZ) / RATE_HZ)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=1)
        video.height, video.width, video.pix_fmt = 16, 16, "yuv420p"
        audio = container.add_stream("flac", rate=RATE_HZ, layout="mono")
        for second in range(NUM_SECONDS):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), gray_of(second), np.uint8), format="rgb24")
            frame.pts, frame.time_base = second, Fraction(1)
            samples = (loudness_of(second) * 32767 * wave).astype(np.int16)[None]
            sound = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = RATE_HZ, second * RATE_HZ, Fraction(1, RATE_HZ)
            container.mux(video.encode(frame))
            container.mux(audio.encode(sound))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


def test_film_of_three_hours_is_read_from_its_first_to_its_last_second(tmp_path: Path) -> None:
    film, form = Clip(id="long", video=write_long_film(tmp_path / "long.mkv"), root=tmp_path), Frames(size=16)
    for seconds, most_bytes in ((10, 2**26), (NUM_SECONDS, 2**31)):
        with memory_below(most_bytes):
            media = read_media(film, Steps(seconds), [form], [RATE_HZ])
        grays = media.frames[form].mean(axis=(1, 2, 3))
        assert np.abs(grays - [gray_of(second) for second in range(seconds)]).max() < 4
        loudness = np.abs(media.sound[RATE_HZ].reshape(seconds, RATE_HZ)).max(axis=1)
        assert np.abs(loudness - [loudness_of(second) for second in range(seconds)]).max() < 0.01
        assert not media.notes and not media.silent and media.repeated_from_s is None
