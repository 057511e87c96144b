"""Where encoder weights come from: a folder, the package, the hub's cache or a download; or a random generator."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from refavs.errors import ConfigError, WeightsError
from refavs.files.plain_file import open_plain
from refavs.finite import require_finite_weights
from refavs.model.pickled import load_pickled

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
CONNECT_TIMEOUT_S = 10.0
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1  # that torch takes

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """The user's choice of weights.

    Attributes:
        kind: `pretrained`, or `random` for smoke runs and tests without a network.
        seed: of random weights; None makes them zeros, which costs little, to time an encoder.
        folder: holds `mask2former/` and `roberta-base/` (folders as the hub has them) and `vggish.pth` for preset base,
            `visual.safetensors` for preset tiny; None for the hub's cache or a download.
        fetch: whether a file that is not on this machine is downloaded; a dry run only says that it would be.
    """

    kind: Literal["pretrained", "random"] = "pretrained"
    seed: int | None = 0
    folder: Path | None = None
    fetch: bool = True

    def __post_init__(self) -> None:
        if self.seed is not None and not LEAST_SEED <= self.seed <= MOST_SEED:
            raise ConfigError(f"--seed is {self.seed}; accepted: a whole number from {LEAST_SEED} to {MOST_SEED}")


class NotFetched(WeightsError):
    """Weights that are not on this machine and that a run would download."""


class OtherArchitecture(WeightsError):
    """Weights whose names or sizes are not those of the network."""


@dataclass(frozen=True, kw_only=True)
class WeightPart:
    """A file that an encoder reads its weights from, for `refavs-extract --check-weights`.

    Attributes:
        find: the file, or None where the preset needs none.
        load: reads the file as the encoder does.
        fetch: a command that brings the file into the folder `{folder}`.
    """

    name: str
    find: Callable[[], Path | None]
    load: Callable[[], object]
    fetch: str


def random_stamp(seed: int | None) -> str:
    """How a fingerprint names random weights."""
    return f"random:{seed}"


def randomly(build: Callable[[], Network], seed: int | None) -> Network:
    """Builds a network whose weights depend on nothing but the seed; without a seed they are zeros."""
    if seed is None:
        with _Zeros():
            return build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


class _Zeros(TorchFunctionMode):
    """Initialises tensors with zeros in place of random numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **kwargs)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a file of weights; pickles only in the form that cannot run code.

    Raises:
        WeightsError: the file is not one of weights, or they are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            os.close(open_plain(path))
            found = load_file(path)
        else:
            found = load_pickled(path)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, KeyError, _unpickling_error()) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"weights {path} cannot be read ({reason}); accepted: safetensors, or a pickled state dict of plain tensors"
        ) from error
    if isinstance(found, dict):
        require_finite_weights(path, found)
    return found


def _unpickling_error() -> type[Exception]:
    import pickle

    return pickle.UnpicklingError


def fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Loads `state` into `network`, every weight of which must be there.

    Raises:
        OtherArchitecture: names or shapes differ.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise OtherArchitecture(
            f"weights {path} belong to another architecture: {' '.join(lines)[:300]}; name the folder of this preset's "
            "weights with --weights-dir"
        ) from error


def in_folder(folder: Path, *names: str) -> Path:
    """The first of `names` that `folder` has.

    Raises:
        WeightsError: it has none of them.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"--weights-dir {folder} has none of {', '.join(names)}; put the file there, leave out --weights-dir to use "
        "the hub's cache or a download, or take --weights random"
    )


def from_hub(repository: str, *names: str, fetch: bool = True) -> Path:
    """A file of a hub repository, the first of `names` there is: from the hub's cache, else by download.

    Raises:
        NotFetched: it is not in the cache, and `fetch` is off.
        WeightsError: it is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # A cache filled under the id that a model had before it moved to an organisation, as roberta-base, serves as well.
    for known in (repository, repository.rsplit("/", 1)[-1]):
        for name in names:
            cached = try_to_load_from_cache(known, name)
            if isinstance(cached, str):
                return Path(cached)
    if not fetch:
        raise NotFetched(f"{repository} ({' or '.join(names)}) from the hub")
    # The hub's client retries for half a minute where there is no network; one request is enough to know.
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise _unavailable(f"{repository} ({' or '.join(names)})", "the hub cannot be reached")
    problem = "it has no such file"
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            problem = str(error).splitlines()[0]
    raise _unavailable(f"{repository} ({' or '.join(names)})", problem)


def from_url(url: str, sha256_prefix: str, fetch: bool = True) -> Path:
    """A file from torch's download cache, else by download.

    Raises:
        NotFetched: it is not in the cache, and `fetch` is off.
        WeightsError: it is not in the cache and cannot be downloaded.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    if not fetch:
        raise NotFetched(url)
    if not _reachable(url):
        raise _unavailable(url, "the address cannot be reached")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256_prefix, progress=False)
    except (OSError, RuntimeError) as error:
        raise _unavailable(url, str(error)) from error
    return path


def _unavailable(what: str, problem: str) -> WeightsError:
    return WeightsError(
        f"pretrained weights {what} are not on this machine and {problem}; give a folder that has them with "
        "--weights-dir, or take --weights random (features without meaning, for smoke runs)"
    )


def _reachable(url: str) -> bool:
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, method="HEAD"), timeout=CONNECT_TIMEOUT_S):
            return True
    except HTTPError:
        return True
    except (URLError, OSError):
        return False
