"""JSON of strangers: what has another shape than is declared is named, with what is accepted."""

import json
import math
import re
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from refavs.files.typed_json import MOST_DEPTH, Count, Measured, OddRecord, read_json, shaped


class Inner(TypedDict):
    number: int
    share: NotRequired[float]


class Whole(TypedDict, total=False):
    inner: Inner
    names: list[str]
    kind: Literal["a", "b"]
    values: dict[str, Measured | None]
    place: Annotated[int, range(3)]
    size: Count
    rest: dict[str, Any]
    either: str | int | None


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize("value", [
    {}, {"inner": {"number": 1, "share": 1, "more": []}}, {"names": [], "kind": "b"},
    {"values": {"a": math.nan, "b": math.inf, "c": 3, "d": None}}, {"place": 2, "size": 2**52},
    {"rest": {"a": [{"b": None}]}, "either": None}, {"either": 3, "rest": nested(MOST_DEPTH // 2 - 1)},
])  # fmt: skip
def test_record_of_its_shape_is_taken_as_it_is(value: dict) -> None:
    assert shaped(value, Whole) is value


@pytest.mark.parametrize(("value", "text"), [
    ([], "it is a list; accepted: an object"),
    ({"inner": {}}, "it.inner has no 'number'"),
    ({"inner": {"number": True}}, "it.inner.number is 'True'; accepted: a whole number"),
    ({"inner": {"number": 10**30}}, "accepted: a whole number"),
    ({"inner": {"number": 1, "share": math.nan}}, "it.inner.share is 'nan'; accepted: a number"),
    ({"names": ["a", None]}, "it.names.1 is 'None'; accepted: a text"),
    ({"kind": "c"}, "it.kind is 'c'; accepted: 'a', 'b'"),
    ({"kind": []}, "it.kind is a list; accepted: 'a', 'b'"),
    ({"values": {"a": "1"}}, "it.values.a is '1'; accepted: a number"),
    ({"place": 3}, "it.place is '3'; accepted: a whole number from 0 to 2"),
    ({"size": -1}, "it.size is '-1'; accepted: a whole number from 0 to"),
    ({"rest": nested(400)}, f"is nested deeper than {MOST_DEPTH} levels"),
    ({"rest": {"a": [math.inf]}}, "it.rest.a.0 is 'inf'; accepted: a number"),
    ({"either": {}}, "it.either is an object; accepted: a whole number"),
    ({"names": "x" * 1000}, f"it.names is '{'x' * 40}'; accepted: a list"),
])  # fmt: skip
def test_record_of_another_shape_is_named(value: Any, text: str) -> None:
    with pytest.raises(OddRecord, match=re.escape(text)):
        shaped(value, Whole)


@pytest.mark.parametrize(("data", "text"), [
    (b"[" * 100_000, "nested too deep"), (b"", "Expecting value"), (b"\xff", "can't decode"),
    (b"1" * 5000, "4300 digits"),
    (json.dumps("\ud800").encode(), "surrogates not allowed"),
])  # fmt: skip
def test_invalid_json_is_reported_on_one_line(data: bytes, text: str) -> None:
    with pytest.raises(OddRecord, match=text) as caught:
        read_json(data)
    assert "\n" not in str(caught.value)
    assert read_json(json.dumps("\U0001f600 \\ud8").encode()) == "\U0001f600 \\ud8"
