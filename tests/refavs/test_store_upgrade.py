"""A store of version 2 becomes one of version 3 with the same rows, whatever interrupts that."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refavs.errors import StoreError
from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.commits import seal, unseal
from refavs.store.upgrade import upgrade
from refavs.store.verify import verify
from tests.refavs import old_store
from tests.refavs import small_store as small

STEPS = ("write", "move", "remove", "remove_all", "publish")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of version 2 that no test changes."""
    root = tmp_path_factory.mktemp("old") / "s"
    old_store.write_old_store(root)
    return root


@pytest.fixture
def root(old: Path, tmp_path: Path) -> Path:
    """A store of version 2 of the test's own."""
    return Path(shutil.copytree(old, tmp_path / "s"))


@pytest.fixture(scope="module")
def upgraded(old: Path) -> Path:
    """It, upgraded."""
    root = Path(shutil.copytree(old, old.with_name("upgraded")))
    upgrade(root)
    return root


def test_every_expression_reads_as_before(upgraded: Path) -> None:
    store = FeatureStore(upgraded)
    assert store.streams == ["audio/tiny-vggish", "text/tiny-roberta", "visual/tiny-swin/pixel_decoder"]
    assert [sample.uid for sample in store] == [f"{clip}_{k}" for clip in "abcde" for k in range(2)]
    for sample in store:
        clip, text = sample.clip_id, small.TEXTS[int(sample.uid[-1])]
        assert sample.text_string == text and sample.mask is not None and sample.labelled is not None
        for path, found in (
            ("clips/visual/pixel_decoder/s8", sample.visual["s8"]), ("clips/audio/vggish", sample.audio),
        ):  # fmt: skip
            np.testing.assert_array_equal(found.numpy(), old_store.values(path, clip))
        for path, found in (("text/roberta/features", sample.text), ("text/roberta/valid", sample.valid)):
            np.testing.assert_array_equal(found.numpy(), old_store.values(path, small.text_key(text)))
        assert torch.equal(sample.mask, store.unpacked(torch.from_numpy(old_store.values("objects/mask", f"{clip}/1"))))
        assert sample.labelled.tolist() == [True, True, clip != "c"], "c has two seconds"
    assert store.finished and verify(upgraded).damage == () == verify(upgraded).uncommitted


def test_same_content_has_one_row_and_facts_are_kept(upgraded: Path) -> None:
    store = FeatureStore(upgraded)
    assert store.clips["id"].tolist() == ["a", "b", "c", "e", "d"]
    assert store.clips["seconds"].tolist() == [3, 3, 2, 3, 3]
    assert store.clips["sound"].tolist() == ["sa", "sb", "sa", "silence", "sa"]
    assert store.clips["silent"].tolist() == [False, False, False, True, False]
    assert store.rows_of("visual/tiny-swin/pixel_decoder").tolist() == [0, 0, 2, 3, 0]
    assert store.rows_of("audio/tiny-vggish").tolist() == [0, 1, 0, 3, 0]
    assert store.encoders["audio/tiny-vggish"] == {"name": "tiny-vggish", "weights": "random:0"}
    assert (store.seconds, store.schema.fps, store.mask_size) == (3, 1.0, 11)
    assert store.schema.extraction == {"preset": "tiny"} and store.schema.mask_rule == "auto"
    path = "clips/visual/tiny-swin/pixel_decoder/s8"
    assert not (upgraded / path / "c.2.0.0.0.0").exists(), "all of its rows are in another shard"
    sums = [ChannelSums.of(old_store.values("clips/visual/pixel_decoder/s8", clip), 1) for clip in "ace"]
    mean = sums[0].merge(sums[1]).merge(sums[2]).moments()[0]
    np.testing.assert_array_equal(store.statistics[path][0], mean)


def test_nothing_of_the_old_store_is_left_and_no_shard_was_written_again(old: Path, root: Path) -> None:
    inodes = {path.stat().st_ino for path in root.rglob("c.*") if "audio" in str(path) or "roberta" in str(path)}
    upgrade(root)
    left = small.files_of(root).keys()
    assert not [name for name in left if "pixel_decoder" in name and "tiny-swin" not in name]
    assert not [name for name in left if name.startswith(("commits/clips-", "commits/text-", "commits/objects-"))]
    gone = {"upgrade.json", "clips/visual_row/zarr.json", "text/string/c.0.0", "clips/audio/vggish/zarr.json"}
    assert not left & gone
    shards = {path.stat().st_ino for stream in ("clips/audio/tiny-vggish/features", "text/tiny-roberta")
              for path in (root / stream).rglob("c.*") if path.parent.name != "row"}  # fmt: skip
    assert shards <= inodes and len(shards) == 4


@pytest.mark.long
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.faults)])
def test_upgrade_that_is_killed_at_any_step_is_completed_by_the_next(
    old: Path, upgraded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    wanted, place, half = small.files_of(upgraded), 0, 0
    while True:
        root, count = Path(shutil.copytree(old, tmp_path / f"s{place}")), 0

        def killed(real: Any, *arguments: Any, place: int = place) -> Any:
            nonlocal count
            count += 1
            if count > place:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch:
            for name in STEPS:
                real = getattr(LocalFolder, name)
                patch.setattr(LocalFolder, name, lambda *args, real=real, killed=killed: killed(real, *args))
            try:
                upgrade(root)
                break
            except KeyboardInterrupt:
                pass
        (root / "lease.json").unlink(missing_ok=True)
        version = LocalFolder(root).read("zarr.json")
        if b"half upgraded" in version:
            half += 1
            with pytest.raises(StoreError, match=r"'2, half upgraded to 3'.*refavs-store upgrade"):
                FeatureStore(root)
        elif b'"version": 2' in version:  # which its own refavs still reads: nothing of it has changed
            before, after = small.files_of(old), small.files_of(root)
            assert all(after[name] == data for name, data in before.items())
        upgrade(root)
        assert small.files_of(root) == wanted, place
        shutil.rmtree(root)
        place += every
    assert half > 30 // every


def test_upgraded_store_is_left_alone_by_another_upgrade(upgraded: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(upgraded, tmp_path / "s"))
    assert upgrade(root) == FeatureStore(upgraded).fingerprint
    assert small.files_of(root) == small.files_of(upgraded)


@pytest.mark.parametrize("version", [1, 4, None])
def test_other_versions_are_one_line(root: Path, version: int | None) -> None:
    path = root / "zarr.json"
    path.write_text(path.read_text().replace('"version": 2', f'"version": {version or "null"}'))
    before = small.files_of(root)
    with pytest.raises(StoreError, match=rf"has schema version {version}, refavs-store upgrade accepts version 2; "):
        upgrade(root)
    assert small.files_of(root) == before


def test_store_that_its_extraction_did_not_finish_stays_unfinished(root: Path) -> None:
    path = root / "zarr.json"
    path.write_text(path.read_text().replace(f'"fingerprint": "{"0" * 64}",', ""))
    upgrade(root)
    assert not FeatureStore(root).finished and verify(root).damage == ()


def test_damaged_old_store_is_one_line_and_stays(root: Path) -> None:
    (root / "clips/audio/vggish/c.1.0.0").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"c\.1\.0\.0 is missing or its length differs .*repair the store with the"):
        upgrade(root)
    assert b'"version": 2' in (root / "zarr.json").read_bytes()
    name = "commits/text-00000.json"
    (root / name).write_bytes(seal({**unseal(LocalFolder(root), name), "rows": 3}))
    with pytest.raises(StoreError, match=r"text-00000.json cannot be used \(.*rows is '3'; accepted: an object"):
        upgrade(root)
