"""The examples of the READMEs run as they stand, the commands they name exist, and their links lead somewhere."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.grid.expand import SECTIONS, expand
from experiments.grid.file import parse_yaml
from tests.experiments.small_store import make_store

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXPERIMENTS = (ROOT / "experiments" / "README.md").read_text()
ALL = [path for top in ("", "refavs", "extract", "experiments", "infra", "tests")
       for path in ((ROOT / top).rglob("*.md") if top else [ROOT / "README.md"])]


@pytest.mark.long
def test_python_example_runs_on_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    masks, classes = names["output"].mask_logits, names["output"].class_logits  # type: ignore[attr-defined]
    assert masks.shape[:3] == classes.shape[:3] and torch.isfinite(masks).all()


@pytest.mark.process
def test_loader_example_of_the_store_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "features", {"train": 3, "test_s": 1})
    text = (ROOT / "refavs" / "store" / "README.md").read_text()
    (example,) = (one for one in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "StoreLoader" in one)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"rank": 0, "size": 1}
    exec(compile(example, "README.md", "exec"), names)
    assert names["state"] == {**names["loader"].state_dict(), "epoch": 0, "batches": len(names["loader"])}


def test_commands_of_the_readme_are_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    named = set(re.findall(r"\brefavs-[a-z]+", README))
    assert named == set(scripts)


@pytest.mark.long
def test_grid_files_of_the_readme_expand() -> None:
    full, search = (
        expand("readme", parse_yaml(text, "README.md"), "README.md", {})
        for text in re.findall(r"```yaml\n(.*?)```", EXPERIMENTS, flags=re.DOTALL)
    )
    assert len(full.trials) == 2 * (4 + 2) * 3 and {t.config.resources.workers for t in full.trials} == {1, 2}
    assert search.search is not None and search.search.plan.asha is not None
    part = EXPERIMENTS[EXPERIMENTS.index("## Grids") : EXPERIMENTS.index("## Sweeps")]
    named = set(re.findall(r"^([a-z]+):", part, flags=re.MULTILINE))
    assert named == set(SECTIONS) - {"description"}


def test_shipped_grids_are_those_of_their_readme() -> None:
    folder = ROOT / "experiments" / "grids"
    table = re.findall(r"^\| (`.*?) \|", (folder / "README.md").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == {path.stem for path in folder.glob("*.yaml")}


def test_readme_fits_the_first_reading() -> None:
    assert len(README.splitlines()) <= 150


def test_walks_name_each_file_once_and_where_it_is() -> None:
    walks = [(path, part) for path in ALL for part in path.read_text().split("\n## ") if part.startswith("Walk: ")]
    assert len(walks) == 4
    for path, walk in walks:
        places = [path.parent, ROOT]
        listed = []
        for line in re.findall(r"^\| (`.*?) \|", walk, flags=re.MULTILINE):
            for name in re.findall(r"`([^`]+\.py)`", line):
                found = next((place / name for place in places if (place / name).is_file()), None)
                assert found is not None, f"{path}: {name} is not there"
                listed.append(found)
                places = [path.parent, found.parent, ROOT] if "/" in name else places
        assert len(listed) > 5 and len(set(listed)) == len(listed), f"{path}: {listed}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)[^):]*\)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]
