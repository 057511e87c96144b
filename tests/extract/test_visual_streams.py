"""One store of small relatives of several families, through the whole command."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from extract.cli import main
from refavs.errors import StoreError
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.options import EEMCOptions
from refavs.store.reader import FeatureStore
from refavs.store.verify import verify
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, run_with
from tests.support.small_networks import WRITERS

NAMES = ("dinov3-vits16", "pvt-v2-b2", "sam-vit-base", "sam2.1-hiera-tiny", "timm:test_resnet.r160_in1k")


@pytest.mark.long
def test_streams_of_several_families_lie_in_one_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_networks: None
) -> None:
    weights, store = tmp_path / "weights", tmp_path / "store"
    for name in NAMES:
        WRITERS[name](weights)
    write_benchmark(tmp_path / "bench", num_clips=1, seed=0, size=96, videos=1)
    run_with(monkeypatch, in_this_process)
    common = [str(tmp_path / "bench"), str(store), f"--weights-dir={weights}", "--seconds=2", "--mask-size=32",
              f"--streams={','.join(NAMES)},tiny-vggish,tiny-roberta", "--weights=pretrained"]  # fmt: skip
    assert main([*common, "--dry-run"]) == 0
    assert main(common) == 0
    capsys.readouterr()
    assert not verify(str(store), lambda name: None).damage
    assert main([*common, "--dry-run"]) == 0  # the sizes of its files, and not the published ones
    assert "missing, a run ends here" not in capsys.readouterr().out
    read = zarr.open_group(store, mode="r")
    assert read["clips/visual/dinov3-vits16/patches/map"].shape[1:] == (2, 32, 24, 24)
    assert read["clips/visual/timm-test_resnet.r160_in1k/res2"].shape[1] == 2
    extent, valid = (np.asarray(read[f"clips/visual/sam-vit-base/{name}"]) for name in ("extent", "valid"))
    assert (extent == 8).all() and valid.all()  # the frames are square
    one = FeatureStore(str(store), {"visual": "pvt-v2-b2"})
    assert FeatureSizes.from_store(one, EEMCOptions().needs()).maps[0].name == "res2"
    with pytest.raises(StoreError, match="has no maps"):
        FeatureSizes.from_store(FeatureStore(str(store), {"visual": "sam-vit-base"}), EEMCOptions().needs())
