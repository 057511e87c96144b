"""The README's Python example runs as it stands, and every command it names exists."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from experiments.grid import SECTIONS, expand
from experiments.grid_file import parse_yaml
from tests.experiments.small_store import make_store

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.long
def test_python_example_runs_on_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    masks, classes = names["output"].mask_logits, names["output"].class_logits  # type: ignore[attr-defined]
    assert masks.shape[:3] == classes.shape[:3] and torch.isfinite(masks).all()


def test_commands_of_the_readme_are_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    named = set(re.findall(r"\brefavs-[a-z]+", README))
    assert named == set(scripts)


@pytest.mark.long
def test_grid_files_of_the_readme_expand() -> None:
    full, search = (
        expand("readme", parse_yaml(text, "README.md"), "README.md", {})
        for text in re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    )
    assert len(full.trials) == 2 * (4 + 2) * 3 and {t.config.resources.workers for t in full.trials} == {1, 2}
    assert search.search is not None and search.search.plan.asha is not None
    part = README[README.index("## Grids") : README.index("## Reports")]
    named = set(re.findall(r"^([a-z]+):", part, flags=re.MULTILINE))
    assert named == set(SECTIONS) - {"description"}


def test_shipped_grids_are_those_of_the_readme() -> None:
    shipped = {path.stem for path in (ROOT / "experiments" / "grids").glob("*.yaml")}
    (line,) = re.findall(r"^Shipped: .*", README, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line)) == shipped
