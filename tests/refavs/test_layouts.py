"""Layouts: the contract of built-in and packaged ones, detection, and errors on one line."""

import functools
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refavs import plugins
from refavs.data.layouts import Clip, Layout, Object, Source, expression_table, find_clip, protocol, read_source
from refavs.data.layouts.contract import check_layout
from refavs.data.layouts.ref_avs_bench import RefAvsBench
from refavs.data.layouts.videos import Videos
from refavs.data.masks import read_masks
from refavs.data.splits import Splits, refers_to_nothing
from refavs.errors import ConfigError
from refavs.files.tables import read_rows
from refavs.synthetic.write import write_benchmark


def is_label(path: Path, label: int) -> np.ndarray:
    """One object of a picture that holds several."""
    with Image.open(path) as picture:
        return np.asarray(picture) == label


class Kitchen(Layout):
    """Five seconds, two of them labelled, with one picture for the masks of two objects."""

    accepts = "a folder with list.csv"

    def detect(self, root: Path) -> bool:
        return (root / "list.csv").is_file()

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        rows = list(read_rows(root / "list.csv", ("film", "split", "expression")))
        films = sorted({film for film, _, _ in rows})
        return Source(
            root=root,
            clips=tuple(Clip(id=film, frames=tuple(root / film / f"{s}.jpg" for s in range(5)), root=root)
                        for film in films),
            objects=tuple(
                Object(clip_id=film, fid=fid, root=root, masks={
                    second: functools.partial(is_label, root / film / f"{second}.png", fid + 1) for second in (0, 3)})
                for film in films for fid in (0, 1)),
            expressions=expression_table(
                {"uid": f"{film}_{number}", "clip_id": film, "fid": number % 2, "split": split, "text": text,
                 "dimension": "smell"}
                for number, (film, split, text) in enumerate(rows)
            ),
            splits={"fit": "train", "dev": "validation", "exam": "test"},
        )  # fmt: skip


def write_kitchen(root: Path, films: dict[str, str]) -> Path:
    """Films with their splits; the first object is the left half, the second the right one."""
    for film in films:
        (root / film).mkdir(parents=True)
        for second in range(5):
            Image.new("RGB", (8, 6), (40 * second, 0, 0)).save(root / film / f"{second}.jpg")
        for second in (0, 3):
            Image.fromarray(np.repeat([[1] * 4 + [2] * 4], 6, 0).astype(np.uint8)).save(root / film / f"{second}.png")
    lines = [f"{film},{split},the {side} one\n" for film, split in films.items() for side in ("left", "right")]
    (root / "list.csv").write_text("film,split,expression\n" + "".join(lines))
    return root


def installed(monkeypatch: pytest.MonkeyPatch, **layouts: str) -> None:
    """As if a package `kitchenware` added these layouts."""
    found = []
    for name, value in layouts.items():
        entry = EntryPoint(name.replace("_", "-"), value, "refavs.layouts")
        vars(entry).update(dist=SimpleNamespace(name="kitchenware"))
        found.append(entry)
    monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == "refavs.layouts" else [])


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    installed(monkeypatch, kitchen=f"{__name__}:Kitchen")
    yield write_kitchen(tmp_path / "kitchen", {"a/1": "fit", "a/2": "dev", "b": "exam"})


def test_layouts_keep_the_contract(tmp_path: Path, kitchen: Path) -> None:
    write_benchmark(tmp_path / "bench", num_clips=3, seed=0, size=48, videos=0)
    (tmp_path / "films" / "day1" / "cam2").mkdir(parents=True)
    (tmp_path / "films" / "day1" / "cam2" / "a.mp4").write_bytes(b"x")
    assert len(check_layout(RefAvsBench(), tmp_path / "bench").objects) > 3
    assert [clip.id for clip in check_layout(Videos(), tmp_path / "films").clips] == ["day1/cam2/a"]
    assert check_layout(Kitchen(), kitchen).objects[1].masks.keys() == {0, 3}


def test_example_that_the_protocol_names_keeps_the_contract(tmp_path: Path) -> None:
    (named,) = re.findall(r"`(tests/\S+\.py)`", str(protocol.__doc__))
    code = (Path(__file__).parents[2] / named).read_text()
    assert code.count("\n") < 45
    known: dict[str, Any] = {}
    exec(compile(code, named, "exec"), known)
    for film in ("a", "b"):
        (tmp_path / film / "frames").mkdir(parents=True)
        (tmp_path / film / "masks").mkdir()
        for second in range(3):
            Image.new("RGB", (8, 6)).save(tmp_path / film / "frames" / f"{second}.jpg")
        Image.new("L", (8, 6), 255).save(tmp_path / film / "masks" / "1.png")
    (tmp_path / "list.csv").write_text("film,split,expression\na,fit,The pan.\nb,exam,The knife.\n")
    source = check_layout(known["Kitchen"](), tmp_path)
    assert source.objects[0].masks.keys() == {1}


