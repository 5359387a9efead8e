"""beltline message."""

import json

import pytest

from beltline.core.names import QueueName
from beltline.core.outcome import Ack, Settlement
from beltline.core.views import WorkerView


def lease(store, queue, lease_s=60):
    return store.do(lambda engine: engine.receive([QueueName(queue)], limit=10, lease_s=lease_s, wait_s=0, worker="host1-1-ab"))


def test_ls_filters_by_state_queue_task_and_age(beltline, store):
    [ready] = store.send("resize")
    [delayed] = store.send("mail", delay_s=60, task="tasks.mail")
    for words, expected in (
        ((), {ready, delayed}),
        (("--state", "delayed"), {delayed}),
        (("--state", "ready", "--state", "delayed"), {ready, delayed}),
        (("-q", "resize"), {ready}),
        (("--task", "tasks.mail"), {delayed}),
        (("--older", "1h"), set()),
        (("--newer", "1h"), {ready, delayed}),
    ):
        assert set(beltline("message", "ls", "--quiet", *words).out.split()) == expected, words


def test_ls_stops_at_the_limit_and_says_that_there_is_more(beltline, store):
    store.send("resize", *[{"n": n} for n in range(7)])
    said = beltline("message", "ls", "--limit", "5")
    assert len(said.rows) == 5
    assert "more than 5" in said.err
    assert len(beltline("message", "ls", "--limit", "0").rows) == 7


def test_show_tells_arguments_attempts_and_the_traceback(beltline, store):
    [id] = store.kill("resize", {"photo": "cat.jpg", "width": 640}, headers={"tenant": "a"}, priority=5)
    found = beltline("message", "show", id, "--json").json
    assert found["arguments"] == {"photo": "cat.jpg", "width": 640}
    assert found["headers"] == {"tenant": "a"}
    assert (found["state"], found["failed"], found["priority"]) == ("dead", 1, 5)
    assert found["error"] == {"cause": "error", "type": "ValueError", "text": "no good", "traceback": "Traceback\n  line\nValueError: no good"}
    assert [attempt["outcome"] for attempt in found["attempts"]] == ["dead_letter"]
    assert found["sent_at"].endswith("Z")
    text = beltline("message", "show", id).out
    assert '{"photo":"cat.jpg","width":640}' in text
    assert "  Traceback\n    line\n  ValueError: no good" in text


def test_what_a_task_or_sender_wrote_cannot_steer_the_terminal(beltline, store):
    [id] = store.kill("resize", {"name": "\x1b[2J\u202egpj.exe"}, text="\x1b]0;owned\x07", type="E\x9b", headers={"h": "\x1b[31m"})
    for words in (("message", "show", id), ("message", "ls"), ("dead", "ls"), ("dead", "ls", "--by", "error"), ("message", "why", id)):
        for form in ((), ("--json",)):
            said = beltline(*words, *form)
            assert said.code == 0, said.err
            assert not set(said.out) & set("\x1b\x07\x9b\u202e"), words


def test_positional_arguments_are_shown_as_an_array(beltline, store):
    [named] = store.send("resize", [[], {"a": 1}])
    [both] = store.send("resize", [[1], {"a": 1}])
    [plain] = store.send("resize", [["cat.jpg", 640], {}])
    assert beltline("message", "show", plain, "--json").json["arguments"] == ["cat.jpg", 640]
    assert beltline("message", "show", named, "--json").json["arguments"] == {"a": 1}
    assert beltline("message", "show", both, "--json").json["arguments"] == {"positional": [1], "named": {"a": 1}}


@pytest.mark.parametrize(("id", "code"), [("0" * 32, 3), ("0199aa3e-5c0a-7b1c-8e2f-4d6a9b0c1d2e", 3), ("nonsense", 2)])
def test_an_id_that_was_never_sent_is_not_found_and_what_is_none_is_usage(beltline, store, id, code):
    assert beltline("message", "show", id).code == code


def why(beltline, id):
    return beltline("message", "why", id, "--json").json["why"]


