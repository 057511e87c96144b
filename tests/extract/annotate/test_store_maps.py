"""Tracking from a store: the features of refavs-extract give the masks of an ordinary run, without the encoder."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from extract.annotate.cli import main
from extract.annotate.records import ProjectFolder
from extract.cli import main as extract
from tests.extract.annotate.films import box_at, picture_at
from tests.extract.annotate.small_models import TRACKER, TellingDetector
from tests.extract.command import in_this_process, run_with
from tests.support.small_networks import WRITERS

pytestmark = pytest.mark.long


class Bench:
    """A benchmark of two clips, a store of the features of its frames, and a project about it."""

    def __init__(self, root: Path) -> None:
        self.root, self.project = root, ProjectFolder(root / "project")
        WRITERS[TRACKER](root / "weights")
        rows = ["vid,uid,split,fid,exp"]
        for clip, late in (("one", 0), ("two", 1)):
            rows.append(f"{clip},{clip}_1_0,train,1,the box")
            for second in range(10):
                path = root / "bench" / "media" / clip / "frames" / f"{second}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture_at(second + late, ())).save(path)
        (root / "bench" / "metadata.csv").write_text("\n".join(rows))
        (root / "names.csv").write_text("vid,name\none,box\none,dog\ntwo,box\n")
        told = {("one", 4, "box"): [(box_at(4), 0.9)], ("one", 7, "dog"): [((100.0, 5.0, 150.0, 60.0), 0.8)],
                ("two", 2, "box"): [(box_at(3), 0.9)]}  # fmt: skip
        self.detector = TellingDetector(told)

    def extract(self, store: str, *options: str, weights: str = "weights") -> Path:
        assert extract([str(self.root / "bench"), str(self.root / store), "--streams", TRACKER, "--device", "cpu",
                        "--weights-dir", str(self.root / weights), *options]) == 0  # fmt: skip
        return self.root / store

    def propose(self) -> None:
        assert main(["propose", str(self.project.path), str(self.root / "bench"), "--names",
                     str(self.root / "names.csv"), "--tracker", TRACKER, "--weights-dir", str(self.root / "weights"),
                     "--device", "cpu"]) == 0  # fmt: skip

    def track(self, *options: str) -> int:
        return main(["track", str(self.project.path), "--weights-dir", str(self.root / "weights"), "--device", "cpu",
                     *options])  # fmt: skip

    def masks(self) -> list[bytes]:
        """The bytes of the masks; removed, so that they are made again."""
        paths = sorted(self.project.path.rglob("masks.json"))
        found = [path.read_bytes() for path in paths]
        for path in paths:
            path.unlink()
        return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    found = Bench(tmp_path_factory.mktemp("bench"))
    with pytest.MonkeyPatch.context() as patch:
        run_with(patch, in_this_process)
        patch.setattr("extract.annotate.propose.detector_named", lambda *arguments: found.detector)
        found.extract("store")
        found.propose()
        yield found


def test_masks_from_a_store_have_the_bytes_of_an_ordinary_run_without_a_call_of_the_encoder(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.track() == 0
    ordinary = bench.masks()

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the encoder was called")

    monkeypatch.setattr("transformers.models.sam2.modeling_sam2.Sam2VisionModel.forward", refuse)
    assert bench.track("--store", str(bench.root / "store")) == 0
    assert bench.masks() == ordinary and len(ordinary) == 2
    assert bench.track() == 1, "without the store the encoder is needed"


def test_features_of_other_weights_are_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(bench.root / "weights", bench.root / "others")
    path = bench.root / "others" / TRACKER / "model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(path).items()}, path)
    store = bench.extract("other-store", weights="others")
    assert bench.track("--store", str(store)) == 2
    assert "has weights 'sha256:" in (told := capsys.readouterr().err) and "leave out --store" in told


def test_a_store_without_the_stream_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    store = bench.extract("small-store", "--levels", "image")
    assert bench.track("--store", str(store)) == 2
    assert f"has no stream visual/{TRACKER}/high_resolution; add it by refavs-extract" in capsys.readouterr().err


def test_features_of_other_pictures_fail_their_clip_alone(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = bench.root / "bench" / "media" / "two" / "frames" / "5.jpg"
    kept = path.read_bytes()
    Image.new("RGB", (160, 96)).save(path)
    try:
        store = bench.extract("third-store")
    finally:
        path.write_bytes(kept)
    assert bench.track("--store", str(store)) == 3
    assert "clip two: store" in (told := capsys.readouterr().err) and "has features of other pictures under" in told
    assert len(bench.masks()) == 1
