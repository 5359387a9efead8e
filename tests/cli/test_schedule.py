"""beltline schedule and beltline upkeep."""

import json
import os
import signal
import time
from datetime import datetime

import pytest

from beltline.core.codec import pack
from beltline.core.outcome import Ack, Cause, DeadLetter, Failure, Settlement
from beltline.core.schedule import OF
from beltline.core.views import MessageFilter
from beltline.upkeep.announcer import Announcer
from beltline.upkeep.scheduler import Scheduler
from tests.cli.conftest import until

NIGHTLY = ("add", "nightly", "double", "21", "--cron", "30 2 * * *", "--tz", "Europe/Berlin")


@pytest.fixture
def schedule(beltline, tasks, store):
    store.declare("double", "join", "lines")
    return lambda *words: beltline("schedule", *words)


def fire(store):
    return store.do(lambda engine: Scheduler(lambda: engine).once())


def test_what_is_added_is_listed_with_its_next_occurrence(schedule, store):
    added = schedule(*NIGHTLY, "--json")
    assert added.code == 0, added.err
    [item] = schedule("ls", "--json").json
    assert {**item, "late_s": 0.0} == {**added.json, "late_s": 0.0}
    assert (item["cron"], item["tz"], item["queue"], item["origin"], item["state"]) == ("30 2 * * *", "Europe/Berlin", "double", "operator", "active")
    assert datetime.fromisoformat(item["next_at"]).timestamp() > time.time()
    assert schedule("ls", "--quiet").out == "nightly\n"
    head, row = schedule("ls").out.splitlines()
    assert head.split("\t")[:3] == ["schedule", "when", "tz"]
    assert row.split("\t")[:3] == ["nightly", "30 2 * * *", "Europe/Berlin"]


def test_arguments_are_read_as_the_signature_says_and_checked(schedule, store):
    assert schedule("add", "one", "join", "a", "2.5", "--every", "1h").code == 0
    view = store.do(lambda engine: engine.schedule("one"))
    assert view.schedule.every_s == 3600.0
    wrong = schedule("add", "two", "double", "many", "--every", "1h")
    assert (wrong.code, "number" in wrong.err) == (2, True)
    assert schedule("add", "two", "double", "--every", "1h").code == 2
    assert [view.schedule.name for view in store.do(lambda engine: engine.schedules())] == ["one"]


def test_arguments_come_as_json_too(tasks, run, store):
    store.declare("double")
    said = run("schedule", "add", "one", "double", "--every", "60", "--json", "-", stdin='{"number": 4}')
    assert said.code == 0, said.err
    assert said.json["every_s"] == 60.0


def test_a_chain_is_scheduled(schedule):
    item = schedule("add", "w", "words", "a,b", "--every", "1d", "--catch-up", "all", "--limit", "7", "--json").json
    assert (item["chain"], item["queue"], item["catch_up"], item["catch_up_limit"]) == ("words", "lines", "all", 7)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--cron", "70 2 * * *"), "bad minute"),
        (("--cron", "@daily", "--tz", "Europe/Berlim"), "Did you mean 'Europe/Berlin'?"),
        ((), "--cron or by --every"),
        (("--cron", "@daily", "--every", "60"), "not both"),
        (("--every", "10ms"), "every"),
    ],
)
def test_a_timing_that_cannot_be_meant_is_a_usage_error(schedule, words, says):
    said = schedule("add", "x", "double", "1", *words)
    assert said.code == 2
    assert says in said.err


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced(schedule):
    schedule(*NIGHTLY)
    assert schedule(*NIGHTLY).code == 0, "the same again is the same"
    said = schedule("add", "nightly", "double", "1", "--every", "60")
    assert said.code == 6
    assert "already" in said.err
    assert "--replace" in said.err
    assert schedule("add", "nightly", "double", "1", "--every", "60", "--replace", "--json").json["every_s"] == 60.0


def test_without_the_code_arguments_travel_as_text_and_an_undeclared_queue_is_told(beltline, store):
    said = beltline("schedule", "add", "r", "tasks.resize", "cat.jpg", "--every", "60")
    assert (said.code, said.err) == (0, "")
    said = beltline("schedule", "add", "n", "tasks.nobody", "--every", "60")
    assert said.code == 0
    assert "not declared" in said.err


