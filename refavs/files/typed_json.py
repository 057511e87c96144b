"""JSON records read without trust: their shape is declared by types, and what has another one is refused by name.

A record is declared as a `TypedDict`; keys that it does not name are left to whoever reads them. `float` is a finite
number, `Measured` may also be none or infinite, and an `Annotated[int, range(...)]` lies within the range.
"""

import json
import math
import types
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

MOST_DEPTH = 32  # of values that no type describes
Measured = Annotated[float, "may be no number"]
Count = Annotated[int, range(2**53)]
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "an object",
          list: "a list", tuple: "a list", type(None): "null"}  # fmt: skip


class OddRecord(ValueError):
    """JSON of another shape than its readers expect; the text says where and what is accepted."""


def read_json(data: bytes) -> Any:
    """The value that `data` holds.

    Raises:
        OddRecord: it is no JSON in UTF-8, or is nested too deep, or holds a text that is not valid Unicode.
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
    """`value`, whose shape is that of `kind`.

    Raises:
        OddRecord: another shape; the text begins with the place in the record.
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
        # Most are texts, or numbers within a range, which need no look at how they are declared.
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
    right = isinstance(value, kind) and type(value) is not bool
    if kind is int:
        right = right and abs(value) < 2**63
    elif kind is float:
        right = type(value) in (int, float) and abs(value) < math.inf
    elif kind is bool:
        right = type(value) is bool
    if not right:
        raise _odd(value, where, _NAMES.get(kind, str(kind)))
    return value


def _odd(value: Any, where: str, accepted: str) -> OddRecord:
    """Of a long value the beginning; one that is nested is not shown."""
    told = _NAMES[type(value)] if isinstance(value, dict | list) else f"{str(value)[:40]!r}"
    return OddRecord(f"{where[:120]} is {told}; accepted: {accepted}")


def _refuse_odd(value: Any, where: str, depth: int) -> None:
    """What no type describes may be anything that can be shown and compared."""
    if depth > MOST_DEPTH:
        raise OddRecord(f"{where[:120]} is nested deeper than {MOST_DEPTH} levels")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        if isinstance(one, dict | list):
            _refuse_odd(one, f"{where}.{name}", depth + 1)
        elif type(one) is float:
            _is(one, float, f"{where}.{name}")
