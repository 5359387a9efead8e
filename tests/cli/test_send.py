"""beltline send: arguments by signature, with or without the code, one or many."""

import json

import pytest

from beltline.core.errors import EngineUnavailable
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, Cause, DeadLetter, Failure, Settlement


def sent(beltline, *words):
    said = beltline("send", *words)
    assert said.code == 0, said.err
    [id] = said.out.split()
    return beltline("message", "show", id, "--json").json


def test_text_becomes_what_the_signature_says(beltline, tasks):
    assert sent(beltline, "double", "21")["arguments"] == {"number": 21}
    assert sent(beltline, "join", "007", "1.5")["arguments"] == {"left": "007", "right": 1.5}
    assert sent(beltline, "join", "--arg", "left=a=b", "--arg", "path=/tmp/x")["arguments"] == {"left": "a=b", "path": "/tmp/x"}
    assert sent(beltline, "total", "[1, 2, 3]")["arguments"] == {"numbers": [1, 2, 3]}
    assert sent(beltline, "double", "--", "-5")["arguments"] == {"number": -5}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("double", "x"), "argument 'number'"),
        (("double",), "argument 'number'"),
        (("double", "1", "2"), "arguments of"),
        (("double", "1", "--arg", "nummer=1"), "'nummer'"),
        (("total", "[1, x]"), "argument 'numbers'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_and_nothing_is_sent(beltline, tasks, folder, words, part):
    said = beltline("send", *words)
    assert said.code == 2
    assert "error[BLT-204]" in said.err
    assert part in said.err.lower()
    assert not (folder / "beltline.db").exists()


def test_an_unknown_name_is_answered_with_the_near_one(beltline, tasks):
    said = beltline("send", "dubble", "1")
    assert said.code == 3
    assert "double'?" in said.err


def test_a_chain_takes_items(beltline, tasks):
    item = sent(beltline, "words", "a,b")
    assert (item["chain"], item["stage"], item["run"]) == ("words", "lines", item["id"])


def test_json_names_arguments_or_gives_them_in_order_and_answers_in_json(run, tasks, beltline):
    for text, expected in (('{"number": 4}', {"number": 4}), ("[5]", {"number": 5})):
        said = run("send", "double", "--json", "-", stdin=text)
        assert said.code == 0, said.err
        found = json.loads(said.out)
        assert (found["version"], found["target"], found["new"]) == (1, "double", True)
        assert beltline("message", "show", found["id"], "--json").json["arguments"] == expected


def test_json_alone_is_only_output(beltline, tasks):
    assert beltline("send", "--json", "double", "4").json["queue"] == "double"


@pytest.mark.parametrize("text", ["", "3", "{", '"x"'])
def test_json_that_is_no_call_is_refused(run, tasks, text):
    assert run("send", "double", "--json", "-", stdin=text).code == 2


def test_stdin_sends_one_message_a_line_in_order(run, tasks, beltline):
    said = run("send", "measure", "--stdin", stdin="one\n\ntwo words\r\n  three\n")
    assert said.code == 0, said.err
    ids = said.out.split()
    assert [beltline("message", "show", id, "--json").json["arguments"]["line"] for id in ids] == ["one", "two words", "  three"]
    assert beltline("queue", "show", "measure", "--json").json["ready"] == 3


def test_many_lines_go_in_batches(run, tasks, beltline):
    said = run("send", "double", "--stdin", "--quiet", stdin="".join(f"{n}\n" for n in range(2500)))
    assert (said.code, len(said.out.split())) == (0, 2500)
    assert beltline("queue", "show", "double", "--json").json["ready"] == 2500


def test_a_bad_line_says_what_was_sent_before_it(run, tasks):
    said = run("send", "double", "--stdin", stdin="".join(f"{n}\n" for n in range(1000)) + "x\n")
    assert said.code == 2
    assert "1 000 lines were sent; none of the 1 from line 1001 on" in said.err


def test_empty_stdin_is_a_usage_error(run, tasks):
    assert run("send", "double", "--stdin", stdin="").code == 2


def test_without_the_code_arguments_travel_as_text_to_the_queue_of_the_name(beltline, store):
    item = sent(beltline, "tasks.resize", "cat.jpg", "640")
    assert (item["queue"], item["task"], item["arguments"]) == ("resize", "tasks.resize", ["cat.jpg", "640"])
    assert sent(beltline, "tasks.other", "x", "--queue", "mail")["queue"] == "mail"


def test_without_the_code_a_queue_nobody_declared_is_an_error(beltline, store):
    said = beltline("send", "tasks.nothing", "x")
    assert said.code == 3
    assert "error[BLT-205]" in said.err


def test_options_reach_the_message(beltline, store):
    item = sent(beltline, "tasks.resize", "x", "--delay", "10m", "--priority", "7", "--group", "g", "--header", "tenant=a")
    assert (item["state"], item["priority"], item["group"], item["headers"]) == ("delayed", 7, "g", {"tenant": "a"})
    item = sent(beltline, "tasks.resize", "x", "--tenant", "acme", "--sticky", "gpu", "--unique-key", "once")
    assert (item["tenant"], item["sticky"], item["unique_key"]) == ("acme", "gpu", "once")
    assert sent(beltline, "tasks.resize", "y", "--unique-key", "once")["id"] == item["id"]
    assert sent(beltline, "tasks.resize", "x", "--at", "2099-01-01T00:00:00+00:00")["due_at"] == "2099-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "words",
    [
        ("--delay", "soon"),
        ("--delay", "-1"),
        ("--at", "tomorrow"),
        ("--priority", "101"),
        ("--id", "x"),
        ("--header", "x"),
        ("--delay", "1", "--at", "2099-01-01"),
        ("--stdin",),
    ],
)
def test_wrong_options_are_usage_errors(beltline, store, words):
    assert beltline("send", "tasks.resize", "x", *words).code == 2


