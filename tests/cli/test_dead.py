"""beltline dead."""

import os
import pty
import subprocess
import sys

import pytest

from beltline.cli.dead import mask


def test_ls_shows_reason_and_error(beltline, store):
    [id] = store.kill("resize")
    store.send("resize")
    [found] = beltline("dead", "ls", "--json").json
    assert (found["id"], found["why"], found["error"]["type"]) == (id, "failed after 1 attempt", "ValueError")
    assert "ValueError: no good" in beltline("dead", "ls").out


def test_ls_by_error_groups_what_died_of_the_same(beltline, store):
    store.kill("resize", text="cannot read /data/in/cat-17.jpg at 0x7f12")
    store.kill("resize", text="cannot read /data/in/dog-4.jpg at 0x7f99")
    store.kill("mail", type="smtp.Refused")
    first, second = beltline("dead", "ls", "--by", "error", "--json").json
    assert (first["count"], first["queue"], first["error"], first["text"]) == (2, "resize", "ValueError", "cannot read <path> at <n>")
    assert (second["count"], second["error"]) == (1, "smtp.Refused")
    assert first["first_at"] <= first["last_at"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("cannot identify image file '/tmp/a b/cat.jpg'", "cannot identify image file <path>"),
        ("photo 0199aa3e5c0a7b1c8e2f4d6a9b0c1d2e took 3.5 s", "photo <id> took <n> s"),
        ("<Thing object at 0x7f0012ab>", "<…>"),
        ("one\ntwo", "one"),
        ("", ""),
    ],
)
def test_texts_are_masked_where_they_differ_from_message_to_message(text, masked):
    assert mask(text) == masked


def test_redrive_one_by_id(beltline, store):
    [id] = store.kill("resize")
    found = beltline("dead", "redrive", id, "--json").json
    assert (found["matched"], found["redriven"]) == (1, [id])
    assert store.state(id) == "ready"


def test_redrive_by_error_takes_the_last_part_of_the_type(beltline, store):
    [timeout] = store.kill("resize", type="httpx.TimeoutException")
    [other] = store.kill("resize", type="ValueError")
    said = beltline("dead", "redrive", "--error", "TimeoutException", "--yes", "--json")
    assert said.json["redriven"] == [timeout]
    assert store.state(other) == "dead"


def test_a_short_type_that_means_two_is_an_error(beltline, store):
    store.kill("resize", type="a.Timeout")
    store.kill("resize", type="b.Timeout")
    said = beltline("dead", "redrive", "--error", "Timeout", "--yes")
    assert said.code == 2
    assert "a.Timeout, b.Timeout" in said.err


def test_redrive_of_more_than_one_shows_the_count_and_needs_a_yes(beltline, store):
    ids = store.kill("resize", {"n": 1}, {"n": 2})
    said = beltline("dead", "redrive", "-q", "resize")
    assert said.code == 6
    assert "Redriving 2 messages" in said.err
    assert {store.state(id) for id in ids} == {"dead"}


def test_a_dry_run_redrives_nothing(beltline, store):
    [id] = store.kill("resize")
    found = beltline("dead", "redrive", "-q", "resize", "--dry-run", "--json").json
    assert (found["matched"], found["redriven"]) == (1, [])
    assert store.state(id) == "dead"


def test_redrive_at_a_rate_lets_all_through_and_keeps_the_limit(beltline, store):
    ids = store.kill("resize", *[{"n": n} for n in range(6)])
    found = beltline("dead", "redrive", "-q", "resize", "--rate", "100/s", "--limit", "4", "--yes", "--json").json
    assert found["redriven"] == ids[:4]
    assert [store.state(id) for id in ids] == ["ready"] * 4 + ["dead"] * 2


def test_redrive_into_another_queue(beltline, store):
    [id] = store.kill("resize")
    beltline("dead", "redrive", id, "--to", "mail")
    assert beltline("message", "show", id, "--json").json["queue"] == "mail"


def test_redriving_nothing_is_refused(beltline, store):
    assert beltline("dead", "redrive", "-q", "resize", "--yes").code == 6


def test_a_rate_that_is_none_is_a_usage_error(beltline, store):
    for rate in ("0/s", "fast", "1/y"):
        assert beltline("dead", "redrive", "-q", "resize", "--rate", rate).code == 2


def test_delete_ends_dead_messages_for_good(beltline, store):
    ids = store.kill("resize", {"n": 1}, {"n": 2})
    assert beltline("dead", "delete", "-q", "resize").code == 6
    assert beltline("dead", "delete", "-q", "resize", "--yes", "--limit", "1", "--json").json["deleted"] == 1
    assert sorted(store.state(id) for id in ids) == ["dead", "done"]


def test_a_yes_on_the_terminal_does_it_and_anything_else_does_not(store):
    ids = store.kill("resize", {"n": 1}, {"n": 2})
    for answer, state, code in (("n\n", "dead", 6), ("y\n", "ready", 0)):
        ours, theirs = pty.openpty()
        child = subprocess.Popen([sys.executable, "-m", "beltline", "dead", "redrive", "-q", "resize"], stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(ours, 65536)
        assert b"Redriving 2 messages" in shown
        os.write(ours, answer.encode())
        assert child.wait(40) == code
        os.close(ours)
        assert {store.state(id) for id in ids} == {state}
