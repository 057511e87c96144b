"""refavs-extract on layouts: ids that are paths, and a package's layout with other seconds and partial labels."""

import json
from pathlib import Path

import pytest

from experiments.report.clip_steps import footage_of
from experiments.training.overlays import frame_pictures, safe_name
from extract.cli import main
from refavs.data.masks import read_masks
from refavs.steps import Steps
from refavs.store import FeatureStore
from tests.extract.command import in_this_process, refusal, run_with, tiny
from tests.extract.make_videos import write_video
from tests.refavs.test_layouts import Kitchen, installed, write_kitchen

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.mark.long
def test_ids_that_are_paths_are_safe_wherever_they_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_with(monkeypatch, in_this_process)
    films = tmp_path / "films"
    for name in ("day1/cam2/a.mp4", "day2/cam2/a.mp4"):
        (films / name).parent.mkdir(parents=True)
        write_video(films / name, duration_s=1.0)
    (films / "day2" / "cam2" / "bad.mp4").write_bytes(b"no film")
    (tmp_path / "say.csv").write_text("video,exp\nday1/cam2/a.mp4,The dog\nday2/cam2/a,The cat\n")
    log = tmp_path / "run.jsonl"
    given = tiny(films, tmp_path / "store", "--expressions", tmp_path / "say.csv", "--log", log)
    assert main([*map(str, given)]) == 3
    store = FeatureStore(tmp_path / "store")
    ids = ["day1/cam2/a", "day2/cam2/a"]
    assert sorted(store.clips["id"]) == [*ids, "day2/cam2/bad"] and sorted(store.expressions["clip_id"]) == ids
    assert store.attributes["extraction"]["layout"] == "videos" and store.attributes["splits"] == {}
    assert any("day2/cam2/bad" in json.dumps(json.loads(line)) for line in log.read_text().splitlines())
    names = {safe_name(uid) for uid in store.expressions["uid"]}
    assert len(names) == 2 and not any("/" in name for name in names)
    assert footage_of(store, ids[0]).frames is not None and len(frame_pictures(store, ids[0], Steps(10))) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "run.jsonl", "say.csv", "store"]


@pytest.mark.long
def test_layout_of_a_package_is_extracted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_with(monkeypatch, in_this_process)
    installed(monkeypatch, kitchen=f"{Kitchen.__module__}:Kitchen")
    root = write_kitchen(tmp_path / "kitchen", {"a/1": "fit", "b": "exam"})
    assert "has no 'kitchn'; did you mean 'kitchen'?" in refusal(
        capsys, *tiny(root, tmp_path / "store", "--layout", "kitchn"))
    assert main([*map(str, tiny(root, tmp_path / "store", "--layout", "kitchen"))]) == 0
    store = FeatureStore(tmp_path / "store")
    assert store.attributes["splits"] == {"fit": "train", "dev": "validation", "exam": "test"}
    assert store.expressions["dimension"].tolist() == ["smell"] * 4 and not store.expressions["null"].any()
    right = next(one for one in Kitchen().read(root).objects if (one.clip_id, one.fid) == ("b", 1))
    row = next(row for row, facts in store.objects.iterrows() if (facts["clip_id"], facts["fid"]) == ("b", 1))
    mask = store.mask(int(str(row)))
    assert mask is not None and not mask[[1, 2, 4]].any()
    assert (mask[[0, 3]].numpy() == read_masks(list(right.masks.values()), (store.mask_size,) * 2)).all()
    (repeated,) = store.clips["repeated_from_s"].unique()
    assert repeated == 5 and len(frame_pictures(store, "a/1", Steps(10))) == 10