def test_contract_names_everything_that_is_wrong(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Kitchen().read(kitchen)
    (kitchen / "b" / "4.jpg").unlink()
    outside = Object(clip_id="b", fid=0, masks={9: kitchen / "none.png"})
    wrong = Source(
        root=kitchen, clips=right.clips[::-1], objects=(outside,), expressions=right.expressions,
        splits={"fit": "train", "mix": "test"},
    )
    monkeypatch.setattr(Kitchen, "read", lambda *_: wrong)
    with pytest.raises(AssertionError) as caught:
        check_layout(Kitchen(), kitchen)
    for part in ("not sorted by id", r"4\.jpg of clip 'b' is not a file", "masks outside the clip, of frames \\[9\\]",
                 "no such mask", "'a/1_0' has no clip 'a/1', no object 0", "has split 'exam', which `splits` does not",
                 "cannot be called 'mix'"):  # fmt: skip
        assert re.search(part, str(caught.value)), part


def test_masks_may_be_functions(kitchen: Path) -> None:
    left, right = Kitchen().read(kitchen).objects[:2]
    for one, columns in ((left, slice(0, 4)), (right, slice(4, 8))):
        for rule in ("auto", "nonzero"):
            found = read_masks(list(one.masks.values()), (6, 8), (6, 8), rule)
            assert found.shape == (2, 6, 8) and found[:, :, columns].all() and found.sum() == 48


def test_layout_that_recognises_the_folder_is_taken(kitchen: Path) -> None:
    source = read_source(kitchen)
    assert source.layout == "kitchen" and source.expressions["dimension"].unique().tolist() == ["smell"]
    (kitchen / "b" / "x.mp4").touch()  # a folder of videos is what no other layout recognises
    assert read_source(kitchen).layout == "kitchen"
    assert [clip.id for clip in read_source(kitchen, layout="videos").clips] == ["b/x"]
    (kitchen / "metadata.csv").touch()
    with pytest.raises(ConfigError, match=r"matches the layouts kitchen and ref-avs-bench; choose one with --layout"):
        read_source(kitchen)
    assert read_source(kitchen, layout="kitchen").layout == "kitchen"
    with pytest.raises(ConfigError, match=r"refavs.layouts has no 'kitchn'; did you mean 'kitchen'\?"):
        read_source(kitchen, layout="kitchn")


def test_two_layouts_of_one_name_are_refused(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, videos=f"{__name__}:Kitchen")
    with pytest.raises(ConfigError, match=r"^two packages add .videos. to refavs.layouts: refavs \(.*kitchenware.*$"):
        read_source(kitchen)


def test_layout_that_fails_on_import_is_named_and_the_rest_works(
    kitchen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, kitchen=f"{__name__}:Kitchen", broken="no_such_module:X")
    assert read_source(kitchen).layout == "kitchen"
    told = capsys.readouterr().err
    assert re.fullmatch(r"'broken' of refavs.layouts cannot be imported from no_such_module:X \(ModuleNotFoundError: .*"
                        r"repair or uninstall the package kitchenware\n", told)  # fmt: skip
    assert read_source(kitchen, layout="kitchen").layout == "kitchen" and not capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"'broken' of refavs.layouts cannot be imported"):
        read_source(kitchen, layout="broken")


def test_media_is_found_again_by_the_layout_of_the_store(kitchen: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    for name in ("day1/cam2/a.mp4", "day2/cam2/a.webm", "day1/.hidden/b.mp4"):
        (films / name).parent.mkdir(parents=True, exist_ok=True)
        (films / name).touch()
    source = read_source(films)
    assert [clip.id for clip in source.clips] == ["day1/cam2/a", "day2/cam2/a"]
    assert source.layout == "videos" and not source.splits and not len(source.expressions)
    for folder, layout in ((films, "videos"), (films, None), (kitchen, "kitchen"), (kitchen, None)):
        store: dict[str, Any] = {"extraction": {"source": str(folder), "layout": layout}}
        for clip in read_source(folder).clips:
            assert find_clip(store, clip.id) == clip
        assert find_clip(store, "day1/../day1/cam2/a") is None and find_clip(store, "day3/a") is None


def test_videos_of_subfolders_take_expressions_by_their_path(tmp_path: Path) -> None:
    for name in ("a.mp4", "day1/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "say.csv").write_text("video,exp\nday1/a.mp4,One\na,Two\nday1/a,Three\nday2/a,Lost\n")
    source = read_source(tmp_path, tmp_path / "say.csv")
    assert source.expressions["clip_id"].tolist() == ["day1/a", "a", "day1/a"]
    assert source.report.names["missing_media"] == ["day2/a"]
    (tmp_path / "day1" / "a.webm").touch()
    with pytest.raises(Exception, match="have the same id 'day1/a'"):
        read_source(tmp_path)


def test_splits_are_those_of_the_benchmark_where_a_store_does_not_tell() -> None:
    bench, own = Splits.of({}), Splits.of({"splits": {"exam": "test", "fit": "train"}})
    assert (bench.train, bench.validation, bench.tested) == (("train",), ("val",), ("test_s", "test_u", "test_n"))
    assert list(bench.groups) == ["test_s", "test_u", "mix", "test_n"] and bench.groups["mix"] == ("test_s", "test_u")
    assert list(map(bench.title, bench.groups)) == ["Seen", "Unseen", "Mix", "Null"]
    assert own.groups == {"exam": ("exam",)} and own.title("exam") == "exam" and own.evaluated == ("exam",)
    assert Splits.of({"splits": {}}).groups == {}


def test_nulls_are_identified_by_the_table_or_the_clip_name() -> None:
    table = expression_table(
        {"uid": clip, "clip_id": clip, "split": "test", "text": "x", "null": clip == "b"} for clip in ("null_c-a", "b"))
    assert refers_to_nothing(table).tolist() == [False, True]
    assert refers_to_nothing(table.drop(columns="null")).tolist() == [True, False]
