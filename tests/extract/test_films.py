"""Films of which every second is known, and the files of the cases folder, second by second against truth and ffmpeg."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from extract.media import Media, read_media
from refavs.data.bench import Clip

_spec = importlib.util.spec_from_file_location("film_variants", Path(__file__).parent / "film_variants.py")
assert _spec is not None and _spec.loader is not None
film_variants = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(film_variants)
oracle, VARIANTS, Variant = film_variants.sibling("film_oracle"), film_variants.VARIANTS, film_variants.Variant
Shown = oracle.Shown

MEDIA = next((parent / "shared/cases/media" for parent in Path(__file__).resolve().parents
              if (parent / "shared/cases/media").is_dir()), None)  # fmt: skip


def read(path: Path) -> Media:
    return read_media(Clip(id="film", video=path), 10, 96)


def shown(media: Media) -> Shown:
    pictures = tuple(oracle.second_of_grey(oracle.centre(frame)) for frame in media.frames)
    return Shown(pictures=pictures, tones=oracle.tones_of(media.sound, 10))


def built(variant: Variant, folder: Path) -> Path:
    path = folder / f"film{variant.suffix}"
    variant.build(path)
    return path


@pytest.mark.parametrize("name", VARIANTS)
def test_film_is_read_as_it_was_built(tmp_path: Path, name: str) -> None:
    variant = VARIANTS[name]
    media = read(built(variant, tmp_path))
    assert shown(media) == variant.truth
    assert oracle.marked_corners(media.frames[0]) == variant.corners
    assert set(media.notes) == variant.notes and media.repeated_from_s == variant.repeated_from_s
    assert media.silent == (not any(tone is not None for tone in variant.truth.tones))


def test_there_are_variants_of_every_kind() -> None:
    assert len(VARIANTS) >= 60


@pytest.mark.slow
@pytest.mark.skipif(oracle.FFMPEG is None, reason="ffmpeg's command is not installed (apt-get install ffmpeg)")
def test_films_are_read_as_ffmpeg_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts: Counter[str] = Counter()
    wrong = []
    for number, (name, variant) in enumerate(VARIANTS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = built(variant, folder)
        media = read(path)
        ours = shown(media), oracle.marked_corners(media.frames[0])
        if variant.ffmpeg:
            verdicts[f"known to differ: ffmpeg {variant.ffmpeg}"] += 1
        elif ours == (theirs := oracle.by_ffmpeg(path)):
            verdicts["as ffmpeg"] += 1
        else:
            verdicts["other than ffmpeg"] += 1
            wrong.append(f"{name}: {ours}, ffmpeg {theirs}")
    with capsys.disabled():
        print(f"\n{len(VARIANTS)} films against ffmpeg:")
        for verdict, count in verdicts.items():
            print(f"  {count:3} {verdict}")
    assert not wrong, "\n".join(wrong)
