"""Choice of device and precision for this machine's processor and GPUs."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from refavs.choices import Device, Precision
from refavs.errors import ConfigError

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
# The oldest driver branch for each major version of CUDA.
OLDEST_DRIVERS = {13: 580, 12: 525, 11: 450}
SLOW = 1.1  # warn if bf16 takes this many times as long as fp32


def bf16_is_fast(device: str | torch.device) -> bool:
    """Whether the device has instructions for bf16.

    Without them oneDNN still computes bf16: by a scalar loop (8 times slower than fp32), or by conversion on AVX-512
    (twice as slow), which it reports as supported.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(in_hardware and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolved_precision(asked: Literal["auto", "fp32", "bf16", "fp16"], device: str | torch.device) -> Precision:
    """Resolves `auto` for a device: bf16 if that is fast there, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if bf16_is_fast(device) else "fp32"


def slow_bf16(device: str | torch.device) -> float | None:
    """Measures how many times as long as fp32 a bf16 convolution takes here; None if bf16 is not slower."""
    if torch.device(device).type != "cpu" or bf16_is_fast(device):
        return None
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Conv2d(64, 64, 3, padding=1).to(dtype).requires_grad_(False)
        maps = torch.randn(2, 64, 48, 48).to(dtype)
        layer(maps)
        rounds = []
        for _ in range(3):
            started = time.perf_counter()
            layer(maps)
            rounds.append(time.perf_counter() - started)
        seconds[dtype] = min(rounds)
    factor = seconds[torch.bfloat16] / seconds[torch.float32]
    return factor if factor > SLOW else None


def compute_fp32_exactly() -> None:
    """Disables TF32 for matrix products and convolutions, so that fp32 on a GPU is real fp32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def allow_tf32(device: torch.device) -> None:
    """Allows TF32 in training on a GPU, where its rounding is finer than that of bf16; a processor stays at fp32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def gpus_each(device: Device, asked: float | None, seen: Callable[[], bool], option: str) -> float:
    """GPUs of one worker or trial, from `--device` and the option for their number.

    Args:
        device: value of `--device`.
        asked: value of `option`; None if it was left out.
        seen: whether GPUs are available; called only if that matters.
        option: name of the option, such as `--gpus-per-worker`.

    Raises:
        ConfigError: the two contradict each other.
    """
    if device == "cpu" and asked:
        raise ConfigError(f"--device cpu and {option} {asked:g} contradict each other; leave out one of them")
    if device == "cuda" and asked == 0:
        raise ConfigError(f"--device cuda and {option} 0 contradict each other; leave out one of them")
    if asked is not None:
        return asked
    return 1.0 if device == "cuda" or (device == "auto" and seen()) else 0.0


def local_gpus_seen(device: Device, warn: Callable[[str], None]) -> bool:
    """Whether torch sees a GPU on this machine; calls `warn` with one line about a GPU that torch cannot use.

    Raises:
        ConfigError: `--device cuda`, and torch sees no GPU.
    """
    found, problem = _look_for_gpus()
    if found or device == "cpu":
        return found
    if device == "cuda":
        raise ConfigError(f"--device cuda: {problem or 'there is no NVIDIA GPU on this machine'}; or leave out "
                          "--device to run on processors")
    if problem is not None:
        warn(f"{problem}; running on processors meanwhile")
    return False


def _look_for_gpus() -> tuple[bool, str | None]:
    """Whether torch sees a GPU; for one that exists unseen, also why and what to install."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return True, None
    if not gpu_files():
        return False, None
    driver = driver_branch()
    fitting = next((cuda for cuda, oldest in OLDEST_DRIVERS.items() if driver is not None and driver >= oldest), None)
    install = f"install a build of torch for CUDA {fitting}" if fitting else "install a build of torch for CUDA"
    with_driver = "" if driver is None else f" with driver {driver}"
    if torch.version.cuda is None:
        why = f"this machine has a GPU{with_driver}, but torch {torch.__version__} is a build for processors"
        return False, f"{why}; {install}"
    built = int(torch.version.cuda.split(".")[0])
    if driver is not None and driver < OLDEST_DRIVERS.get(built, 0):
        why = f"the GPU's driver {driver} is too old for torch {torch.__version__}, built for CUDA {torch.version.cuda}"
        return False, f"{why}; update the driver to {OLDEST_DRIVERS[built]} or newer, or {install}"
    reason = str(caught[0].message).splitlines()[0] if caught else "no reason given"
    return False, (f"this machine has a GPU{with_driver}, but torch {torch.__version__} does not see it ({reason}); "
                   "look at CUDA_VISIBLE_DEVICES and at nvidia-smi")  # fmt: skip


def gpu_files() -> list[Path]:
    """The device files of NVIDIA GPUs."""
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def driver_branch() -> int | None:
    """The major version of the NVIDIA driver, such as 535; None without a driver."""
    try:
        words = DRIVER_VERSION.read_text("utf-8", "replace").split()
    except OSError:
        return None
    numbers = [word.split(".")[0] for word in words if word[:1].isdigit() and "." in word]
    return int(numbers[0]) if numbers and numbers[0].isdigit() else None


def require_usable(device: str | torch.device, where: str) -> None:
    """Computes something small on the device.

    Raises:
        ConfigError: that failed, for example on a GPU without free memory.
    """
    try:
        torch.ones(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError) as error:  # AcceleratorError and OutOfMemoryError are RuntimeErrors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{where} cannot use its {torch.device(device).type} device ({reason}); nvidia-smi shows the driver and "
            f"what holds its memory, torch is {torch.__version__} for CUDA {torch.version.cuda}; or give --device cpu"
        ) from error
