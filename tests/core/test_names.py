"""Names and ids: whatever is let through is harmless in a query, a path and a label."""

import re
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beltline.core import names
from beltline.core.errors import NameInvalid

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
GOOD = st.text(ALPHABET, min_size=1, max_size=80).filter(lambda text: text[0] not in "_.-")
ANY = st.text(st.characters(), max_size=100)  # all of Unicode, lone surrogates and NUL among it
IDS = st.uuids().map(lambda id: id.hex)


@given(GOOD)
def test_a_good_name_is_returned_as_it_is(text: str) -> None:
    for check in (names.queue_name, names.task_name, names.chain_name, names.stage_name):
        assert check(text) == text


@given(ANY)
@example("")
@example("a" * 81)
@example("../etc/passwd")
@example("a\n")
@example("a\x00b")
@example("\uff41")
@example("é")
@example("٣")
@example("\ud800")
@example("x'; DROP TABLE message; --")
@example("-rf")
@example(".hidden")
def test_only_ascii_letters_digits_and_three_marks_come_through(text: str) -> None:
    harmless = 1 <= len(text) <= 80 and set(text) <= set(ALPHABET) and text[0] not in "_.-"
    if harmless:
        assert names.queue_name(text) == text
    else:
        with pytest.raises(NameInvalid):
            names.queue_name(text)


@pytest.mark.parametrize("value", [None, 3, b"queue", ["queue"], 1.5])
def test_what_is_no_text_is_no_name(value: object) -> None:
    with pytest.raises(NameInvalid):
        names.queue_name(value)


def test_the_error_says_which_kind_of_name_and_shortens_what_it_shows() -> None:
    with pytest.raises(NameInvalid) as caught:
        names.stage_name("x" * 10_000)
    assert caught.value.kind == "stage"
    assert "stage name" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_name_may_end_like_an_ordered_queue_of_sqs() -> None:
    assert names.queue_name("orders.fifo") == "orders.fifo"


@given(st.uuids())
def test_every_usual_writing_of_an_id_means_the_same(id: uuid.UUID) -> None:
    for text in (id, id.hex, str(id), str(id).upper()):
        assert names.message_id(text) == id.hex


@given(ANY)
@example("٣" * 32)
@example("a" * 31)
@example("0x" + "a" * 30)
def test_what_is_no_id_is_refused(text: str) -> None:
    plain = text.replace("-", "").lower()
    if re.fullmatch("[0-9a-f]{32}", plain):
        assert names.message_id(text) == plain
    else:
        with pytest.raises(NameInvalid):
            names.message_id(text)


@given(IDS, st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_a_derived_id_is_an_id_the_same_every_time_and_near_its_parent(parent: str, parts: list[str]) -> None:
    id = names.derive_id(parent, *parts)
    assert names.message_id(id) == id
    assert names.derive_id(parent, *parts) == id
    assert id[:12] == parent[:12]
    assert uuid.UUID(id).version == 8
    assert uuid.UUID(id).variant == uuid.RFC_4122


@given(IDS, st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), min_size=2, max_size=40, unique=True))
def test_what_stands_for_something_else_has_another_id(parent: str, things: list[tuple[str, int]]) -> None:
    assert len({names.derive_id(parent, name, str(number)) for name, number in things}) == len(things)


def test_parts_do_not_run_into_each_other() -> None:
    parent = "0" * 32
    assert names.derive_id(parent, "ab", "c") != names.derive_id(parent, "a", "bc") != names.derive_id(parent, "abc")


def test_siblings_of_different_parents_differ_though_the_parents_share_their_time() -> None:
    one, two = "0" * 12 + "a" * 20, "0" * 12 + "b" * 20
    assert names.derive_id(one, "stage") != names.derive_id(two, "stage")
