"""--dtype: the type in which a store keeps the features of each stream."""

from collections.abc import Collection, Mapping
from typing import cast

from refavs.choices import STORED_TYPES, StoredType
from refavs.config import nearest
from refavs.errors import ConfigError


class StoredTypes:
    """The type of each stream: as it is asked for, else as the store has it, else as its encoder gives it.

    Args:
        asked: as `--dtype` takes it: a type for all visual streams, or STREAM=TYPE, several separated by commas.
        known: facts of the streams that the store has, by id.

    Raises:
        ConfigError: something else was asked for.
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
        """The type of a stream; None for what its encoder gives."""
        named = [name for name in self._asked if _names(name, id)]
        known = self._known.get(id)
        wanted = self._asked[max(named, key=len)] if named else known if known in STORED_TYPES else None
        return cast("StoredType | None", wanted)

    def refuse_unused(self, ids: Collection[str]) -> None:
        """Checks that every stream that was named is among those of a run.

        Raises:
            ConfigError: one is not.
        """
        for name in self._asked:
            if name != "visual" and not any(_names(name, id) for id in ids):
                raise ConfigError(f"--dtype names {name!r}, which is no stream of this run; {nearest(name, ids)}")


def _names(name: str, id: str) -> bool:
    """Whether a stream is the one of that name, with or without its modality, or a level of it."""
    return any(f"{whole}/".startswith(f"{name}/") for whole in (id, id.partition("/")[2]))
