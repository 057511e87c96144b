"""The files of one repository of the hub: sizes, preprocessing and weights of a pretrained network.

They lie in a folder of `--weights-dir`, named by the last part of the repository's id, or in the hub's cache, or are
downloaded. Weights are `model.safetensors` or `pytorch_model.bin`, whole or in shards, under the names that
transformers gives them now or gave them before.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extract.encoders.networks import load_tensors, randomly
from extract.encoders.weights import (
    TENSOR_FILES,
    TOKEN,
    OtherArchitecture,
    WeightPart,
    WeightSource,
    from_hub,
    in_folder,
    weights_stamp,
)
from refavs.config import file_stamp
from refavs.errors import WeightsError
from refavs.files.typed_json import read_json

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
INDEX = ".index.json"
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """A repository's files.

    Attributes:
        repository: its id on the hub.
        source: the user's choice of weights.
        name: of the folder within that of all weights, where it is not the last part of the id.
        gated: the hub sends the files only to those who accepted the licence.
    """

    repository: str
    source: WeightSource
    name: str = ""
    gated: bool = False

    @property
    def folder(self) -> Path | None:
        """Where the user put the files; None where they come from the hub."""
        weights = self.source.folder
        return None if weights is None else weights / (self.name or self.repository.rsplit("/", 1)[-1])

    def file(self, *names: str) -> Path:
        """The first of `names` that exists.

        Raises:
            NotFetched: a run would download it.
            WeightsError: none exists.
        """
        if self.source.folder is not None and self.folder is not None:
            inside = self.folder.relative_to(self.source.folder)
            return in_folder(self.source.folder, *(f"{inside}/{name}" for name in names))
        return from_hub(self.repository, *names, fetch=self.source.fetch, gated=self.gated)

    def settings(self, published: Mapping[str, Any], file: str = CONFIG) -> dict[str, Any]:
        """The values of a JSON file of the repository.

        Args:
            published: its values where weights are random or no file of the repository is on this machine.
            file: its name.

        Raises:
            WeightsError: the file is damaged, or missing beside the weights.
        """
        if self.source.kind == "random" and (self.folder is None or not (self.folder / file).is_file()):
            return dict(published)
        try:
            path = self.file(file)
        except WeightsError:
            if self.folder is not None and any((self.folder / name).is_file() for name in _tensor_names()):
                raise
            return dict(published)
        try:
            found = read_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path} cannot be read ({error}); {self._again}") from error
        if not isinstance(found, dict):
            raise WeightsError(f"{path} holds no JSON object; {self._again}")
        return found

    def tensor_files(self) -> list[Path]:
        """The files of the weights; none where they are random.

        Raises:
            NotFetched: a run would download them.
            WeightsError: they are missing, or the index of their shards is damaged.
        """
        return [] if self.source.kind == "random" else self._tensor_files

    @cached_property
    def _tensor_files(self) -> list[Path]:  # kept when the encoder is sent to a worker, which must have the same files
        first = self.file(*_tensor_names())
        if not first.name.endswith(INDEX):
            return [first]
        try:
            shards = sorted(set(read_json(first.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{first} is no index of shards ({error}); {self._again}") from error
        # An index is a stranger's file: it names files beside it and no others.
        strange = [name for name in shards if not isinstance(name, str) or not re.fullmatch(r"[\w.-]*\w", name)]
        if strange:
            raise WeightsError(f"{first} names the shard {strange[0]!r}, which is no file beside it; {self._again}")
        return [self.file(name) for name in shards]

    def stamp(self) -> str:
        """How a fingerprint names the weights: by the hash of their files, or by the seed of random ones."""
        files = self.tensor_files()
        return file_stamp(*files) if files else weights_stamp(None, self.source.seed)

    def state(self) -> dict[str, Tensor]:
        """The tensors of all files, under their names there.

        Raises:
            WeightsError: as of `tensor_files` and `load_tensors`.
        """
        return {name: value for path in self.tensor_files() for name, value in load_tensors(path).items()}

    def config(self, kind: Any, published: Mapping[str, Any], also: Sequence[str] = ()) -> Any:
        """The sizes of a network of transformers.

        Args:
            kind: the class of its config.
            published: values that differ from the class's own, as of `settings`.
            also: what files may say of the network instead of the class's own name.

        Raises:
            WeightsError: the file is damaged, or describes another kind of network.
        """
        found = self.settings({"model_type": kind.model_type, **published})
        if found.get("model_type") not in (kind.model_type, *also):
            raise OtherArchitecture(f"{CONFIG} of {self.folder or self.repository} describes a "
                                    f"{found.get('model_type')!r}, no {kind.model_type!r}; {self._again}")
        try:
            return kind.from_dict({**found, "model_type": kind.model_type})
        except Exception as error:  # the library raises what its checks do
            raise WeightsError(f"{CONFIG} of {self.folder or self.repository} cannot be used "
                               f"({' '.join(str(error).split())[:200]}); {self._again}") from error

    def tower(self, published: Mapping[str, Any], describe: Callable[[Mapping[str, Any]], Any]) -> Mapping[str, Any]:
        """The sizes of a network that may be a part of another one, as one flat mapping.

        Args:
            published: those without a file, as of `settings`.
            describe: finds the network's part in the content of config.json; returns a config of transformers.

        Raises:
            WeightsError: the file is damaged, or describes another kind of network.
        """
        found = self.settings(published)
        if found == published:
            return published
        try:
            return describe(found).to_dict()
        except Exception as error:  # the library raises what its checks do
            raise WeightsError(f"{CONFIG} of {self.folder or self.repository} cannot be used "
                               f"({' '.join(str(error).split())[:200]}); {self._again}") from error

    def network(self, kind: Any, config: Any, unused: Sequence[str] = (), **options: Any) -> Any:
        """A network of transformers with these weights or random ones, in float32.

        Older names (`gamma` and `beta`, and those before transformers 5) and the prefix of a model with a head are
        replaced by the network's own names.

        Args:
            kind: its class.
            config: its sizes.
            unused: patterns of names that checkpoints have and this network does not need.
            options: further arguments of the class.

        Raises:
            OtherArchitecture: a tensor is missing, left over or of another size.
            WeightsError: as of `state`.
        """
        if self.source.kind == "random":
            return randomly(lambda: kind(config, **options), self.source.seed)
        state = {name: value for name, value in self.state().items()
                 if not any(re.fullmatch(pattern, name) for pattern in unused)}  # fmt: skip
        network, found = _loaded(kind, config, state, options)
        lists = {
            "lacks": found["missing_keys"],
            "has the unknown": found["unexpected_keys"],
            "has another size of": {key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"]},
        }
        wrong = [f"{verb} {_named(names)}" for verb, names in lists.items() if names]
        if wrong:
            raise OtherArchitecture(f"weights {self.tensor_files()[0]} belong to another architecture: the file "
                                    f"{' and '.join(wrong)}; {self._again}")
        return network

    def parts(self, name: str, load: Callable[[], object], *others: str) -> list[WeightPart]:
        """What `--check-weights` and `--dry-run` look for: the weights, and the `others` of the files.

        Args:
            name: of the encoder.
            load: reads the weights as the encoder does.
            others: names of further files that the encoder needs.
        """
        found = [WeightPart(name=name, find=lambda: next(iter(self.tensor_files()), None), load=load,
                            fetch=self.fetch)]  # fmt: skip
        return found + [
            WeightPart(name=f"{name}, {other}", fetch=self.fetch, load=lambda other=other: self.settings({}, other),
                       find=lambda other=other: None if self.source.kind == "random" else self.file(other))
            for other in others
        ]  # fmt: skip

    @property
    def fetch(self) -> str:
        """A command that brings the files into the folder `{folder}`."""
        accept = f", which needs {TOKEN.format(self.repository)}" if self.gated else ""
        name = self.name or self.repository.rsplit("/", 1)[-1]
        return f"hf download {self.repository} --local-dir {{folder}}/{name}{accept}"

    @property
    def _again(self) -> str:
        return f"fetch the files again by {self.fetch.format(folder=self.source.folder or 'DIR')}"


def _tensor_names() -> list[str]:
    return [found for name in TENSOR_FILES for found in (name, f"{name}{INDEX}")]


def _named(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:_MOST_NAMED]) + " ..." * (len(names) > _MOST_NAMED)


def _loaded(kind: Any, config: Any, state: dict[str, Tensor], options: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    """The network filled by transformers, which knows its older names, and what did not fit."""
    with _quietly():
        return kind.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True, local_files_only=True, **options,
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bar and its report, which `network` raises as an error of its own."""
    from transformers.utils import logging as theirs

    log, bar = logging.getLogger("transformers"), theirs.is_progress_bar_enabled()
    level = log.level
    log.setLevel(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        log.setLevel(level)
        if bar:
            theirs.enable_progress_bar()
