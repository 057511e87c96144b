"""Networks of frozen encoders: built with random or zero weights, filled from a file, and prepared for inference."""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from extract.encoders.weights import OtherArchitecture
from refavs.choices import Precision
from refavs.errors import ConfigError, WeightsError
from refavs.files.plain_file import open_plain
from refavs.finite import require_finite_weights
from refavs.machine.accelerator import compute_fp32_exactly
from refavs.machine.torchvision_shim import ensure_torchvision
from refavs.model.pickled import load_pickled

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Network = TypeVar("Network", bound=nn.Module)
Item = TypeVar("Item")
Found = TypeVar("Found")


def refuse_precision(precision: Precision, device: str) -> None:
    """Checks that the device supports the precision.

    Raises:
        ConfigError: it has no instructions for it and would be far slower than in fp32.
    """
    if precision != "fp16" or device != "cpu" or torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return
    raise ConfigError("--precision fp16 needs a GPU, or a processor with AVX512-FP16, which this one lacks; use fp32 "
                      "or bf16, or --device cuda on a machine with a GPU")


def of_transformers(name: str) -> Any:
    """A class of transformers by its place in `transformers.models`, such as `bert.modeling_bert.BertModel`."""
    ensure_torchvision()
    module, _, kind = name.rpartition(".")
    return getattr(importlib.import_module(f"transformers.models.{module}"), kind)


def randomly(build: Callable[[], Network], seed: int | None) -> Network:
    """Builds a network with weights that depend only on the seed; without a seed they are zeros, at no cost."""
    if seed is None:
        with torch.device("meta"):
            network = build().to_empty(device="cpu")
        for values in (*network.parameters(), *network.buffers()):
            values.detach().zero_()
        return network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a weights file; pickles are read without running code.

    Raises:
        WeightsError: the file does not contain weights, or they are not finite.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            os.close(open_plain(path))
            found = load_file(path)
        else:
            found = load_pickled(path)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"weights {path} cannot be read ({reason}); accepted: safetensors, or a pickled state dict of plain tensors"
        ) from error
    if isinstance(found, dict):
        require_finite_weights(path, found)
    return found


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads `state` into `network`; every weight must be present.

    Raises:
        OtherArchitecture: names or shapes differ.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise OtherArchitecture(
            f"weights {path} belong to another architecture: {' '.join(lines)[:300]}; name the folder of this "
            "encoder's weights with --weights-dir"
        ) from error


def frozen(network: Network, device: str, dtype: torch.dtype) -> Network:
    """Prepares a network for inference: frozen, on its device, in its precision, and exact in fp32.

    Every encoder uses this. Autocast would convert the weights again in each pass.
    """
    compute_fp32_exactly()
    return network.eval().requires_grad_(False).to(device, dtype)


def each_in_one_thread(compute: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """Computes each item in one torch thread, and as many items at once as torch has threads.

    The sums of several threads depend on their number in the last bits.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        return [compute(item) for item in items]
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(compute, items))
    finally:
        torch.set_num_threads(num_threads)  # the libraries below have one setting for all threads


def to_host(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves tensors to the host; from a GPU through pinned memory, which is ten times faster than pageable memory.

    The pinned blocks come from torch's cache and return to it when the arrays on them are freed.
    """
    if not all(value.is_cuda for value in maps.values()):
        return {path: value.cpu() for path, value in maps.items()}
    found = {path: torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
             for path, value in maps.items()}  # fmt: skip
    torch.cuda.current_stream().synchronize()
    return found
