"""Bad and odd media, kind by kind: a clear line for each bad file, right values for each odd one, bounded resources."""

import http.server
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract.cli import main
from extract.pipeline.content import content_of
from refavs.data.layouts import Clip, read_source
from refavs.errors import DatasetError
from refavs.steps import Steps
from refavs.store.reader import FeatureStore
from tests.extract.command import in_this_process, run_with, tiny
from tests.extract.one_form import SAMPLE_RATE_HZ, Media, read_media
from tests.faults import bad_media as bad

pytestmark = pytest.mark.usefixtures("small_networks")

NO_VIDEO = r"cut off, damaged or not a video \(Invalid (data|argument).*\); accepted: an MP4, MOV, Matroska, WebM, AVI"
TOO_LARGE = r"its frames have more than 40,000,000 pixels"
LINK_OUT = r"cannot be read \(a symbolic link leads out of .*src to .*elsewhere"

# Kind -> how its file is written, and what the one line says after the file's name.
BAD_VIDEOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty file": (bad.empty, r"cannot be read \(the file is empty \(0 bytes\)\)"),
    "HTML page": (bad.page, NO_VIDEO),
    "truncated MP4": (bad.truncated, NO_VIDEO),
    "HLS playlist naming other files": (bad.playlist, NO_VIDEO),
    "concat list naming other files": (bad.concatenation, NO_VIDEO),
    "JPEG picture named .mp4": (bad.picture_as_video, NO_VIDEO),
    "download of half a Matroska": (bad.half_of_matroska, r"the file declares 10\.0 s and stops after [45]\.\d s"),
    "download with an empty end": (bad.empty_end, r"the file declares 10\.0 s and stops after [45]\.\d s"),
    "MP4 of two million edits": (bad.edits_declared, r"declares 2,000,000 edits of 20 samples"),
    "MP4 table of a billion samples": (bad.samples_declared, r"declares 1,000,000,000 samples in 2,\d{3} bytes"),
    "MP4 fragment of a billion samples": (bad.fragment_declared, r"declares 1,000,000,000 samples in 2,\d{3} bytes"),
    "frames of 10,000 x 10,000": (bad.huge_frames, TOO_LARGE),
    "such frames, header says 32 x 32": (bad.huge_frames_inside, NO_VIDEO),
    "time stamps that stand still": (bad.standing_clock, r"10,001 frames and still at 0\.00 s; accepted: up to 1,000"),
    "sound only": (bad.sound_only, "it has no picture track"),
    "song with a cover": (bad.song_with_cover, "it has no picture track"),
    "unknown picture codec": (bad.unknown_codec, "libav does not know the codec of its video track"),
    "unknown sound codec": (bad.unknown_sound_codec, "libav does not know the codec of its audio track"),
    "NaN in the sound track": (bad.not_a_number_in_track, r"values that are not numbers \(NaN or infinite\)"),
    "sound track of 1 Hz": (lambda path: bad.track_rate(path, 1.0), r"has 1 samples/s; accepted: 1,000 to 192,000"),
    "sound track of 1e9 Hz": (lambda path: bad.track_rate(path, 1e9), r"has 1,000,000,000 samples/s; accepted: 1,000"),
    "link to /dev/zero": (bad.endless_device, r"cannot be read \(it is a device, not a file\)"),
    "link to nothing": (bad.link_to_nothing, r"cannot be read \(it is a symbolic link to nothing: .*was-moved\)"),
    "link to itself": (bad.link_to_itself, r"cannot be read \(Too many levels of symbolic links\)"),
    "link out of the folder": (bad.link_out, LINK_OUT),
}  # fmt: skip
# What is no file at all is left out of a folder of videos, and named in its report; read anyway, it is refused.
NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder named .mp4": (bad.folder, r"cannot be read \(it is a folder, not a file\)"),
    "named pipe": (bad.pipe, r"cannot be read \(it is a named pipe, not a file\)"),
    "socket": (bad.local_socket, r"cannot be read \(it is a socket, not a file\)"),
}  # fmt: skip
BAD_FRAMES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"is missing; accepted: a picture for each step of the clip"),
    "empty": (lambda path: path.write_bytes(b""), r"cannot be read \(the file is empty"),
    "truncated": (lambda path: path.write_bytes(bad.jpeg(size=200)[:-200]), r"\(image file is truncated"),
    "JPEG of 65,500 x 65,500": (
        lambda path: path.write_bytes(bad.declaring(bad.jpeg(), 65_500, 65_500)), r"declares 65500x65500 pixels"),
    "JPEG of 12,000 x 12,000": (
        lambda path: path.write_bytes(bad.declaring(bad.jpeg(), 12_000, 12_000)), r"declares 12000x12000 pixels"),
    "PNG of 2^31 x 2^31": (
        lambda path: path.write_bytes(bad.png_header(2**31 - 1, 2**31 - 1)), r"declares 2147483647x2147483647 pixels"),
    "PNG of 6,000 x 6,000, one byte": (
        lambda path: path.write_bytes(bad.png_header(6000, 6000)), r"cannot be read \(.+\); replace"),
    "JPEG of 12 bits": (
        lambda path: path.write_bytes(bad.declaring(bad.jpeg(), 32, 32, bits=12)), r"cannot handle 12-bit layers"),
    "JPEG of 16 bits": (
        lambda path: path.write_bytes(bad.declaring(bad.jpeg(), 32, 32, bits=16)), r"cannot handle 16-bit layers"),
    "PostScript named .jpg": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "neither JPEG nor PNG"),
    "HTML": (lambda path: path.write_text("<html></html>"), "neither JPEG nor PNG"),
    "named pipe": (lambda path: (path.unlink(), bad.pipe(path)), r"\(it is a named pipe, not a file\)"),
    "link out of the root": (
        lambda path: path.unlink() or path.symlink_to(bad.clip_files(bad.outside(path.parents[2])) / "frames/0.jpg"),
        r"a symbolic link leads out of .*media to .*elsewhere"),
}  # fmt: skip
BAD_SOUNDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (lambda path: bad.wave(path, np.full(8000, np.nan)), r"values that are not numbers \(NaN or infinite\)"),
    "infinite": (lambda path: bad.wave(path, np.r_[bad.tone(3), np.inf]), "values that are not numbers"),
    "integers as floats": (lambda path: bad.wave(path, bad.tone(3) * 32767), r"up to 1\.64e\+04; accepted: at most 16"),
    "1 Hz": (lambda path: bad.wave_header(path, rate_hz=1), "has 1 samples/s; accepted: 1,000 to 192,000"),
    "1e9 Hz": (lambda path: bad.wave_header(path, rate_hz=10**9), "has 1,000,000,000 samples/s; accepted: 1,000"),
    "0 channels": (lambda path: bad.wave_header(path, channels=0), r"cannot be read \(Channel count is zero\.\)"),
    "empty": (lambda path: path.write_bytes(b""), r"cannot be read \(the file is empty"),
    "HTML": (bad.page, r"\(Format not recognised\.\); accepted: a WAV file of any rate from 1,000 to 192,000 Hz"),
    "named pipe": (lambda path: (path.unlink(), bad.pipe(path)), r"\(it is a named pipe, not a file\)"),
    "link to nothing": (lambda path: (path.unlink(), bad.link_to_nothing(path)), "symbolic link to nothing"),
}  # fmt: skip


