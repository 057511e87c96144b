"""Exports for other loaders: every value comes back, and a killed export is finished by the same command."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from extract.store_cli import main
from refavs.store import FeatureStore
from refavs.store.format.mask_rows import MASK
from tests.refavs import servers


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("formats") / "store"
    servers.write_small(place)
    return place


def samples_in(folder: Path) -> dict[str, dict[str, bytes]]:
    """What is in the tar files, by key and extension, as WebDataset groups it."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as shard:
            for entry in shard:
                key, _, extension = entry.name.partition(".")
                file = shard.extractfile(entry)
                assert file is not None and entry.isfile()
                found.setdefault(key, {})[extension] = file.read()
    return found


def array(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


def test_tar_files_have_every_value(root: Path, tmp_path: Path) -> None:
    assert main(["export", str(root), str(tmp_path / "tars"), "--to", "webdataset"]) == 0
    store, samples = FeatureStore(root), samples_in(tmp_path / "tars")
    assert len(samples) == store.expressions["clip"].nunique()
    num_masks = 0
    for own in samples.values():
        about = json.loads(own["json"])
        rows = store.expressions.index[store.expressions["clip_id"] == about["id"]].tolist()
        assert [told["uid"] for told in about["expressions"]] == store.expressions["uid"].loc[rows].tolist()
        for number, row in enumerate(rows):
            sample = store.sample(row)
            for name, values in sample.visual.items():
                assert np.array_equal(array(own[f"visual-swin-pixel_decoder-{name}.npy"]), values.numpy())
            assert np.array_equal(array(own["audio-vggish-features.npy"]), sample.audio.numpy())
            assert np.array_equal(array(own["text-roberta-features.npy"])[number], sample.text.numpy())
            assert np.array_equal(array(own["text-roberta-valid.npy"])[number], sample.valid.numpy())
            if sample.mask is not None:
                fid = about["expressions"][number]["fid"]
                assert np.array_equal(array(own[f"mask-{fid}.npy"]), sample.mask.numpy())
                num_masks += 1
    assert num_masks == int((store.expressions["object"] >= 0).sum()) > 0 and MASK in store.specs


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves them
def test_webdataset_reads_them(root: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    assert main(["export", str(root), str(tmp_path / "tars"), "--to", "webdataset"]) == 0
    urls = [str(path) for path in sorted((tmp_path / "tars").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == len(samples_in(tmp_path / "tars"))
    assert all(isinstance(sample["audio-vggish-features.npy"], np.ndarray) for sample in samples)


def test_parquet_has_every_vector(root: Path, tmp_path: Path) -> None:
    assert main(["export", str(root), str(tmp_path / "tables"), "--to", "parquet"]) == 0
    store = FeatureStore(root)
    sounds, texts = (pq.read_table(tmp_path / "tables" / name) for name in
                     ("audio-vggish.parquet", "text-roberta.parquet"))  # fmt: skip
    for table, key in ((sounds, "id"), (texts, "text")):
        shape = json.loads(table.schema.field("features").metadata[b"shape"])
        values = {name: np.reshape(row, shape) for name, row in zip(table[key].to_pylist(),
                                                                    table["features"].to_pylist(), strict=True)}
        for index in range(len(store)):
            sample = store.sample(index)
            expected = sample.audio if key == "id" else sample.text
            own = values[sample.clip_id if key == "id" else sample.text_string]
            assert torch.equal(torch.from_numpy(own.astype(np.float32)), expected)
    told = pq.read_table(tmp_path / "tables" / "expressions.parquet").to_pandas()
    assert told["uid"].tolist() == store.expressions["uid"].tolist()


def test_part_of_a_store_and_what_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(root)
    split = store.expressions["split"].iloc[0]
    out = tmp_path / "tars"
    assert main(["export", str(root), str(out), "--to", "webdataset", "--split", split]) == 0
    told = [each for own in samples_in(out).values() for each in json.loads(own["json"])["expressions"]]
    assert {each["split"] for each in told} == {split} and len(told) == (store.expressions["split"] == split).sum()
    assert main(["export", str(root), str(out), "--to", "parquet"]) == 0  # replaces ours
    assert not list(out.glob("*.tar")) and (out / "expressions.parquet").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("x")
    capsys.readouterr()
    for arguments, reason in (
        ([str(root), str(mine), "--to", "parquet"], "has other files"),
        ([str(root), str(out), "--to", "parquet", "--split", "tets"], "no expression of split 'tets'; it has"),
        ([str(root), str(tmp_path / "a.h5"), "--split", split], "has the whole store; leave out --split"),
    ):
        assert main(["export", *arguments]) == 2
        told_now = capsys.readouterr().err
        assert reason in told_now and told_now.count("\n") == 1
    assert (mine / "notes").read_text() == "x"


def test_interrupted_export_leaves_nothing_half(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, left = FeatureStore.read, 9

    def failing(*arguments: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return read(*arguments)  # type: ignore[arg-type]

    out = tmp_path / "tars"
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "read", failing)
        assert main(["export", str(root), str(out), "--to", "webdataset"]) == 130
    assert not out.exists() or not list(out.rglob("*"))
    assert main(["export", str(root), str(out), "--to", "webdataset"]) == 0 and samples_in(out)
