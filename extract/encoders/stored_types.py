"""--dtype: the type in which a store keeps the features of each stream."""

from collections.abc import Collection, Mapping
from typing import cast

from refavs.choices import STORED_TYPES, StoredType
from refavs.config import nearest
from refavs.errors import ConfigError


class StoredTypes:
    """The type of each stream: the requested one, otherwise the store's, otherwise the type of the encoder's output.

    Args:
        asked: the value of `--dtype`: a type for all visual streams, or STREAM=TYPE; several separated by commas.
        known: fingerprints of the store's streams, by id.

    Raises:
        ConfigError: `asked` has another form, or an unknown type.
    """

    def __init__(self, asked: str | None = None, known: Mapping[str, Mapping[str, object]] | None = None) -> None:
        self._asked: dict[str, StoredType] = {}
        self._known = {id: str(facts.get("dtype")) for id, facts in (known or {}).items()}
        for part in (asked or "").split(",") if asked is not None else ():
            stream, _, dtype = part.strip().rpartition("=")
            if dtype not in STORED_TYPES:
                raise ConfigError(f"--dtype is {part.strip()!r}; accepted: one of {', '.join(STORED_TYPES)} for all "
                                  "visual streams, or STREAM=TYPE, several separated by commas")
            self._asked[stream or "visual"] = cast(StoredType, dtype)

    def of(self, id: str) -> StoredType | None:
        """The type of a stream; None for the type of the encoder's output."""
        named = [name for name in self._asked if _names(name, id)]
        known = self._known.get(id)
        wanted = self._asked[max(named, key=len)] if named else known if known in STORED_TYPES else None
        return cast("StoredType | None", wanted)

    def refuse_unused(self, ids: Collection[str]) -> None:
        """Checks that a run has every stream that `--dtype` names.

        Raises:
            ConfigError: it does not have one of them.
        """
        for name in self._asked:
            if name != "visual" and not any(_names(name, id) for id in ids):
                raise ConfigError(f"--dtype names {name!r}, which is not a stream of this run; {nearest(name, ids)}")


def _names(name: str, id: str) -> bool:
    """Whether `name` is the stream, with or without its modality, or the encoder of the stream."""
    return any(f"{whole}/".startswith(f"{name}/") for whole in (id, id.partition("/")[2]))
