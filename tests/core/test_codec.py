"""What goes in comes out by its declared type; what cannot be carried is refused by name; what is read is never trusted."""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from beltline.core import codec
from beltline.core.errors import MessageInvalid, ValueInvalid


@dataclass
class Size:
    width: int
    height: int = 9


class Photo(msgspec.Struct):
    name: str
    size: Size
    taken: datetime | None = None


class Address(BaseModel):
    street: str
    since: datetime


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: float
    y: float


class Movie(TypedDict):
    title: str
    year: int


NOON = datetime(2026, 3, 29, 12, 0, 0, 123456, tzinfo=UTC)
CARRIED: list[tuple[Any, Any]] = [
    (Size, Size(3, 4)),
    (Photo, Photo("a.jpg", Size(1), NOON)),
    (Address, Address(street="Hill 1", since=NOON)),
    (list[Address], [Address(street="Hill 1", since=NOON)]),
    (datetime, NOON),
    (date, NOON.date()),
    (time, time(23, 59, 59)),
    (timedelta, timedelta(days=-1, microseconds=7)),
    (UUID, UUID(int=2**127 + 5)),
    (Path, Path("/photos/ä b.jpg")),
    (PurePosixPath, PurePosixPath("a/../b")),
    (dict[str, Path], {"in": Path("a"), "out": Path("b")}),
    (bytes, bytes(range(256))),
    (Colour, Colour.RED),
    (Level, Level.HIGH),
    (Decimal, Decimal("0.10")),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2, 3}),
    (frozenset[str], frozenset("ab")),
    (Point, Point(1.5, -2.0)),
    (Movie, {"title": "M", "year": 1931}),
    (int | None, None),
    (int, 2**64 - 1),
    (int, -(2**63)),
    (float, math.inf),
    (str, "\x00\U0001f600"),
    (Any, {"a": [1, None, True, b"x"]}),
]


@pytest.mark.parametrize(("kind", "value"), CARRIED, ids=[f"{at}-{codec.type_name(kind)}" for at, (kind, _) in enumerate(CARRIED)])
def test_a_value_comes_back_as_its_declared_type(kind: Any, value: Any) -> None:
    again = codec.Typed(kind).read(codec.pack(value))
    assert again == value
    assert type(again) is type(value)


def test_nan_stays_nan() -> None:
    assert math.isnan(codec.unpack(codec.pack(math.nan)))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_need_no_declared_type(value: object) -> None:
    assert codec.unpack(codec.pack(value)) == value


class Strange:
    pass


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def circle() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


REFUSED = [
    (2**64, "64 bits"),
    (-(2**63) - 1, "64 bits"),
    (10**5000, "64 bits"),
    ({"a": [2**64]}, "64 bits"),
    ("\ud800", "surrogate"),
    ({"\udfff": 1}, "surrogate"),
    (Strange(), "Strange"),
    ([Strange], "type"),
    (Unshowable(), "Unshowable"),
    (1 + 2j, "complex"),
    (lambda: 1, "function"),
    (open, "builtin_function_or_method"),
    (circle(), "circles"),
    (deep(100_000), "nested"),
]


@pytest.mark.parametrize(("value", "named"), REFUSED, ids=[f"{named} {at}" for at, (_, named) in enumerate(REFUSED)])
def test_what_cannot_be_carried_is_refused_by_name(value: object, named: str) -> None:
    with pytest.raises(ValueInvalid, match=named) as caught:
        codec.pack(value)
    assert len(str(caught.value)) < 500


@given(st.binary(max_size=64))
@example(b"")
@example(b"\xc1")
@example(b"\xa1\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\x91" * 100_000 + b"\x90")
@example(b"\x81\x90\x01")
@example(b"\xc0\xc0")
def test_any_bytes_are_a_value_or_an_invalid_message_never_a_crash(data: bytes) -> None:
    for read in (codec.unpack, codec.split_list, codec.Typed(Photo).read, codec.Typed(dict[str, Path]).read, codec.Typed(Address).read):
        with suppress(MessageInvalid):
            read(data)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Size, {"width": "wide"}),
        (Size, {}),
        (Photo, []),
        (Path, 5),
        (Address, {"street": 1}),
        (Colour, "blue"),
        (UUID, "x"),
        (datetime, "noon"),
        (int, 1.5),
    ],
    ids=str,
)
def test_a_value_that_no_longer_fits_says_which_type_was_expected(kind: Any, value: object) -> None:
    with pytest.raises(MessageInvalid, match=codec.type_name(kind)):
        codec.Typed(kind).read(codec.pack(value))


@given(st.lists(PLAIN, max_size=6))
def test_a_list_is_taken_apart_and_joined_without_being_read(values: list[object]) -> None:
    parts = codec.split_list(codec.pack(values))
    assert [codec.unpack(part) for part in parts] == values
    assert codec.join_list(parts) == codec.pack(values)


@pytest.mark.parametrize("value", [{"a": 1}, "abc", 5, None, b"abc"], ids=repr)
def test_only_a_list_can_be_split(value: object) -> None:
    with pytest.raises(MessageInvalid):
        codec.split_list(codec.pack(value))


def test_a_body_names_its_parameters_or_is_positional() -> None:
    value = codec.pack([1, 2])
    assert codec.unpack(codec.named_body("photo", value, {"width": 640})) == {"photo": [1, 2], "width": 640}
    assert codec.unpack(codec.named_body("photo", value)) == {"photo": [1, 2]}
    assert codec.unpack(codec.named_body("", value, {"width": 640})) == [[[1, 2]], {"width": 640}]
    assert codec.unpack(codec.named_body("", value)) == [[[1, 2]], {}]


@pytest.mark.parametrize(("kind", "name"), [(int, "int"), (Size, "Size"), (Any, "anything"), (list[int], "list[int]"), (int | None, "int | None")])
def test_types_are_named_as_a_user_would_write_them(kind: Any, name: str) -> None:
    assert codec.type_name(kind) == name


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"b": 1, "a": b"xy"}, {"b": 1, "a": "eHk="}),
        (math.nan, None),
        (math.inf, None),
        (2**70, 2**70),
        (Path("/a"), "/a"),
        (NOON, "2026-03-29T12:00:00.123456Z"),
        (Address(street="H", since=NOON), {"street": "H", "since": "2026-03-29T12:00:00.123456Z"}),
        (circle(), "[[...]]"),
        ("\ud800", "'\\ud800'"),
    ],
    ids=["bytes", "nan", "inf", "huge", "path", "datetime", "model", "circle", "surrogate"],
)
def test_printing_never_fails(value: object, shown: object) -> None:
    assert json.loads(codec.to_json(value)) == shown
    assert json.loads(codec.to_json(value, indent=True)) == shown


def test_printing_what_is_not_carried_shows_its_text() -> None:
    assert "Strange" in codec.to_json({"x": Strange()})
    assert codec.to_json(deep(100_000)) == '"<list>"'
    assert codec.to_json({"b": 1, "a": 2}) == '{"a":2,"b":1}'


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "1e999", "[1,]", "\ud800", b"\xff", "[" * 100_000],
    ids=["nothing", "cut off", "nan", "too large", "comma", "surrogate", "no utf-8", "deep"],
)
def test_bad_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueInvalid) as caught:
        codec.from_json(text)
    assert caught.value.name == "JSON"


def test_good_json_is_read() -> None:
    assert codec.from_json('{"a": [1, 2.5, null, "ü"]}') == {"a": [1, 2.5, None, "ü"]}
    assert codec.from_json(b"3") == 3
