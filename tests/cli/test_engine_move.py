"""`beltline engine move` and `beltline migrate`: what they say, what they leave behind, and their exit codes."""

import json
from pathlib import Path

import psycopg
import pytest

from beltline.core.names import QueueName
from beltline.engines.postgres.schema import history

HERE = "sqlite:///beltline.db"


def test_a_move_says_what_it_moved_and_what_to_change(beltline, store, postgres_url):
    sent = store.send("resize", {"n": 1}, {"n": 2})
    [dead] = store.kill("mail")
    said = beltline("engine", "move", "--from", HERE, "--to", postgres_url, "--json")
    assert said.code == 0, said.err
    assert said.json["state"] == "moved"
    assert said.json["messages"] == {"resize": {"ready": 2}, "mail": {"dead": 1}}
    assert said.json["copied"] == 3
    assert "sealed" in said.err
    assert beltline("queue", "show", "resize", "--url", postgres_url, "--json").json["ready"] == 2
    assert beltline("message", "show", dead, "--url", postgres_url, "--json").json["state"] == "dead"
    assert beltline("message", "show", sent[0], "--json").json["state"] == "ready"  # the source is kept, to be looked at
    refused = beltline("queue", "pause", "resize")
    assert refused.code == 6
    assert "BLT-407" in refused.err
    assert postgres_url.partition("?")[0] in refused.err
    again = beltline("engine", "move", "--from", HERE, "--to", postgres_url)
    assert again.code == 0
    assert "url = " in again.out


def test_a_dry_run_changes_nothing(beltline, store, folder):
    store.send("resize")
    said = beltline("engine", "move", "--from", HERE, "--to", "sqlite:///other.db", "--dry-run", "--json")
    assert (said.code, said.json["state"]) == (0, "dry_run")
    assert said.json["messages"]["resize"]["ready"] == 1
    assert not (folder / "other.db").exists()
    assert beltline("queue", "pause", "resize").code == 0


def test_what_is_leased_is_waited_for_and_a_move_can_be_taken_back(beltline, store):
    store.send("resize")
    store.do(lambda engine: engine.receive([QueueName("resize")], limit=1, lease_s=600.0))
    said = beltline("engine", "move", "--from", HERE, "--to", "sqlite:///other.db", "--wait", "0")
    assert said.code == 7
    assert "1 leased messages" in said.out
    assert beltline("queue", "pause", "resize").code == 6
    back = beltline("engine", "move", "--from", HERE, "--abort", "--json")
    assert (back.code, back.json["state"]) == (0, "taken_back")
    assert beltline("queue", "pause", "resize").code == 0
    assert beltline("engine", "move", "--from", HERE, "--abort").code == 6


def test_a_target_that_is_not_empty_is_refused(beltline, store):
    store.send("resize")
    assert beltline("engine", "move", "--from", HERE, "--to", "sqlite:///other.db").code == 0
    said = beltline("engine", "move", "--from", "sqlite:///other.db", "--to", HERE)
    assert said.code == 6
    assert beltline("queue", "pause", "resize", "--url", "sqlite:///other.db").code == 0


@pytest.mark.parametrize("words", [(), ("--from", HERE), ("--from", HERE, "--to", HERE)])
def test_a_wrong_call_is_a_usage_error(beltline, store, words):
    assert beltline("engine", "move", *words).code == 2


STEPS = [step.name for step in history().steps]


def test_migrate_sets_up_an_empty_database_and_does_nothing_twice(beltline, postgres_url):
    missing = beltline("migrate", "--url", postgres_url, "--check", "--json")
    assert (missing.code, missing.json["found"], missing.json["missing"]) == (6, 0, STEPS)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT to_regnamespace('beltline')").fetchall() == [(None,)]
    taken = beltline("migrate", "--url", postgres_url, "--json")
    assert (taken.code, taken.json["taken"]) == (0, STEPS)
    assert all(f"{step} taken" in taken.err for step in STEPS)
    again = beltline("migrate", "--url", postgres_url)
    assert (again.code, again.err) == (0, "")
    assert "nothing to do" in again.out
    assert beltline("migrate", "--url", postgres_url, "--check").code == 0


def test_migrate_refuses_tables_of_a_newer_version(beltline, postgres_url):
    assert beltline("migrate", "--url", postgres_url).code == 0
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("UPDATE beltline.meta SET value = '9' WHERE key IN ('schema', 'min_reader')")
    said = beltline("migrate", "--url", postgres_url, "--json")
    assert (said.code, json.loads(said.out)["fits"]) == (6, False)


def test_migrate_of_a_file(beltline, folder: Path):
    missing = beltline("migrate", "--check")
    assert missing.code == 6
    assert not (folder / "beltline.db").exists()
    assert beltline("migrate").code == 0
    assert "nothing to do" in beltline("migrate").out
    (folder / "beltline.db").write_bytes(b"something else of a hundred bytes" * 40)
    assert beltline("migrate", "--check").code == 6
