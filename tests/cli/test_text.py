"""How values look, and that nothing from task data reaches a terminal raw."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beltline.cli.text import ago, bar, clip, count, safe, safe_json, safe_lines, size, span, table, things, width
from beltline.core.codec import to_json

HOSTILE = "\x1b[31mred\x07\x9b31m\u202etxt.exe\u2066\u2028\x00\x7f\u200b\ufeff"


def test_escape_sequences_bell_bidi_marks_and_separators_become_their_escapes():
    shown = safe(HOSTILE)
    assert shown == "\\x1b[31mred\\x07\\x9b31m\\u202etxt.exe\\u2066\\u2028\\x00\\x7f\\u200b\\ufeff"
    assert safe("a\nb\tc\rd") == "a\\nb\\tc\\rd"


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_no_text_at_all_gets_a_control_character_onto_one_line(text):
    shown = safe(text)
    assert "\n" not in shown
    assert shown.isprintable() or all(c.isprintable() or c in " \xa0" or ord(c) > 0x7F for c in shown)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or "\ud800" <= c <= "\udfff" for c in shown)


def test_tracebacks_keep_their_lines_and_nothing_else():
    assert safe_lines("a\r\n\tb\x1b[2J\n") == "a\n    b\\x1b[2J\n"


def test_json_stays_the_same_json_and_loses_what_a_terminal_obeys():
    text = to_json({"text": HOSTILE})
    shown = safe_json(text)
    assert json.loads(shown) == {"text": HOSTILE}
    assert not any(c in shown for c in "\x1b\x9b\u202e\u2066\u2028\x7f")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.00 s"),
        (0.314, "0.31 s"),
        (6.24, "6.2 s"),
        (41, "41 s"),
        (240, "4 m"),
        (7500, "2 h 5 m"),
        (7200, "2 h"),
        (300_000, "3 d"),
        (-1, "0.00 s"),
    ],
)
def test_spans(seconds, shown):
    assert span(seconds) == shown


def test_ages_say_before_or_after_now():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert ago(now - timedelta(seconds=3), now) == "3 s ago"
    assert ago(now + timedelta(minutes=5), now) == "in 5 m"
    assert ago(now, now) == "now"
    assert ago(None, now) == ""


def test_numbers():
    assert count(1204567) == "1 204 567"
    assert count(float("inf")) == "no bound"
    assert (size(999), size(1500), size(2_500_000), size(123_000_000_000)) == ("999 B", "1.5 kB", "2.5 MB", "123 GB")
    assert (things(1, "message"), things(2, "message"), things(0, "delivery", "deliveries")) == ("1 message", "2 messages", "0 deliveries")


def test_a_bar_is_full_only_when_all_is_done_and_empty_while_there_is_nothing():
    assert bar(99, 100, 10) == "█" * 9 + "░"
    assert bar(100, 100, 10) == "█" * 10
    assert bar(0, 0, 10) == "░" * 10


def test_wide_and_combining_characters_take_the_columns_they_take():
    assert width("abc") == 3
    assert width("写真") == 4
    assert width("e\u0301") == 1
    assert clip("写真写真", 5) == "写真…"


def test_a_table_that_is_too_wide_clips_its_elastic_columns_and_keeps_the_others():
    rows = [["0" * 32, "x" * 100, "y" * 20]]
    lines = table(["id", "text", "more"], rows, right=[False] * 3, elastic=[False, True, True], columns=80)
    assert max(map(len, lines)) <= 80
    assert "0" * 32 in lines[1]
    assert "…" in lines[1]


def test_a_table_aligns_numbers_to_the_right():
    assert table(["n", "name"], [["1", "a"], ["100", "b"]], right=[True, False], elastic=[False, False], columns=80) == [
        "  n  name",
        "  1  a",
        "100  b",
    ]