def test_why_a_message_is_not_running(beltline, store):
    [first] = store.send("resize", group="a")
    assert why(beltline, first) == "no worker serves queue resize (no worker is up)"
    worker = WorkerView(id="w", host="h", pid=1, started_at=0.0, age_s=0.0, state="up", queues={"resize": 2}, tasks=("tasks.other",))
    store.do(lambda engine: engine.beat(worker))
    assert why(beltline, first) == "no worker of queue resize knows task tasks.resize"
    [second] = store.send("resize", group="a")
    assert why(beltline, second) == f"message {first} of its group 'a' is before it, and is ready"
    beltline("queue", "pause", "resize")
    found = beltline("message", "why", first, "--json").json
    assert (found["rule"], found["why"], found["help"], found["more_workers"]) == (
        "paused",
        "queue resize is paused",
        "beltline queue resume resize",
        False,
    )
    assert beltline("message", "why", first).out == (
        "ready: queue resize is paused\n  help: beltline queue resume resize\n  adding workers will not help\n"
    )


def test_why_for_the_other_states(beltline, store):
    [delayed] = store.send("mail", delay_s=600)
    assert why(beltline, delayed).startswith("it is ready in 10 m")
    [dead] = store.kill("resize")
    assert why(beltline, dead) == "failed after 1 attempt (ValueError: no good)"
    [done] = store.send("resize")
    [delivery] = lease(store, "resize")
    assert "running at host1-1-ab" in why(beltline, done)
    store.do(lambda engine: engine.settle([Settlement(delivery.receipt, Ack())]))
    assert why(beltline, done) == "it ended as succeeded"


def test_ready_hurries_a_delayed_message_and_refuses_others(beltline, store):
    [id] = store.send("resize", delay_s=600)
    assert beltline("message", "ready", id, "--json").json == {"ready": 1, "version": 1}
    assert store.state(id) == "ready"
    assert beltline("message", "ready", id).code == 6


def test_cancel_one_needs_no_yes(beltline, store):
    [id] = store.send("resize")
    [found] = beltline("message", "cancel", id, "--reason", "not wanted", "--json").json
    assert (found["id"], found["state"]) == (id, "done")
    shown = beltline("message", "show", id, "--json").json
    assert (shown["outcome"], shown["why"]) == ("cancelled", "not wanted")


def test_cancel_by_filter_shows_count_and_samples_and_needs_a_yes(beltline, store):
    ids = store.send("resize", *[{"n": n} for n in range(5)])
    said = beltline("message", "cancel", "-q", "resize")
    assert said.code == 6
    assert "Cancelling 5 messages" in said.err
    assert ids[0] in said.err
    assert {store.state(id) for id in ids} == {"ready"}
    assert len(beltline("message", "cancel", "-q", "resize", "--yes", "--json").json) == 5
    assert {store.state(id) for id in ids} == {"done"}


def test_a_leased_message_is_asked(beltline, store):
    [id] = store.send("resize")
    lease(store, "resize")
    [found] = beltline("message", "cancel", id, "--json").json
    assert found["state"] == "leased"
    assert beltline("message", "show", id, "--json").json["cancel_asked"] is True


@pytest.mark.parametrize("words", [("message", "cancel"), ("dead", "redrive"), ("dead", "delete")])
def test_an_empty_filter_is_an_error_and_never_all(beltline, store, words):
    [id] = store.kill("resize")
    said = beltline(*words, "--yes")
    assert said.code == 2
    assert "never means all" in said.err
    assert store.state(id) == "dead"


def test_edit_replaces_the_arguments_of_a_dead_message(beltline, store):
    [id] = store.kill("resize", {"width": "wide"})
    said = beltline("message", "edit", id, '{"width": 640}')
    assert said.code == 0
    assert f"beltline dead redrive {id}" in said.err
    assert beltline("message", "show", id, "--json").json["arguments"] == {"width": 640}
    assert beltline("dead", "edit", id, "[1, 2]", "--json").json["arguments"] == [1, 2]


def test_edit_reads_stdin(run, store):
    [id] = store.kill("resize", {"width": "wide"})
    said = run("message", "edit", id, "-", "--json", stdin='{"width": 7}')
    assert json.loads(said.out)["arguments"] == {"width": 7}


@pytest.mark.parametrize("text", ["3", '"text"', "{", "nonsense"])
def test_edit_refuses_what_are_no_arguments(beltline, store, text):
    [id] = store.kill("resize")
    assert beltline("message", "edit", id, text).code == 2


def test_edit_refuses_a_ready_message(beltline, store):
    [id] = store.send("resize")
    assert beltline("message", "edit", id, "{}").code == 6


def test_move_takes_dead_messages_elsewhere_and_refuses_waiting_ones(beltline, store):
    [dead] = store.kill("resize")
    [ready] = store.send("resize")
    assert [each["id"] for each in beltline("message", "move", dead, "--to", "mail", "--json").json] == [dead]
    assert beltline("message", "move", ready, "--to", "mail").code == 6
