"""Sources of weights, and the messages if they are missing."""

import http.server
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from extract.encoders.networks import fill, load_tensors, randomly
from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import make_encoder
from extract.encoders.weights import WeightSource, from_hub, from_url, in_folder
from refavs.config import file_stamp
from refavs.errors import WeightsError

BOTH_WAYS_OUT = r"give a folder that has them with --weights-dir, or pass --weights random"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A proxy that refuses every connection, and empty caches."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))


def test_hub_without_network_names_both_ways_out(no_network: None) -> None:
    with pytest.raises(WeightsError, match=rf"someone/something \(model\.bin\) .* cannot be reached; {BOTH_WAYS_OUT}"):
        from_hub("someone/something", "model.bin")


def test_url_without_network_names_both_ways_out(no_network: None, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"vggish\.pth .* cannot be reached; {BOTH_WAYS_OUT}"):
        from_url("https://example.invalid/vggish.pth", "00")
    assert not list(tmp_path.rglob("vggish*"))


def test_url_is_downloaded_once_and_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "weights.pth").write_bytes(b"some weights")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, directory=str(served), **kwargs)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    try:
        with pytest.raises(WeightsError, match="invalid hash value"):
            from_url(url, "0000")
        assert not (tmp_path / "torch" / "checkpoints" / "weights.pth").exists()
        prefix = file_stamp_of(served / "weights.pth")
        assert from_url(url, prefix).read_bytes() == b"some weights"
    finally:
        server.shutdown()
        server.server_close()
    assert from_url(url, prefix).read_bytes() == b"some weights"


def file_stamp_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def test_hub_cache_is_used_without_a_request(no_network: None, tmp_path: Path) -> None:
    commit = "a" * 40
    repository = tmp_path / "hub" / "models--someone--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "pytorch_model.bin").write_bytes(b"x")
    assert from_hub("someone/something", "model.safetensors", "pytorch_model.bin").name == "pytorch_model.bin"


def test_folder_without_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--weights-dir .* has none of a\.bin, b\.bin; put the file there"):
        in_folder(tmp_path, "a.bin", "b.bin")


def test_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth cannot be read .* accepted: safetensors, or a pickled"):
        load_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["page.safetensors", "page.pth"])
def test_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>not found</html>")
    with pytest.raises(WeightsError, match=rf"weights .*{name} cannot be read"):
        load_tensors(tmp_path / name)


def test_both_forms_of_file_load_alike(tmp_path: Path) -> None:
    state = {"weight": torch.randn(2, 3)}
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    assert torch.equal(load_tensors(tmp_path / "a.pth")["weight"], load_tensors(tmp_path / "a.safetensors")["weight"])


def test_fill_names_what_does_not_fit() -> None:
    with pytest.raises(WeightsError, match=r"x\.bin belong to another architecture: Missing key.*weight"):
        fill(nn.Linear(2, 2), {"bias": torch.zeros(2)}, Path("x.bin"))


def test_random_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (randomly(lambda: nn.Linear(3, 3), seed).weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_stamp_distinguishes_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert file_stamp(tmp_path / "a") != file_stamp(tmp_path / "b")


def test_pretrained_base_reads_a_mask2former_checkpoint(tmp_path: Path) -> None:
    encoder = make_encoder("mask2former-swin-base-ade", EncoderSetup(weights=WeightSource(folder=tmp_path)))
    with pytest.raises(WeightsError, match=r"none of mask2former/model\.safetensors, mask2former/model"):
        encoder.facts("backbone")
