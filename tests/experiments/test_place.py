"""A sweep's folder from elsewhere: which of its addresses are used, and whether it was moved or copied."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.tracking.client import default_tracking_uri
from experiments.tracking.place import guard_of, original_of, place_of, refuse_elsewhere, tracking_address
from refavs.errors import ConfigError


def sweep_at(out: Path, **facts: Any) -> dict[str, Any]:
    """A sweep's folder as refavs-sweep leaves it, and its facts."""
    out.mkdir(parents=True)
    facts = {"id": "of-tests", "tracking_uri": default_tracking_uri(out), "place": place_of(out), **facts}
    (out / "sweep.json").write_text(json.dumps(facts))
    return facts


@pytest.mark.parametrize(
    "named", ["http://stranger:5000", "sqlite:////home/me/photos.db", "sqlite:///photos.db", "file:///home/me", 7]
)
def test_address_named_only_by_the_folder_is_refused_with_advice(tmp_path: Path, named: Any) -> None:
    facts = sweep_at(tmp_path / "s", tracking_uri=named)
    with pytest.raises(ConfigError, match=r"sweep\.json names the MLflow .*, outside of that folder, .*; give --tr"):
        tracking_address(tmp_path / "s", facts, None)
    assert tracking_address(tmp_path / "s", facts, "http://mine") == "http://mine"


def test_password_of_a_refused_address_is_not_shown(tmp_path: Path) -> None:
    facts = sweep_at(tmp_path / "s", tracking_uri="http://me:secret@host")
    with pytest.raises(ConfigError) as caught:
        tracking_address(tmp_path / "s", facts, None)
    assert "secret" not in str(caught.value)


def test_link_in_the_folder_to_a_database_elsewhere_is_refused(tmp_path: Path) -> None:
    facts = sweep_at(tmp_path / "s", tracking_uri=f"sqlite:///{tmp_path}/s/own.db")
    assert tracking_address(tmp_path / "s", facts, None) == facts["tracking_uri"]
    (tmp_path / "s" / "own.db").symlink_to(tmp_path / "photos.db")
    with pytest.raises(ConfigError, match=r"own\.db, outside of that folder"):
        tracking_address(tmp_path / "s", facts, None)


def test_address_in_the_environment_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = sweep_at(tmp_path / "s", tracking_uri="http://team:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert tracking_address(tmp_path / "s", facts, None) == "http://team:5000"
    guard_of(tmp_path / "s", "http://team:5000", None)("s3://bucket", ())


@pytest.mark.parametrize("inside", [False, True])
def test_moved_sweep_finds_the_database_that_moved_with_it(tmp_path: Path, inside: bool) -> None:
    out = tmp_path / "runs" / "s"
    facts = sweep_at(out, **({"tracking_uri": f"sqlite:///{out}/own.db"} if inside else {}))
    (tmp_path / "runs").rename(tmp_path / "moved")
    now = tmp_path / "moved" / "s"
    assert original_of(now, facts, default_tracking_uri(now)) is None
    found = tracking_address(now, facts, None)
    assert found == (f"sqlite:///{now}/own.db" if inside else default_tracking_uri(now))


def test_copy_next_to_its_original_is_distinguished_from_a_moved_sweep(tmp_path: Path) -> None:
    facts = sweep_at(tmp_path / "mine" / "s", tracking_uri="http://team:5000")
    copy = shutil.copytree(tmp_path / "mine", tmp_path / "copy") / "s"
    assert original_of(copy, facts, "http://team:5000") == str(tmp_path / "mine" / "s")
    assert original_of(tmp_path / "mine" / "s", facts, "http://team:5000") is None
    (tmp_path / "linked").symlink_to(tmp_path / "mine" / "s")
    assert original_of(tmp_path / "linked", facts, "http://team:5000") is None
    (tmp_path / "mine" / "s").rename(tmp_path / "away")
    assert original_of(tmp_path / "away", facts, "http://team:5000") is None


def test_folder_from_another_disk_counts_as_a_copy_unless_its_database_came_with_it(tmp_path: Path) -> None:
    facts = sweep_at(tmp_path / "s", place={"path": "/another/machine/s", "inode": 1})
    assert original_of(tmp_path / "s", facts, "http://team:5000") == "/another/machine/s"
    assert original_of(tmp_path / "s", facts, default_tracking_uri(tmp_path / "s")) is None


def test_artifacts_elsewhere_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "s"
    beside = tmp_path / "runs" / "mlartifacts" / "s" / "run"
    beside.mkdir(parents=True)
    for good in (beside.as_uri(), str(beside), (out / "artifacts").as_uri()):
        refuse_elsewhere(good, ["report/report.html"], out)
    (beside / "report").symlink_to(tmp_path)
    for bad, names in (
        ("http://stranger/x", []), ("s3://bucket", []), ((tmp_path / "home").as_uri(), []), ("mlruns/0", []),
        ((beside / ".." / ".." / "..").as_uri(), []), (beside.as_uri(), ["report/report.html"]),
        (f"file://stranger{beside}", []),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"its artifacts would go to .*; give by --tracking-uri the MLflow"):
            refuse_elsewhere(bad, names, out)
