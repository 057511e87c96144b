"""refavs-store publish: what a store needs for others to read it, and nothing of the user's overwritten."""

import hashlib
from pathlib import Path

import pytest
import yaml

from extract.publish import CARD, SUMS
from extract.store_cli import main
from refavs.store import FeatureStore
from tests.refavs import servers, small_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    servers.write_small(tmp_path / "store")
    return tmp_path / "store"


def test_checksums_and_card_are_those_of_the_store(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = FeatureStore(root).fingerprint
    assert main(["publish", str(root), "--licence", "cc-by-4.0", "--title", "a | b <script>\n# c"]) == 0
    told = capsys.readouterr().out
    assert before in told and "hf upload" in told and "its zarr.json tells where it was made: small" in told
    sums = {line[66:]: line[:64] for line in (root / SUMS).read_text().splitlines()}
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert set(sums) == files - {SUMS, ".lock", "lease.json"} and {"zarr.json", CARD} < set(sums)
    for name, expected in sums.items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == expected
    text = (root / CARD).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-4.0" and head["pretty_name"].startswith("a | b")
    assert "audio/vggish" in text and before in text and "random weights" not in text
    assert FeatureStore(root).fingerprint == before and FeatureStore(root).finished
    assert main(["verify", str(root)]) == 0
    changed = (root / SUMS).stat().st_mtime_ns
    assert main(["publish", str(root), "--licence", "cc-by-4.0", "--title", "a | b <script>\n# c"]) == 0
    assert (root / SUMS).stat().st_mtime_ns == changed  # nothing is written again


def test_stores_that_are_not_ready_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> None:
        assert main(["publish", *words]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert not (root / SUMS).exists()
        said.append(told)

    said: list[str] = []
    (root / CARD).write_text("my notes")
    refused(str(root))
    assert "README.md is not one of ours" in said[-1] and (root / CARD).read_text() == "my notes"
    (root / CARD).unlink()
    refused("s3://bucket/store")
    assert "is not a folder; publish the local store" in said[-1]
    writer = small_store.open_writer(root)
    small_store.add_clips(writer, [*small_store.CLIPS, "f"])
    refused(str(root))
    assert "did not finish" in said[-1]


def test_damaged_store_is_not_published(root: Path) -> None:
    shard = next((root / "clips/audio").rglob("c.0*"))
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    assert main(["publish", str(root)]) == 3
    assert not (root / SUMS).exists() and not (root / CARD).exists()
