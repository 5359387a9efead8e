"""beltline queue."""

import json

import pytest


def test_ls_shows_every_queue_with_its_counts(beltline, store):
    store.send("resize", {"n": 1}, {"n": 2})
    store.send("resize", delay_s=60)
    store.kill("mail")
    found = {item["name"]: item for item in beltline("queue", "ls", "--json").json}
    assert {name: found["resize"][name] for name in ("ready", "delayed", "leased", "dead")} == {"ready": 2, "delayed": 1, "leased": 0, "dead": 0}
    assert found["mail"]["dead"] == 1
    assert {item["version"] for item in found.values()} == {1}
    assert found["mail"]["max_backlog"] is None


def test_in_a_pipe_it_is_tsv_with_one_header_line(beltline, store):
    said = beltline("queue", "ls")
    head, *rows = said.out.splitlines()
    assert head.split("\t")[:3] == ["queue", "ready", "delayed"]
    assert [row.split("\t")[0] for row in rows] == ["mail", "resize"]


def test_quiet_prints_names(beltline, store):
    assert beltline("queue", "ls", "--quiet").out == "mail\nresize\n"


def test_show_one(beltline, store):
    store.declare("resize", max_backlog=10)
    assert beltline("queue", "show", "resize", "--json").json["max_backlog"] == 10
    assert "full at        10" in beltline("queue", "show", "resize").out


def test_a_queue_nobody_declared_is_not_found_and_the_near_name_is_told(beltline, store):
    said = beltline("queue", "show", "resise")
    assert said.code == 3
    assert "Did you mean 'resize'?" in said.err


def test_pause_and_resume(beltline, store):
    assert beltline("queue", "pause", "resize", "--json").json["paused"] is True
    assert "paused" in beltline("queue", "show", "resize").out
    assert beltline("queue", "resume", "resize", "--json").json["paused"] is False


def test_purge_says_the_count_and_needs_a_yes_where_there_is_no_terminal(beltline, store):
    [id] = store.send("resize")
    said = beltline("queue", "purge", "resize")
    assert said.code == 6
    assert "Deleting 1 message of resize (1 ready, 0 delayed, 0 dead)" in said.err
    assert "--yes" in said.err
    assert store.state(id) == "ready"


def test_a_dry_run_purges_nothing(beltline, store):
    [id] = store.send("resize")
    said = beltline("queue", "purge", "resize", "--dry-run")
    assert (said.code, said.out) == (0, "")
    assert "Deleting 1 message" in said.err
    assert store.state(id) == "ready"


def test_purge_with_a_yes_deletes_and_counts(beltline, store):
    store.send("resize", {"n": 1}, {"n": 2})
    found = beltline("queue", "purge", "resize", "--yes", "--reason", "test data", "--json").json
    assert (found["purged"], found["ready"], found["reason"]) == (2, 0, "test data")


def test_purging_nothing_is_refused(beltline, store):
    assert beltline("queue", "purge", "resize", "--yes").code == 6


def test_move_makes_the_dead_of_one_queue_ready_in_another(beltline, store):
    [id] = store.kill("resize")
    assert beltline("queue", "move", "resize", "--to", "nowhere", "--yes").code == 3
    assert beltline("queue", "move", "resize", "--to", "mail", "--yes", "--json").json["moved"] == [id]
    assert beltline("message", "show", id, "--json").json["queue"] == "mail"
    assert beltline("queue", "move", "resize", "--to", "mail", "--yes").code == 6


def test_watch_prints_one_object_a_line_until_it_is_empty(beltline, store):
    said = beltline("queue", "watch", "resize", "--until-empty", "--every", "0.1", "--json")
    [line] = said.out.splitlines()
    assert json.loads(line)["name"] == "resize"


@pytest.mark.parametrize("words", [("show",), ("pause",), ("purge",), ("watch", "--every", "0")])
def test_a_wrong_call_is_a_usage_error(beltline, words):
    assert beltline("queue", *words).code == 2