def source_folder(place: Path) -> Path:
    (place / "src").mkdir()
    return place / "src"


def video_clip(place: Path, build: Callable[[Path], object], name: str = "x.mp4") -> Clip:
    root = place / "src"
    root.mkdir(parents=True, exist_ok=True)
    build(root / name)
    return Clip(id="x", video=root / name, root=root)


def bench_clip(place: Path, file: str, build: Callable[[Path], object]) -> Clip:
    """A good benchmark clip with one file of it replaced."""
    root = place / "src" / "media"
    folder = bad.clip_files(root / "c")
    build(folder / file)
    frames = tuple(folder / "frames" / f"{second}.jpg" for second in range(10))
    return Clip(id="c", frames=frames, audio=folder / "audio.wav", root=root)


def refusal(clip: Clip, path: Path) -> str:
    """The one line of a clip that is refused, which must name the file."""
    with pytest.raises(DatasetError) as caught:
        read_media(clip, 10, 32)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and len(line) < 500
    return line


def read_odd(place: Path, build: Callable[[Path], object]) -> Media:
    return read_media(video_clip(place, build), 10, 32)


def grays(media: Media) -> list[int]:
    return [round(float(frame.mean())) for frame in media.frames]


@pytest.mark.long
@pytest.mark.parametrize("kind", [*BAD_VIDEOS, *NOT_FILES])
def test_bad_video_is_one_line(tmp_path: Path, kind: str) -> None:
    build, text = (BAD_VIDEOS | NOT_FILES)[kind]
    clip = video_clip(tmp_path, build, name="x.mov" if kind.startswith("frames of") else "x.mp4")
    assert clip.video is not None
    line = refusal(clip, clip.video)
    assert re.search(text, line) and line.lower().endswith("copy or encode it again"), line


