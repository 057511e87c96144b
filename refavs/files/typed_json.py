"""Checks untrusted JSON against a declared shape; an error names the place that differs.

A record's shape is a `TypedDict`; keys it does not declare are ignored. `float` means a finite number, `Measured` may
also be NaN or infinite, and `Annotated[int, range(...)]` lies within the range.
"""

import json
import math
import types
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

MOST_DEPTH = 32  # nesting accepted for values declared as Any
Measured = Annotated[float, "may be no number"]
Count = Annotated[int, range(2**53)]
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "an object",
          list: "a list", tuple: "a list", type(None): "null"}  # fmt: skip


class OddRecord(ValueError):
    """JSON of an unexpected shape; the text says where, and what is accepted."""


def read_json(data: bytes) -> Any:
    """Parses JSON.

    Raises:
        OddRecord: not JSON in UTF-8, nested too deep, or with a text that is not valid Unicode.
    """
    try:
        value = json.loads(data)
        if rb"\ud" in data.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise OddRecord("it is nested too deep") from None
    except ValueError as error:
        raise OddRecord(" ".join(str(error).split())[:200]) from error
    return value


def shaped(value: Any, kind: Any, where: str = "it") -> Any:
    """Returns `value` if it has the shape `kind`.

    Raises:
        OddRecord: it has another shape; the text begins with the place in the record.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        _refuse_odd(value, where, 0)
    elif origin is Annotated:
        _annotated(value, *arguments, where=where)
    elif is_typeddict(kind):
        _object(value, kind, where)
    elif origin in (Union, types.UnionType):
        _either(value, arguments, where)
    elif origin is Literal:
        if value not in arguments or type(value) not in map(type, arguments):
            raise _odd(value, where, ", ".join(map(repr, arguments)))
    elif origin is dict:
        _same_kind(_is(value, dict, where).items(), arguments[1], where)
    elif origin in (list, tuple):
        _same_kind(enumerate(_is(value, list, where)), arguments[0], where)
    else:
        _is(value, kind, where)
    return value


def _same_kind(items: Iterable[tuple[Any, Any]], kind: Any, where: str) -> None:
    plain, note = kind if kind in (str, bool) else None, getattr(kind, "__metadata__", [None])[0]
    for name, inner in items:
        # Fast path for the usual texts and numbers within a range.
        if type(inner) is not plain and not (type(note) is range and type(inner) is int and inner in note):
            shaped(inner, kind, f"{where}.{name}")


def _object(value: Any, kind: Any, where: str) -> None:
    _is(value, dict, where)
    required, hints = kind.__required_keys__, _hints(kind)
    for name in hints.keys() - value.keys() & required:
        raise OddRecord(f"{where} has no {name!r}")
    for name in hints.keys() & value.keys():
        shaped(value[name], hints[name], f"{where}.{name}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: get_args(hint)[0] if get_origin(hint) is NotRequired else hint for name, hint in hints.items()}


def _annotated(value: Any, kind: Any, note: Any, where: str) -> None:
    if isinstance(note, range):
        if _is(value, int, where) not in note:
            raise _odd(value, where, f"a whole number from {note.start} to {note.stop - 1}")
    elif type(value) is not float:
        _is(value, kind, where)


def _either(value: Any, kinds: tuple[Any, ...], where: str) -> None:
    if value is None and type(None) in kinds:
        return
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            shaped(value, kind, where)
        except OddRecord:
            continue
        return
    shaped(value, others[-1], where)


def _is(value: Any, kind: Any, where: str) -> Any:
    fits = isinstance(value, kind) and type(value) is not bool
    if kind is int:
        fits = fits and abs(value) < 2**63
    elif kind is float:
        fits = type(value) in (int, float) and abs(value) < math.inf
    elif kind is bool:
        fits = type(value) is bool
    if not fits:
        raise _odd(value, where, _NAMES.get(kind, str(kind)))
    return value


def _odd(value: Any, where: str, accepted: str) -> OddRecord:
    """Shows the beginning of a plain value, and only the kind of a nested one."""
    shown = _NAMES[type(value)] if isinstance(value, dict | list) else f"{str(value)[:40]!r}"
    return OddRecord(f"{where[:120]} is {shown}; accepted: {accepted}")


def _refuse_odd(value: Any, where: str, depth: int) -> None:
    """Limits the depth of a value declared as Any, and refuses NaN and infinity in it."""
    if depth > MOST_DEPTH:
        raise OddRecord(f"{where[:120]} is nested deeper than {MOST_DEPTH} levels")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        if isinstance(one, dict | list):
            _refuse_odd(one, f"{where}.{name}", depth + 1)
        elif type(one) is float:
            _is(one, float, f"{where}.{name}")
