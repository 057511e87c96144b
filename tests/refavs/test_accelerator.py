"""Devices and precisions, with the machine's answers faked: no test needs a GPU or a certain processor."""

from pathlib import Path

import pytest
import torch

from refavs.errors import ConfigError
from refavs.machine import accelerator
from refavs.machine.accelerator import (
    allow_tf32,
    bf16_is_fast,
    compute_fp32_exactly,
    gpus_each,
    local_gpus_seen,
    require_usable,
    resolved_precision,
    slow_bf16,
)

NEW_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12.3.0\n"
OLD_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"


def fake_processor(monkeypatch: pytest.MonkeyPatch, *, supported: bool, avx512_bf16: bool, amx: bool) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("supported", "avx512_bf16", "amx", "fast"),
    [(True, True, True, True), (True, True, False, True), (True, False, False, False), (False, False, False, False),
     (False, True, True, False)],
)  # fmt: skip
def test_bf16_is_fast_where_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool, avx512_bf16: bool, amx: bool, fast: bool
) -> None:
    fake_processor(monkeypatch, supported=supported, avx512_bf16=avx512_bf16, amx=amx)
    assert bf16_is_fast("cpu") is fast
    assert resolved_precision("auto", "cpu") == ("bf16" if fast else "fp32")
    assert resolved_precision("bf16", "cpu") == "bf16" and resolved_precision("fp16", "cpu") == "fp16"


def test_slow_bf16_is_measured_only_where_the_processor_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([float(value) for pair in ((0, 1), (0, 1), (0, 1), (0, 5), (0, 4), (0, 6)) for value in pair])
    monkeypatch.setattr(accelerator.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(accelerator, "bf16_is_fast", lambda device: True)
    assert slow_bf16("cpu") is None
    monkeypatch.setattr(accelerator, "bf16_is_fast", lambda device: False)
    assert slow_bf16("cpu") == 4.0
    assert slow_bf16("cuda") is None


def test_gpus_of_a_worker_follow_from_the_device() -> None:
    option = "--gpus-per-worker"
    assert gpus_each("auto", None, lambda: True, option) == 1 and gpus_each("auto", None, lambda: False, option) == 0
    assert gpus_each("cpu", None, lambda: True, option) == 0 and gpus_each("cuda", None, lambda: False, option) == 1
    assert gpus_each("auto", 0.5, lambda: False, option) == 0.5 and gpus_each("auto", 0.0, lambda: True, option) == 0
    for device, asked in (("cpu", 1.0), ("cuda", 0.0)):
        with pytest.raises(ConfigError, match=f"--device {device} and --gpus-per-worker {asked:g} contradict"):
            gpus_each(device, asked, lambda: True, option)


def fake_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: str, cuda: str | None) -> None:
    (tmp_path / "version").write_text(driver)
    monkeypatch.setattr(accelerator, "DRIVER_VERSION", tmp_path / "version")
    monkeypatch.setattr(accelerator, "gpu_files", lambda: [Path("/dev/nvidia0")])
    monkeypatch.setattr(torch.version, "cuda", cuda)

    def is_available() -> bool:
        import warnings

        warnings.warn("CUDA initialization: something else\nmore", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)


@pytest.mark.parametrize(
    ("driver", "cuda", "reason"),
    [
        (NEW_DRIVER, None, "has a GPU with driver 580, but torch .* is a build for processors; install .*CUDA 13"),
        (OLD_DRIVER, None, "with driver 535, but torch .* is a build for processors; install .* CUDA 12"),
        (OLD_DRIVER, "13.0", "driver 535 is too old for torch .* CUDA 13.0; update .* to 580 or newer, or .*CUDA 12"),
        (NEW_DRIVER, "13.0", r"does not see it \(CUDA initialization: something else\); look at CUDA_VISIBLE_DEVICES"),
        ("", None, "has a GPU, but torch .* is a build for processors"),
    ],
)  # fmt: skip
def test_gpu_that_torch_cannot_use_is_explained_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: str, cuda: str | None, reason: str
) -> None:
    fake_gpu(monkeypatch, tmp_path, driver, cuda)
    told: list[str] = []
    assert not local_gpus_seen("auto", told.append)
    (line,) = told
    with pytest.raises(ConfigError, match=f"^--device cuda: .*{reason}"):
        local_gpus_seen("cuda", told.append)
    assert line.endswith("; running on processors meanwhile") and "\n" not in line
    assert not local_gpus_seen("cpu", told.append) and len(told) == 1


def test_device_that_fails_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    require_usable("cpu", "this machine")

    def ones(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB\nmore")

    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(ConfigError, match=r"worker on node n cannot use its cuda device \(CUDA out of memory.*2 MiB\)"):
        require_usable("cuda", "a worker on node n")


def test_switches_of_tf32_are_set_together() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        allow_tf32(torch.device("cpu"))
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
        allow_tf32(torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
        compute_fp32_exactly()
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