@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_bad_frame_is_one_line(tmp_path: Path, kind: str) -> None:
    build, text = BAD_FRAMES[kind]
    clip = bench_clip(tmp_path, "frames/3.jpg", build)
    line = refusal(clip, clip.frames[3])
    assert re.search(text, line), line


@pytest.mark.parametrize("kind", BAD_SOUNDS)
def test_bad_sound_is_one_line(tmp_path: Path, kind: str) -> None:
    build, text = BAD_SOUNDS[kind]
    clip = bench_clip(tmp_path, "audio.wav", build)
    assert clip.audio is not None
    line = refusal(clip, clip.audio)
    assert re.search(text, line), line


def test_frames_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    clip = bench_clip(tmp_path, "audio.wav", lambda path: None)
    other = bad.clip_files(tmp_path / "elsewhere")
    frames = clip.frames[0].parent
    frames.rename(frames.with_name("old"))
    frames.symlink_to(other / "frames")
    assert re.search(r"link leads out of .*media to .*elsewhere", refusal(clip, clip.frames[0]))


def test_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    folder = source_folder(tmp_path)
    (folder / "x.mp4").symlink_to(bad.good(folder / "y.mkv"))
    (tmp_path / "name").symlink_to(folder)
    clips = read_source(tmp_path / "name").clips
    assert [read_media(clip, 10, 32).silent for clip in clips] == [False, False]


def test_media_folder_on_another_disk_is_followed(tmp_path: Path) -> None:
    folder = source_folder(tmp_path)
    bad.clip_files(tmp_path / "disk" / "a_0_1")
    (folder / "media").symlink_to(tmp_path / "disk")
    (folder / "metadata.csv").write_text("vid,uid,split,fid,exp\na_0_1,a_0_1_cat_1,train,0,The cat.\n")
    (clip,) = read_source(folder).clips
    assert grays(read_media(clip, 10, 32)) == [bad.GRAY] * 10


def test_digest_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    for clip in (video_clip(tmp_path, bad.pipe), bench_clip(tmp_path, "frames/3.jpg", BAD_FRAMES["named pipe"][0])):
        with pytest.raises(DatasetError, match="it is a named pipe, not a file"):
            content_of(clip, Steps(10))


def test_file_without_permission_is_one_line() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        clip = video_clip(Path(place), lambda path: bad.mp4(path).chmod(0))
        root = os.geteuid() == 0  # who may read everything, so become nobody
        if root:
            os.seteuid(65534)
        try:
            line = refusal(clip, Path(place) / "src" / "x.mp4")
        finally:
            if root:
                os.seteuid(0)
    assert "cannot be read (Permission denied)" in line


def test_playlist_opens_no_connection(tmp_path: Path) -> None:
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/0.ts"
        for text in (f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n",
                     f"ffconcat version 1.0\nfile '{address}'\n"):  # fmt: skip
            (tmp_path / "x.mp4").write_text(text)
            refusal(Clip(id="x", video=tmp_path / "x.mp4"), tmp_path / "x.mp4")
        server.shutdown()
    assert not asked


