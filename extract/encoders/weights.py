"""Where encoder weights come from: a folder, the package, the hub's cache or a download; or a random generator."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refavs.config import file_stamp
from refavs.errors import ConfigError, WeightsError

TENSOR_FILES = ("model.safetensors", "pytorch_model.bin")
CONNECT_TIMEOUT_S = 10.0
TOKEN = "a token (accept the licence at hf.co/{}, then hf auth login)"
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1  # that torch takes


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


def weights_stamp(file: Path | None, seed: int | None) -> str:
    """How a fingerprint names weights: by the hash of their file, or by the seed of random ones."""
    return f"random:{seed}" if file is None else file_stamp(file)


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


def from_hub(repository: str, *names: str, fetch: bool = True, gated: bool = False) -> Path:
    """A file of a hub repository, the first of `names` there is: from the hub's cache, else by download.

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

    # A cache filled under the id that a model had before it moved to an organisation, as roberta-base, serves as well.
    for known in (repository, repository.rsplit("/", 1)[-1]):
        for name in names:
            cached = try_to_load_from_cache(known, name)
            if isinstance(cached, str):
                return Path(cached)
    licence = f", which needs {TOKEN.format(repository)}" if gated else ""
    what = f"{repository} ({' or '.join(names)}{licence})"
    if not fetch:
        raise NotFetched(f"{what} from the hub")
    # The hub's client retries for half a minute where there is no network; one request is enough to know.
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
    """A file from torch's download cache, else by download.

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
