"""Both steps with the models' own code on the workers of a Ray pool."""

from pathlib import Path

import pytest

from extract.annotate.cli import main
from extract.annotate.records import ProjectFolder
from extract.pipeline.local_ray import ray_at
from tests.extract.annotate.films import write_film
from tests.extract.annotate.small_models import DETECTOR, TRACKER, write_models

CLIPS = ("a", "b", "c")


def proposed_and_tracked(root: Path, project: str, *options: str) -> dict[str, bytes]:
    machine = ("--weights-dir", str(root / "weights"), "--device", "cpu", *options)
    folder = ProjectFolder(root / project)
    assert main(["propose", str(folder.path), str(root / "films"), "--names", str(root / "names.csv"), "--seconds", "3",
                 "--detector", DETECTOR, "--tracker", TRACKER, *machine]) == 0  # fmt: skip
    assert main(["track", str(folder.path), *machine]) == 0
    assert folder.clips() == list(CLIPS)
    return {f"{clip}/{name}": (folder.clip(clip).folder / name).read_bytes() for clip in CLIPS
            for name in ("scenes.json", "candidates.json", "masks.json", "frames/2.jpg", "audio.wav")}  # fmt: skip


@pytest.mark.ray
def test_two_workers_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    write_models(tmp_path / "weights")
    for number, clip in enumerate(CLIPS):
        write_film(tmp_path / "films" / f"{clip}.mkv", (1.5,) if number else (), seconds=3)
    rows = [f"{clip},{name}" for clip in CLIPS for name in ("acoustic guitar", "man")]
    (tmp_path / "names.csv").write_text("\n".join(["vid,name", *rows]))
    alone = proposed_and_tracked(tmp_path, "alone")
    with ray_at(None, num_cpus=2):  # one for both steps
        assert proposed_and_tracked(tmp_path, "together", "--workers", "2") == alone
    masks = ProjectFolder(tmp_path / "alone").clip("a").masks()
    assert any(each.rle is not None for one in masks.objects for each in one.seconds), "something is tracked"