# ----------------------------------------------------------------------------------------- odd, and read as it should


def test_single_frame_is_shown_throughout(tmp_path: Path) -> None:
    media = read_odd(tmp_path, lambda path: bad.write_packets(path, [(0.0, bad.jpeg())]))
    assert grays(media) == [bad.GRAY] * 10 and media.repeated_from_s == 1 and media.silent


def test_hours_declared_beside_a_true_table_of_samples_are_not_believed(tmp_path: Path) -> None:
    media = read_odd(tmp_path, bad.hours_declared_mp4)
    assert media.repeated_from_s == 2 and all(abs(gray - bad.GRAY) <= 2 for gray in grays(media))


def test_hours_declared_by_a_header_are_not_believed(tmp_path: Path) -> None:
    media = read_odd(tmp_path, bad.hours_declared)
    assert grays(media) == [bad.GRAY, *[bad.GRAY + 10] * 9] and media.repeated_from_s == 2
    assert media.notes == ("length_false",)


@pytest.mark.long
def test_endless_stream_is_read_no_further_than_needed(tmp_path: Path) -> None:
    clip = video_clip(tmp_path, bad.endless_stream)
    assert clip.video is not None and clip.video.stat().st_size > 5_000_000
    before = bytes_read()
    assert grays(read_media(clip, 10, 32)) == [bad.GRAY] * 10
    assert bytes_read() - before < 1_000_000


def bytes_read() -> int:
    """Bytes that this process has asked of files so far; 0 where the system does not tell."""
    path = Path("/proc/self/io")
    return int(path.read_text().split()[1]) if path.exists() else 0


def test_late_first_picture_fills_the_seconds_before_it(tmp_path: Path) -> None:
    sound = np.r_[np.zeros(2 * bad.RATE_HZ, np.float32), bad.tone(10)]
    media = read_odd(tmp_path, lambda path: bad.write_packets(
        path, bad.every(0.5, 10, start_s=2), sound=sound, container_format="matroska"))  # fmt: skip
    assert grays(media) == [bad.GRAY + 10 * max(0, second - 2) for second in range(10)]
    assert media.repeated_from_s is None and media.notes == ("picture_late",)
    began = np.flatnonzero(abs(media.sound) > 0.1)[0] / SAMPLE_RATE_HZ
    assert began == pytest.approx(2, abs=0.01)


def test_short_clip_that_begins_late_is_not_taken_for_cut_off(tmp_path: Path) -> None:
    media = read_odd(tmp_path, lambda path: bad.write_packets(
        path, bad.every(0.5, 4, start_s=5), container_format="matroska"))  # fmt: skip
    assert media.repeated_from_s == 4 and grays(media)[3:] == [bad.GRAY + 30] * 7


def test_negative_start_times_are_skipped_as_by_players(tmp_path: Path) -> None:
    media = read_odd(tmp_path, lambda path: bad.write_packets(
        path, bad.every(0.5, 13, start_s=-3), options={"avoid_negative_ts": "disabled"}))  # fmt: skip
    assert grays(media) == [min(bad.GRAY + 10 * second, 255) for second in range(3, 13)]


@pytest.mark.parametrize(("channels", "layout"), [(6, "5.1"), (8, "7.1"), (64, "64 channels")])
def test_many_channels_are_averaged(tmp_path: Path, channels: int, layout: str) -> None:
    media = read_odd(tmp_path, lambda path: bad.loud_channels(path, channels, layout))
    assert abs(media.sound).max() == pytest.approx(0.5 / channels, rel=0.03)


def test_name_with_a_colon_or_a_pattern_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:x.mp4", "concat:a|b.mp4", "%03d.mp4", "x?y=[1].mp4", "é 'quoted\" .mp4"):
        bad.good(Path("y.mp4")).rename(name)
        assert grays(read_media(Clip(id="x", video=Path(name)), 10, 32))[9] == bad.GRAY + 90


