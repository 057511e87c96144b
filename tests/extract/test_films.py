"""Videos with known content, and the files of the cases, compared second by second with the truth and ffmpeg."""

import re
from collections import Counter
from pathlib import Path

import pytest

from refavs.data.layouts import Clip
from tests.extract import film_oracle as oracle
from tests.extract.film_variants import VARIANTS, Variant
from tests.extract.one_form import Media, read_media
from tests.support.samples import sampled

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


CODECS = [name for name in VARIANTS if re.fullmatch(r"\S+ \S+ \d+\.\w+", name)]


def first_of_its_kind(name: str) -> bool:
    """Of codecs every sixth; of what is done to a film, one container."""
    if name in CODECS:
        return name in CODECS[::6]
    return name.endswith(".mp4") or f"{name.rpartition('.')[0]}.mp4" not in VARIANTS


@pytest.mark.long
@pytest.mark.parametrize("name", sampled(VARIANTS, first_of_its_kind))
def test_film_is_read_as_it_was_built(tmp_path: Path, name: str) -> None:
    variant = VARIANTS[name]
    media = read(built(variant, tmp_path))
    assert shown(media) == variant.truth
    assert oracle.marked_corners(media.frames[0]) == variant.corners
    assert set(media.notes) == variant.notes and media.repeated_from_s == variant.repeated_from_s
    assert media.silent == (not any(tone is not None for tone in variant.truth.tones))


def test_there_are_variants_of_every_kind() -> None:
    assert len(VARIANTS) >= 60


# What each file of the cases folder must give: seconds of its pictures and its sound, notes, first second repeated.
ALL = tuple(range(10))
PLAIN, SILENCE = (24, 12, 39, 19), (None,) * 10
CASES: dict[str, tuple[Shown, tuple[int, ...], set[str], int | None]] = {
    name: (Shown(pictures=pictures, tones=tones), corners, set(notes), repeated_from_s)
    for name, pictures, tones, corners, notes, repeated_from_s in (
        ("00_right.mp4", ALL, ALL, PLAIN, (), None),
        ("01_hflip_mp4.mp4", ALL, ALL, (12, 24, 19, 39), (), None),
        ("01_vflip_mp4.mp4", ALL, ALL, (39, 19, 24, 12), (), None),
        ("01_transpose_mp4.mp4", ALL, ALL, (24, 39, 12, 19), (), None),
        ("01_rot180_mp4.mp4", ALL, ALL, (19, 39, 12, 24), (), None),
        ("02_cat_mp4.mp4", ALL, ALL, PLAIN, ("time_joined",), None),
        ("04_cut_mp4.mp4", (8, 9, 10, *(11,) * 7), (8, 9, 10, *SILENCE[:7]), (), ("sound_short",), 4),
        ("04_cut4_mov.mov", (8, 9, 10, 11, *(12,) * 6), (8, 9, 10, 11, *SILENCE[:6]), (), ("sound_short",), 5),
        ("05_layout_aac_mp4.mp4", ALL, ALL, PLAIN, ("sound_varies",), None),
        ("05_rate_mp2_mp4.mp4", ALL, ALL, PLAIN, ("sound_varies",), None),
        ("07_deflt_mkv.mkv", ALL, ALL, PLAIN, (), None),
        ("07_unknown_first_mkv.mkv", ALL, ALL, PLAIN, (), None),
        ("09_res_webm.webm", ALL, SILENCE, PLAIN, ("size_varies",), None),
    )
}
needs_cases = pytest.mark.skipif(MEDIA is None, reason="the folder shared/cases/media is not here")


@needs_cases
def test_no_file_of_the_cases_is_left_out() -> None:
    assert MEDIA is not None and {path.name for path in MEDIA.iterdir()} == set(CASES)


@needs_cases
@pytest.mark.parametrize("name", CASES)
def test_case_is_read_as_players_show_it(name: str) -> None:
    assert MEDIA is not None
    expected, corners, notes, repeated_from_s = CASES[name]
    media = read(MEDIA / name)
    pictures = tuple(oracle.second_of_grey(oracle.brightest_quarter(frame)) for frame in media.frames)
    assert Shown(pictures=pictures, tones=oracle.tones_of(media.sound, 10)) == expected
    assert not corners or oracle.corner_means(media.frames[0]) == pytest.approx(corners, abs=2.5)
    assert set(media.notes) == notes and media.repeated_from_s == repeated_from_s


needs_ffmpeg = pytest.mark.skipif(oracle.FFMPEG is None, reason="no ffmpeg command (apt-get install ffmpeg)")


@pytest.mark.slow
@needs_ffmpeg
@needs_cases
@pytest.mark.parametrize("name", CASES)
def test_case_is_shown_by_ffmpeg_as_by_us(tmp_path: Path, name: str) -> None:
    assert MEDIA is not None
    # With both tracks ffmpeg begins the second part where the sound of the first ends, 0.12 s behind its picture.
    alone = name == "02_cat_mp4.mp4"
    theirs, _ = oracle.by_ffmpeg(MEDIA / name, tmp_path, oracle.brightest_quarter, alone=alone)
    assert theirs == CASES[name][0]


@pytest.mark.slow
@needs_ffmpeg
def test_films_are_read_as_ffmpeg_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts: Counter[str] = Counter()
    wrong = []
    for number, (name, variant) in enumerate(VARIANTS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = built(variant, folder)
        media = read(path)
        ours = shown(media), oracle.marked_corners(media.frames[0])
        theirs = oracle.by_ffmpeg(path, folder)
        as_known = (ours == theirs) != bool(variant.ffmpeg)
        known = f"known to differ: ffmpeg {variant.ffmpeg}" if variant.ffmpeg else "as ffmpeg"
        verdicts[known if as_known else "not as known"] += 1
        if not as_known:
            wrong.append(f"{name}: {ours}, ffmpeg {theirs}")
    with capsys.disabled():
        print(f"\n{len(VARIANTS)} films against ffmpeg:")
        for verdict, count in verdicts.items():
            print(f"  {count:3} {verdict}")
    assert not wrong, "\n".join(wrong)
