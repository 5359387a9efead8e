"""Every number and text a user gives is inside its bounds or refused with the bounds."""

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beltline.core import limits
from beltline.core.errors import BodyTooLarge, ValueInvalid


@given(st.floats(0, 1e9))
def test_seconds_come_as_numbers_or_timedeltas(value: float) -> None:
    assert limits.seconds("delay", value) == value


def test_a_timedelta_is_its_seconds() -> None:
    assert limits.seconds("delay", timedelta(minutes=2, milliseconds=500)) == 120.5
    assert limits.seconds("delay", 3) == 3.0
    assert isinstance(limits.seconds("delay", 3), float)
    assert [limits.seconds("delay", text) for text in ("250ms", "1.5s", "2m", "1h", "7d", " 5 m ")] == [0.25, 1.5, 120, 3600, 604800, 300]


@pytest.mark.parametrize("value", [-0.001, math.nan, math.inf, -math.inf, True, "5", "", "ten", "2m", "-1s", None, timedelta(seconds=-1), [1], 61])
def test_senseless_seconds_are_refused_with_name_and_range(value: object) -> None:
    with pytest.raises(ValueInvalid) as caught:
        limits.seconds("delay", value, most=60)  # type: ignore[arg-type]
    assert caught.value.name == "delay"
    assert "from 0s to 1m" in str(caught.value)


def test_an_instant_needs_a_time_zone() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert limits.instant("at", noon) == noon.timestamp()
    assert limits.instant("at", noon.astimezone(timezone(timedelta(hours=-7)))) == noon.timestamp()
    for value in (datetime(2026, 3, 1, 12), "2026-03-01T12:00Z", 1_000_000.0):  # noqa: DTZ001 - the naive one is the point
        with pytest.raises(ValueInvalid):
            limits.instant("at", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-101, 101, 1.0, True, "1", None, 10**30])
def test_a_priority_is_a_whole_number_within_a_hundred(value: object) -> None:
    assert [limits.priority(number) for number in (-100, 0, 100)] == [-100, 0, 100]
    with pytest.raises(ValueInvalid):
        limits.priority(value)


@given(st.text(st.characters(), max_size=300))
def test_a_key_is_any_short_text_without_nul_or_lone_surrogates(text: str) -> None:
    if 1 <= len(text) <= 256 and "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text):
        assert limits.key("group", text) == text
    else:
        with pytest.raises(ValueInvalid):
            limits.key("group", text)


def test_a_key_of_another_type_is_refused() -> None:
    with pytest.raises(ValueInvalid):
        limits.key("group", 5)


def test_headers_are_few_small_texts() -> None:
    good = {"trace": "1", "ü": "ß"}
    assert limits.headers(good) == good
    assert limits.headers(good) is not good
    assert limits.headers({f"h{n}": "" for n in range(64)})


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, {1: "a"}, {"a": "\ud800"}, {"\udfff": "a"}, {f"h{n}": "" for n in range(65)}, {"a": "x" * 16_384}, [("a", "b")], None],
    ids=["value", "key", "surrogate value", "surrogate key", "too many", "too large", "no dict", "None"],
)
def test_other_headers_are_refused(value: object) -> None:
    with pytest.raises(ValueInvalid):
        limits.headers(value)


def test_the_size_of_headers_is_counted_in_bytes() -> None:
    assert limits.headers({"a": "x" * 16_383})
    with pytest.raises(ValueInvalid):
        limits.headers({"a": "ü" * 8_192})


def test_a_body_may_be_as_large_as_the_limit_and_no_larger() -> None:
    assert limits.body(b"x" * 10, 10) == b"x" * 10
    with pytest.raises(BodyTooLarge) as caught:
        limits.body(b"x" * 11, 10)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (11, 10)
    assert limits.body(bytes(limits.MAX_BODY_BYTES))
    with pytest.raises(BodyTooLarge):
        limits.body(bytes(limits.MAX_BODY_BYTES + 1))


@pytest.mark.parametrize(
    ("least", "most", "says"),
    [(0.001, math.inf, "from 1ms."), (0.0, 86400.0, "from 0s to 1d."), (1.0, 366 * 86400.0, "from 1s to 366d."), (0.1, 90.0, "from 100ms to 90s.")],
)
def test_a_duration_that_is_refused_is_told_its_bounds_as_people_write_them(least: float, most: float, says: str) -> None:
    with pytest.raises(ValueInvalid) as told:
        limits.seconds("wait", "soon", least=least, most=most)
    assert told.value.why.endswith(says)