ODD_PICTURES: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
    "CMYK JPEG": (Image.new("RGB", (32, 32), (200, 100, 50)).convert("CMYK"), "JPEG", {"quality": 95}),
    "gray JPEG": (Image.new("L", (32, 32), 117), "JPEG", {"quality": 95}),
    "PNG named .jpg": (Image.new("RGB", (32, 32), (200, 100, 50)), "PNG", {}),
    "16-bit PNG": (Image.fromarray(np.full((32, 32), 117 * 257, np.uint16)), "PNG", {}),
    "PNG of one bit": (Image.new("1", (32, 32), 1), "PNG", {}),
    "PNG with transparency": (Image.new("RGBA", (32, 32), (200, 100, 50, 128)), "PNG", {}),
    "palette PNG with transparency": (
        Image.new("RGB", (32, 32), (200, 100, 50)).quantize(4), "PNG", {"transparency": bytes([0, 255, 255, 255])}),
    "progressive JPEG": (Image.new("RGB", (32, 32), (200, 100, 50)), "JPEG", {"progressive": True, "quality": 95}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_PICTURES)
def test_odd_picture_has_its_colours(tmp_path: Path, kind: str) -> None:
    picture, written_as, settings = ODD_PICTURES[kind]
    clip = bench_clip(tmp_path, "frames/3.jpg", lambda path: picture.save(path, written_as, **settings))
    expected = {"PNG of one bit": (255,) * 3, "16-bit PNG": (117,) * 3, "gray JPEG": (117,) * 3}
    colours = read_media(clip, 10, 32).frames[3].reshape(-1, 3)
    np.testing.assert_allclose(colours, np.tile(expected.get(kind, (200, 100, 50)), (len(colours), 1)), atol=3)


def test_odd_sounds_have_their_values(tmp_path: Path) -> None:
    kinds = {
        "64 channels": (np.tile(bad.tone(10)[:, None], (1, 64)), "PCM_16", 0.5),
        "24 bits": (bad.tone(10), "PCM_24", 0.5),
        "floats beyond full scale": (3 * bad.tone(10), "FLOAT", 1.5),
        "shorter than the picture": (bad.tone(3), "PCM_16", 0.5),
        "no samples": (bad.tone(0), "PCM_16", 0.0),
        "1000 Hz": (bad.tone(10, 1000), "PCM_16", 0.5),
        "192000 Hz": (bad.tone(10, 192_000), "PCM_16", 0.5),
    }
    for kind, (sound, subtype, loudest) in kinds.items():
        rate_hz = int(kind.split()[0]) if kind.endswith("Hz") else bad.RATE_HZ

        def build(path: Path, sound=sound, rate_hz=rate_hz, subtype=subtype) -> None:
            bad.wave(path, sound, rate_hz, subtype)

        media = read_media(bench_clip(tmp_path / kind, "audio.wav", build), 10, 32)
        assert abs(media.sound).max() == pytest.approx(loudest, rel=0.02), kind
        assert media.sound.shape == (10 * SAMPLE_RATE_HZ,) and not media.silent
        assert kind != "shorter than the picture" or not media.sound[int(3.1 * SAMPLE_RATE_HZ) :].any()
        assert media.notes == (("sound_short",) if kind in ("shorter than the picture", "no samples") else ())