def test_show_tells_what_when_and_what_became_of_the_last_one(schedule, store):
    schedule("add", "tick", "double", "1", "--every", "1")
    until(lambda: fire(store))
    said = schedule("show", "tick")
    assert "every 1 s" in said.out
    assert "sends      task" in said.out
    assert said.out.count(" UTC") + said.out.count("+0000") >= 5
    item = schedule("show", "tick", "--json").json
    assert (item["sent"], item["last_state"], len(item["next"])) == (1, "ready", 5)
    assert item["last_id"] in said.out
    assert schedule("show", "tock").code == 3


def test_show_prints_the_last_result_and_the_last_error(schedule, store):
    schedule("add", "tick", "double", "1", "--every", "1")
    until(lambda: fire(store))

    async def end(engine, outcome):
        [delivery] = await engine.receive(["double"], limit=1, lease_s=30)
        await engine.settle([Settlement(delivery.receipt, outcome)])

    store.do(lambda engine: end(engine, Ack(result=pack({"pages": 42}))))
    assert '{"pages":42}' in schedule("show", "tick").out
    assert schedule("show", "tick", "--json").json["last_result"] == {"pages": 42}
    until(lambda: fire(store))
    store.do(lambda engine: end(engine, DeadLetter(reason="no", failure=Failure(Cause.ERROR, "ValueError", "no paper"))))
    assert "ValueError: no paper" in schedule("show", "tick").out
    assert schedule("show", "tick", "--json").json["last_error"]["text"] == "no paper"


def test_a_schedule_is_named_by_the_last_part_of_its_name_too(schedule, tasks):
    schedule("add", "reports.daily", "double", "1", "--every", "1d")
    assert schedule("show", "daily", "--json").json["name"] == "reports.daily"
    assert "Did you mean 'reports.daily'?" in schedule("show", "dayly").err


def test_next_marks_the_changes_of_the_clock(schedule):
    words = ("--cron", "30 2 * * *", "--tz", "Europe/Berlin", "--after", "2026-10-24T12:00+02:00", "-n", "2")
    found = schedule("next", *words, "--json").json
    assert [item["at"] for item in found] == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    assert "twice" in found[0]["note"]
    assert schedule("next", *words).out.splitlines()[1].startswith("2026-10-25T02:30:00+02:00\t")
    schedule(*NIGHTLY)
    assert len(schedule("next", "nightly", "--json").json) == 5
    assert schedule("next", "nightly", "--every", "60").code == 2
    assert schedule("next", "nobody").code == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give --cron or --every"),
        (("--cron", "0 0 * * * *"), "there is none for seconds"),
        (("--cron", "@dayly"), "@daily"),
        (("--cron", "@daily", "--tz", "CEST"), "Abbreviations mean different zones"),
        (("--cron", "@daily", "--start", "2026-01-01"), "--start is for --every"),
    ],
)
def test_an_expression_that_cannot_be_meant_says_what_can(beltline, folder, words, says):
    said = beltline("schedule", "next", *words)
    assert (said.code, says in said.err) == (2, True), said.err
    assert "'EST'" not in said.err
    assert "Schedule '" not in said.err


def test_no_date_is_asked_for_that_cannot_be_written(beltline, folder):
    assert beltline("schedule", "next", "--every", "366d", "--after", "9999-06-01").code == 2
    said = beltline("schedule", "next", "--every", "366d", "--after", "9990-06-01", "-n", "1000", "--quiet")
    assert (said.code, said.out.splitlines()[-1][:4]) == (0, "9999")
    said = beltline("schedule", "next", "--cron", "0 0 1 1 *", "--after", "9990-06-01", "-n", "1000", "--quiet")
    assert (said.code, said.out.splitlines()[-1][:4]) == (0, "9999")


def test_an_interval_of_weeks_is_written_out(schedule):
    assert schedule("add", "far", "double", "1", "--every", "366d", "--json").json["when"] == "every 31622400 s"


