"""Sources of encoder weights: a folder, the package, the hub's cache, a download, or a random generator."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refavs.config import file_stamp
from refavs.errors import ConfigError, WeightsError

TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
CONNECT_TIMEOUT_S = 10.0
TOKEN = "a token (accept the licence at hf.co/{}, then hf auth login)"
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1  # torch's limits


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """The user's choice of weights.

    Attributes:
        kind: `pretrained`, or `random` for smoke runs and tests without a network.
        seed: seed of random weights; None means zeros, which are cheap, to time an encoder.
        folder: folder with `mask2former/` and `roberta-base/` (as on the hub) and `vggish.pth` for preset base, or
            `visual.safetensors` for preset tiny; None means the hub's cache or a download.
        fetch: whether missing files are downloaded; a dry run only reports them.
    """

    kind: Literal["pretrained", "random"] = "pretrained"
    seed: int | None = 0
    folder: Path | None = None
    fetch: bool = True

    def __post_init__(self) -> None:
        if self.seed is not None and not LEAST_SEED <= self.seed <= MOST_SEED:
            raise ConfigError(f"--seed is {self.seed}; accepted: a whole number from {LEAST_SEED} to {MOST_SEED}")


class NotFetched(WeightsError):
    """The weights are not on this machine; a run would download them."""


class OtherArchitecture(WeightsError):
    """The names or sizes of the weights do not match the network."""


@dataclass(frozen=True, kw_only=True)
class WeightPart:
    """A weights file of an encoder, for `refavs-extract --check-weights`.

    Attributes:
        find: returns the file, or None if none is needed.
        load: reads the file as the encoder does.
        fetch: a command that downloads the file into the folder `{folder}`.
    """

    name: str
    find: Callable[[], Path | None]
    load: Callable[[], object]
    fetch: str


def weights_stamp(file: Path | None, seed: int | None) -> str:
    """Identifies weights in a fingerprint, by the hash of their file or the seed of random ones."""
    return f"random:{seed}" if file is None else file_stamp(file)


def in_folder(folder: Path, *names: str) -> Path:
    """The first of `names` that exists in `folder`.

    Raises:
        WeightsError: none of them exists.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"--weights-dir {folder} has none of {', '.join(names)}; put the file there, leave out --weights-dir to use "
        "the hub's cache or a download, or pass --weights random"
    )


def from_hub(repository: str, *names: str, fetch: bool = True, gated: bool = False) -> Path:
    """The first existing file of `names` in a hub repository, from the hub's cache or by download.

    Args:
        repository: its id.
        names: of the file.
        fetch: download it where the cache lacks it.
        gated: the hub sends it only to those who accepted the licence.

    Raises:
        NotFetched: it is not in the cache, and `fetch` is off.
        WeightsError: it is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # Also look for the model's id before it moved to an organisation, such as roberta-base.
    for known in (repository, repository.rsplit("/", 1)[-1]):
        for name in names:
            cached = try_to_load_from_cache(known, name)
            if isinstance(cached, str):
                return Path(cached)
    licence = f", which needs {TOKEN.format(repository)}" if gated else ""
    what = f"{repository} ({' or '.join(names)}{licence})"
    if not fetch:
        raise NotFetched(f"{what} from the hub")
    # Without a network the hub's client retries for half a minute; one request is enough to find out.
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise _unavailable(what, "the hub cannot be reached")
    problem = "it has no such file"
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            problem = str(error).splitlines()[0]
    raise _unavailable(what, problem)


def from_url(url: str, sha256_prefix: str, fetch: bool = True) -> Path:
    """A file from torch's download cache, or by download.

    Raises:
        NotFetched: it is not in the cache, and `fetch` is off.
        WeightsError: it is not in the cache and cannot be downloaded.
    """
    import torch

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
        "--weights-dir, or pass --weights random (meaningless features, for smoke runs)"
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