def test_the_same_id_twice_is_one_message(beltline, store):
    id = "0199aa3e5c0a7b1c8e2f4d6a9b0c1d2e"
    assert beltline("send", "tasks.resize", "x", "--id", id, "--json").json["new"] is True
    said = beltline("send", "tasks.resize", "x", "--id", id, "--json")
    assert (said.json["new"], said.json["id"]) == (False, id)
    assert beltline("queue", "show", "resize", "--json").json["ready"] == 1


def test_a_dedup_key_answers_with_the_first_message(beltline, store):
    first = beltline("send", "tasks.resize", "x", "--dedup-key", "k", "--json").json
    second = beltline("send", "tasks.resize", "y", "--dedup-key", "k", "--json").json
    assert (second["id"], second["new"]) == (first["id"], False)


def test_odd_text_arrives_as_it_is(beltline, store):
    for text in ("", "\u202e", "写真.jpg", "a\nb", "x" * 100_000):
        assert sent(beltline, "tasks.resize", text)["arguments"] == [text]


def test_a_file_name_that_is_no_text_is_refused_with_a_reason(run, store):
    said = run("send", "tasks.resize", "bad\udcff")
    assert said.code == 2
    assert "surrogate" in said.err


def test_a_body_over_the_limit_is_refused(beltline, store, monkeypatch):
    monkeypatch.setenv("BELTLINE_MAX_BODY", "1k")
    said = beltline("send", "tasks.resize", "x" * 2000)
    assert said.code == 2
    assert "error[BLT-207]" in said.err


def test_a_full_queue_is_refused(beltline, store):
    store.declare("resize", max_backlog=1)
    assert beltline("send", "tasks.resize", "1").code == 0
    said = beltline("send", "tasks.resize", "2")
    assert (said.code, "error[BLT-301]" in said.err) == (6, True)


def test_wait_times_out_with_its_own_code(beltline, store):
    said = beltline("send", "tasks.resize", "x", "--wait", "--timeout", "50ms")
    assert said.code == 7
    assert "error[BLT-304]" in said.err


def test_an_unknown_outcome_prints_the_id_and_how_to_repeat(beltline, store, monkeypatch):
    """The store's answer is lost each time: the message may be there."""
    from beltline.engines.sqlite.engine import SqliteEngine

    async def answer_lost(self, messages, **_):
        raise EngineUnavailable("The disk did not answer.", effect="unknown")

    monkeypatch.setattr(SqliteEngine, "send", answer_lost)
    said = beltline("send", "tasks.resize", "x")
    assert said.code == 9
    [id] = said.out.split()
    assert f"--id {id}" in said.err


def settle(store, queue, outcome):
    async def act(engine):
        [delivery] = await engine.receive([QueueName(queue)], limit=1, lease_s=30, wait_s=20)
        await engine.settle([Settlement(delivery.receipt, outcome)])

    store.do(act)


def test_wait_prints_the_result(process, store):
    child = process("send", "tasks.resize", "x", "--wait")
    settle(store, "resize", Ack(result=b"\x93\x01\x02\x03"))
    out, err = child.communicate(timeout=40)
    assert (child.returncode, out) == (0, "[1,2,3]\n")
    assert err.startswith("sent ")


def test_wait_ends_with_1_when_the_task_failed(process, store):
    child = process("send", "tasks.resize", "x", "--wait", "--json")
    settle(store, "resize", DeadLetter(reason="rejected", failure=Failure(Cause.REJECTED, "Reject", "no")))
    out, err = child.communicate(timeout=40)
    assert child.returncode == 1
    assert json.loads(out)["outcome"] == "dead"
    assert json.loads(err.splitlines()[-1])["error"]["code"] == "BLT-305"


@pytest.mark.parametrize("text", ["import nothing_of_that_name", "1 / 0", "def broken(:", "raise SystemExit(3)"])
def test_code_that_cannot_be_imported_is_the_users_and_told_without_our_traceback(beltline, tasks, text):
    tasks.write_text(text)
    said = beltline("send", "double", "1")
    assert said.code == 2
    assert "cannot be imported" in said.err
    assert f"{tasks}, line 1" in said.err
    assert "Traceback" not in said.err


def test_an_app_that_is_not_there_is_told(beltline, folder):
    assert "no module" in beltline("send", "x", "--app", "nothing_there:app").err.lower()
    said = beltline("send", "x", "--app", "::")
    assert (said.code, "error[BLT-101]" in said.err) == (2, True)