def test_an_expression_has_no_name_in_json(beltline, folder):
    assert beltline("schedule", "next", "--every", "1h", "-n", "1", "--json").json[0]["schedule"] == ""


def test_next_of_an_expression_needs_no_store(beltline, folder):
    assert len(beltline("schedule", "next", "--every", "5m", "--json").json) == 5
    assert list(folder.glob("*.db")) == []


def test_a_trigger_sends_now_and_may_be_repeated_by_its_id(schedule, store):
    schedule(*NIGHTLY)
    schedule("pause", "nightly")
    id = schedule("trigger", "nightly", "--json").json["id"]
    assert schedule("trigger", "nightly", "--id", id).out == f"{id}\n"
    [view] = store.do(lambda engine: engine.browse(MessageFilter(queues=("double",)))).messages
    assert (view.message.id, view.message.headers[OF]) == (id, "nightly")


def test_pause_and_resume(schedule, store):
    schedule("add", "tick", "double", "1", "--every", "1")
    assert schedule("pause", "tick", "--json").json["state"] == "paused"
    assert schedule("ls", "--json").json[0]["next_at"] is None
    item = schedule("resume", "tick", "--json").json
    assert (item["state"], item["sent"]) == ("active", 0)


def test_rm_needs_a_yes_and_says_when_it_will_come_back(schedule, store):
    schedule(*NIGHTLY)
    assert schedule("rm", "nightly").code == 6
    assert schedule("rm", "nightly", "--dry-run", "--json").json["removed"] is False
    assert schedule("rm", "nightly", "--yes", "--reason", "moved", "--json").json["removed"] is True
    assert schedule("ls", "--json").json == []

    async def declared(engine):
        announcer = Announcer(lambda: engine)
        announcer.announce("tasks:app", [spec])
        await announcer.once()

    schedule(*NIGHTLY)
    spec = store.do(lambda engine: engine.schedule("nightly")).schedule
    store.do(declared)
    assert "declared in code" in schedule("rm", "nightly", "--yes").err


def test_a_schedule_nobody_sends_is_told(schedule, store, monkeypatch):
    monkeypatch.setattr("beltline.cli.schedule.LATE_S", 0.0)
    schedule("add", "tick", "double", "1", "--every", "1")
    said = until(lambda: (found := schedule("ls")) and "no scheduler is running" in found.err and found)
    assert "beltline upkeep" in said.err
    assert schedule("ls", "--json").json[0]["late_s"] > 0


def test_ls_of_a_store_that_is_not_there_is_an_error(beltline):
    assert beltline("schedule", "ls").code == 4


# ------------------------------------------------------------------------------------------------------------- upkeep
def test_upkeep_once_does_one_round_of_each(schedule, beltline, store):
    schedule("add", "tick", "double", "1", "--every", "1")
    until(lambda: json.loads(beltline("upkeep", "--once", "--json").out.splitlines()[0])["done"])
    lines = beltline("upkeep", "--once", "--only", "retention").out.splitlines()
    assert lines == ["retention: 0 things dropped"]


def test_upkeep_runs_until_it_is_told_to_stop_and_sends_what_is_due(schedule, process, store):
    schedule("add", "tick", "double", "1", "--every", "1")
    child = process("upkeep", "--only", "scheduler", "--json")
    until(lambda: store.do(lambda engine: engine.schedule("tick")).sent >= 2)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0, err
    assert sum(json.loads(line)["done"] for line in out.splitlines()) >= 2
    assert "scheduler on sqlite" in err


def test_a_worker_declares_and_sends_the_schedules_of_its_app(folder, process, beltline, store):
    (folder / "timed.py").write_text(
        "from beltline import App\napp = App()\n\n@app.schedule(every=1, catch_up='skip')\n@app.task\ndef tick() -> int:\n    return 1\n"
    )
    child = process("worker", "timed:app", environ={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]})

    def done():
        found = beltline("schedule", "ls", "--json")
        return found.code == 0 and found.json and found.json[0]["last_state"] == "done" and found.json[0]

    item = until(done)
    assert (item["name"], item["origin"], item["owner"], item["task"]) == ("timed.tick", "code", "timed:app", "timed.tick")
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0
