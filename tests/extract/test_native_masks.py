"""Masks at the size of their files: each kept as it is drawn, and brought to one size in a batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extract.cli import main
from extract.pipeline.plan import Masks
from refavs.data.layouts import Clip, Object, Source
from refavs.data.layouts.protocol import expression_table
from refavs.steps import Steps
from refavs.store.format.mask_rows import scaled
from refavs.store.reader import FeatureStore
from refavs.store.verify import verify
from tests.extract.command import refusal
from tests.extract.plugin_command import plugin_command, train_a_step

SIZES = {"large": (26, 44), "small": (13, 20), "void": (26, 20)}  # height and width


def drawn(root: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    """Writes two frames of a clip and their masks, which are returned."""
    folder = root / name
    folder.mkdir(parents=True)
    masks = np.random.default_rng(sum(size)).random((2, *size)) > 0.5
    for place, mask in enumerate(masks):
        Image.new("RGB", size[::-1], (90, 60, 30)).save(folder / f"{place}.png")
        Image.fromarray(mask).save(folder / f"mask{place}.png")
    return masks


def source_of(root: Path, names: list[str]) -> Source:
    frames = {name: tuple(root / name / f"{place}.png" for place in range(2)) for name in names}
    masks = {name: {place: root / name / f"mask{place}.png" for place in range(2)} for name in names}
    rows = [{"uid": f"{name}_0", "clip_id": name, "split": "fit", "text": "the pan", "fid": 0} for name in names]
    return Source(
        root=root, clips=tuple(Clip(id=name, frames=frames[name], root=root) for name in names), layout="kitchen",
        objects=tuple(Object(clip_id=name, fid=0, masks={} if name == "void" else masks[name], null=name == "void",
                             root=root) for name in names),
        expressions=expression_table(rows), splits={"fit": "train"},
    )  # fmt: skip


def test_masks_keep_their_size_in_the_store_and_have_one_in_a_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    masks = {name: drawn(tmp_path / "kitchen", name, size) for name, size in SIZES.items()}
    command = plugin_command(monkeypatch, source_of(tmp_path / "kitchen", list(SIZES)), tmp_path / "store")
    assert main([*command, "--seconds", "2", "--mask-size", "native"]) == 0
    store = FeatureStore(command[1])
    assert store.mask_size == (26, 44) and store.attributes["mask_size"] == [26, 44] and not verify(command[1]).damage
    found = {name: store.mask(row) for row, name in zip(store.objects.index, store.objects["clip_id"], strict=True)}
    for name in ("large", "small"):
        mask = found[name]
        assert mask is not None and np.array_equal(mask.numpy(), masks[name])
    void = found["void"]
    assert void is not None and void.shape == (2, 26, 20) and not void.any()
    batch = train_a_step(store)
    by_hand = masks["small"].repeat(2, axis=1)[:, :, ((np.arange(44) + 0.5) * 20 / 44).astype(int)]
    assert batch.mask is not None and np.array_equal(batch.mask[0].numpy(), masks["large"])
    assert np.array_equal(batch.mask[1].numpy(), by_hand)
    one = store[1].mask
    assert one is not None and torch.equal(one, batch.mask[1])
    capsys.readouterr()
    assert main(command) == 0 and "nothing to do" in capsys.readouterr().out  # the store's own sizes


def test_masks_that_do_not_fit_are_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, size in (*SIZES.items(), ("huge", (60, 30))):
        drawn(tmp_path / "kitchen", name, size)
    source = source_of(tmp_path / "kitchen", ["large", "small"])
    command = plugin_command(monkeypatch, source, tmp_path / "store")
    assert main([*command, "--seconds", "2", "--mask-size", "native"]) == 0
    capsys.readouterr()
    line = refusal(capsys, *command, "--mask-size", "32")
    assert "has clips with 26 x 44 px masks, this run makes 32 px masks; name another store" in line
    command = plugin_command(monkeypatch, source_of(source.root, ["huge"]), tmp_path / "store")
    assert "SOURCE have up to 60 x 30 px, and the store has room for 26 x 44; name" in refusal(capsys, *command)
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--mask-size", "wide"])
    assert "'wide' is neither native nor a number of pixels" in capsys.readouterr().err


def test_size_of_masks_without_frames_is_that_of_the_files(tmp_path: Path) -> None:
    mask = drawn(tmp_path / "kitchen", "small", SIZES["small"])
    source = source_of(tmp_path / "kitchen", ["small"])
    film = replace(source.clips[0], frames=(), video=source.clips[0].frames[0])
    assert np.array_equal(Masks(object=source.objects[0], clip=film).read(Steps(2), None), mask)


def test_scaling_takes_the_nearest_pixel() -> None:
    mask = torch.arange(12).reshape(1, 3, 4) % 3 == 0
    for height, width in ((3, 4), (7, 9), (2, 3), (6, 8)):
        expected = Image.fromarray(mask[0].numpy().astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        assert np.array_equal(scaled(mask, (height, width))[0].numpy(), np.asarray(expected) > 0)