@pytest.mark.parametrize("declared", [0, 1, 3200, 2**31, 2**32 - 1, 10**6])
@pytest.mark.parametrize("tail", [b"", b"LIST" + struct.pack("<I", 4) + b"INFO"])
def test_sound_is_as_long_as_its_samples(tmp_path: Path, declared: int, tail: bytes) -> None:
    media = read_media(bench_clip(tmp_path, "audio.wav", lambda path: bad.wave_length(path, declared, tail)), 10, 32)
    assert abs(media.sound[-SAMPLE_RATE_HZ // 2 :]).max() == pytest.approx(0.5, rel=0.02)
    assert media.notes == ("length_false",) and not media.silent


def test_bytes_after_the_samples_of_a_wave_are_ignored(tmp_path: Path) -> None:
    tail = b"LIST" + struct.pack("<I", 40_000) + bytes(range(200)) * 200
    media = read_media(
        bench_clip(tmp_path, "audio.wav", lambda path: bad.wave_length(path, None, tail, seconds=5)), 10, 32
    )
    assert not media.sound[int(5.1 * SAMPLE_RATE_HZ) :].any() and media.notes == ("sound_short",)


# -------------------------------------------------------------------------------------------------------- resources

# For each file, in a process that has read a good clip before; measured: at most 0.3 s of processor and 0.2 MB.
MOST_SECONDS, MOST_GROWTH_MB = 4.0, 50
MEASURE = bad.PEAK_MB + """
import json, pickle, sys, time
from extract.media.forms import Frames
from extract.media.clip import read_media
from refavs.errors import DatasetError
from refavs.steps import Steps
from refavs.store.reader import FeatureStore
with open(sys.argv[1], "rb") as file:
    clips = pickle.load(file)
found = {}
for kind, clip in clips.items():
    before, started = peak_mb(since_now=True), time.process_time()
    try:
        read_media(clip, Steps(10), [Frames(size=384)], [16_000])
        line = ""
    except DatasetError as error:
        line = str(error)
    found[kind] = line, time.process_time() - started, peak_mb() - before
print(json.dumps(found))
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_bad_media_take_little_time_and_memory(tmp_path: Path) -> None:
    clips = {"good video": video_clip(tmp_path / "good", bad.good),
             "good files": bench_clip(tmp_path / "good", "audio.wav", lambda path: None)}  # fmt: skip
    for kind, (build, _) in (BAD_VIDEOS | NOT_FILES).items():
        clips[f"video: {kind}"] = video_clip(tmp_path / kind.replace("/", "-"), build)
    for file, kinds in (("frames/3.jpg", BAD_FRAMES), ("audio.wav", BAD_SOUNDS)):
        for kind, (build, _) in kinds.items():
            clips[f"{file}: {kind}"] = bench_clip(tmp_path / file.replace("/", "-") / kind, file, build)
    (tmp_path / "clips.pickle").write_bytes(pickle.dumps(clips))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "clips.pickle")], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[2], check=True,
    )
    found = json.loads(run.stdout)
    assert not run.stderr  # no library may add lines of its own
    assert [kind for kind, (line, _, _) in found.items() if not line] == ["good video", "good files"]
    measured = {kind: numbers for kind, (line, *numbers) in found.items() if line}
    assert max(seconds for seconds, _ in measured.values()) < MOST_SECONDS, measured
    assert max(growth_mb for _, growth_mb in measured.values()) < MOST_GROWTH_MB, measured


# -------------------------------------------------------------------------------------------------- the whole command


@pytest.mark.long
def test_extraction_lists_each_bad_video_and_keeps_the_good(
    tmp_path: Path, small_networks: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    source, store = source_folder(tmp_path), tmp_path / "store"
    for name in ("good-first", "middle", "the-last"):
        bad.good(source / f"{name}.mkv")
    names = {kind: re.sub(r"\W+", "-", kind) for kind in BAD_VIDEOS | NOT_FILES}
    for kind, (build, _) in (BAD_VIDEOS | NOT_FILES).items():
        build(source / f"{names[kind]}{'.mov' if kind.startswith('frames of') else '.mp4'}")
    assert main([str(argument) for argument in tiny(source, store)]) == 3
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("refavs-extract: clips ")]
    assert len(lines) == len(BAD_VIDEOS), err
    for kind, (_, text) in BAD_VIDEOS.items():
        (line,) = [line for line in lines if line.startswith(f"refavs-extract: clips {names[kind]}: video ")]
        assert re.search(text, line), line
    report = next(line for line in out.splitlines() if "not_files" in line)
    assert all(f"'{names[kind]}.mp4'" in report for kind in NOT_FILES)
    features = FeatureStore(store)
    for stream in ("visual/tiny-swin/pixel_decoder", "audio/tiny-vggish"):
        computed = features.clips["id"][features.rows_of(stream) >= 0]
        assert {"good-first", "middle", "the-last"} <= set(computed) and len(set(features.rows_of(stream))) < 8
