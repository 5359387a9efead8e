"""beltline limit, queue snooze, queue why: flow control as an operator meets it."""

import pytest

from beltline.core.flow import Claim, Flow, KillSwitch, Limit
from beltline.core.names import QueueName
from beltline.core.outcome import Cause, DeadLetter, Failure, Settlement
from beltline.core.views import WorkerView


def declare(store, *limits):
    store.do(lambda engine: engine.declare_limits(list(limits)))


def work(store, *queues, slots=4):
    view = WorkerView(id="w1", host="h", pid=1, started_at=0.0, age_s=0.0, state="up", queues=dict.fromkeys(queues, slots), tasks=("tasks.resize",))
    store.do(lambda engine: engine.beat(view))


def lease(store, limit=10, queue="resize"):
    return store.do(lambda engine: engine.receive([QueueName(queue)], limit=limit, lease_s=60, wait_s=0, worker="w1"))


def test_ls_shows_numbers_origin_and_what_runs_and_waits(beltline, store):
    assert beltline("limit", "ls", "--json").json == []
    declare(store, Limit(name="api", rate=600, per_s=600.0), Limit(name="disk", concurrency=1))
    store.send("resize", 1, 2, 3, flow=Flow(claims=(Claim("disk", "a"),)))
    lease(store)
    api, disk = beltline("limit", "ls", "--json").json
    assert api == {
        "version": 1, "name": "api", "rate": 600.0, "per_s": 600.0, "burst": 1.0, "concurrency": None, "origin": "code", "running": 0, "waiting": 0, "queues": [],
    }  # fmt: skip
    assert (disk["rate"], disk["burst"], disk["concurrency"], disk["running"], disk["waiting"]) == (None, None, 1.0, 1, 2)
    assert beltline("limit", "ls", "--quiet").out == "api\ndisk\n"
    assert beltline("limit", "ls").rows[0][:4] == ["api", "600", "600", "1"]


def test_show_names_the_keys_where_something_runs_or_waits(beltline, store):
    declare(store, Limit(name="disk", concurrency=1))
    store.send("resize", 1, 2, flow=Flow(claims=(Claim("disk", "a"),)))
    store.send("resize", 3, flow=Flow(claims=(Claim("disk", "b"),)))
    lease(store)
    found = beltline("limit", "show", "disk", "--json").json
    assert [(bucket["key"], bucket["running"], bucket["waiting"], bucket["closed"]) for bucket in found["buckets"]] == [
        ("a", 1, 1, True),
        ("b", 1, 0, True),
    ]
    text = beltline("limit", "show", "disk").out
    assert "disk   1 at a time   (as the code says)" in text
    assert "a: 1 running, 1 waiting, opens " in text


def test_set_changes_what_is_given_and_keeps_the_rest_and_reset_goes_back(beltline, store):
    declare(store, Limit(name="api", rate=50, concurrency=8))
    found = beltline("limit", "set", "api", "--rate", "600/10m", "--json").json
    assert (found["rate"], found["per_s"], found["burst"], found["concurrency"], found["origin"]) == (600.0, 600.0, 1.0, 8.0, "operator")
    found = beltline("limit", "set", "api", "--concurrency", "none", "--burst", "20", "--json").json
    assert (found["rate"], found["burst"], found["concurrency"]) == (600.0, 20.0, None)
    found = beltline("limit", "set", "api", "--rate", "1200/10m", "--json").json
    assert (found["rate"], found["burst"]) == (1200.0, 20.0)  # a burst that was said stays
    assert beltline("limit", "set", "api", "--burst", "auto", "--json").json["burst"] == 1.0
    assert "set by an operator: beltline limit reset api" in beltline("limit", "show", "api").out
    found = beltline("limit", "reset", "api", "--json").json["limit"]
    assert (found["rate"], found["concurrency"], found["origin"]) == (50.0, 8.0, "code")


def test_a_limit_nobody_declared_may_be_set_and_goes_away_again(beltline, store):
    assert beltline("limit", "set", "new", "--concurrency", "3", "--json").json["concurrency"] == 3.0
    assert "new is gone" in beltline("limit", "reset", "new").out
    assert beltline("limit", "reset", "new").code == 3


@pytest.mark.parametrize(
    "words",
    [
        ("set", "api"),
        ("set", "api", "--rate", "fast"),
        ("set", "api", "--concurrency", "1.5"),
        ("set", "api", "--concurrency", "few"),
        ("set", "no name", "--rate", "5/s"),
        ("show",),
    ],
)
def test_a_wrong_call_is_a_usage_error_and_changes_nothing(beltline, store, words):
    declare(store, Limit(name="api", rate=50))
    assert beltline("limit", *words).code == 2
    assert beltline("limit", "show", "api", "--json").json["origin"] == "code"


def test_a_limit_that_is_not_there_is_not_found_and_the_near_name_is_told(beltline, store):
    declare(store, Limit(name="api", rate=50))
    said = beltline("limit", "show", "apis")
    assert said.code == 3
    assert "Did you mean 'api'?" in said.err


def test_the_limits_of_a_queue_are_shown_and_changed_by_the_queues_name(beltline, store):
    declare(store, Limit(name="api", rate=50), Limit(name="disk", concurrency=2), Limit(name="other"))
    store.declare("mail", limits=("api",))
    assert beltline("queue", "limit", "mail", "--json").json == beltline("limit", "ls", "--json").json[:1]
    [found] = beltline("queue", "limit", "mail", "--rate", "100/s", "--concurrency", "4", "--json").json
    assert (found["name"], found["rate"], found["concurrency"], found["origin"], found["queues"]) == ("api", 100.0, 4.0, "operator", ["mail"])
    assert beltline("queue", "limit", "mail", "--quiet").out == "api\n"
    [found] = beltline("queue", "limit", "mail", "--reset", "--json").json
    assert (found["rate"], found["concurrency"], found["origin"]) == (50.0, None, "code")
    assert beltline("queue", "limit", "mail").rows[0][:2] == ["api", "50"]


def test_of_several_limits_of_a_queue_one_is_named_and_who_else_is_bound_is_told(beltline, store):
    declare(store, Limit(name="api", rate=50), Limit(name="disk", concurrency=2))
    store.declare("mail", limits=("api", "disk"))
    store.declare("push", limits=("api",))
    said = beltline("queue", "limit", "mail", "--rate", "5/s")
    assert (said.code, "--limit api" in said.err) == (2, True)
    said = beltline("queue", "limit", "mail", "--limit", "api", "--rate", "5/s", "--json")
    assert [(each["name"], each["origin"]) for each in said.json] == [("api", "operator"), ("disk", "code")]
    assert "push" in said.err
    assert [each["name"] for each in beltline("queue", "limit", "mail", "--limit", "disk", "--json").json] == ["disk"]
    assert beltline("queue", "limit", "push", "--limit", "disk", "--rate", "5/s").code == 3
    assert beltline("limit", "show", "disk", "--json").json["origin"] == "code"


def test_a_limit_that_a_queue_names_and_nobody_has_declared_gets_its_first_numbers(beltline, store):
    store.declare("mail", limits=("api",))
    assert beltline("queue", "limit", "mail", "--json").json == []
    assert beltline("queue", "limit", "mail", "--reset").code == 3
    [found] = beltline("queue", "limit", "mail", "--rate", "5/s", "--json").json
    assert (found["name"], found["rate"], found["origin"]) == ("api", 5.0, "operator")
    assert beltline("queue", "limit", "mail", "--reset", "--json").json == []


def test_a_queue_that_names_no_limit_has_none_to_change(beltline, store):
    store.declare("mail")
    assert beltline("queue", "limit", "mail", "--json").json == []
    said = beltline("queue", "limit", "mail", "--rate", "5/s")
    assert (said.code, "limits=['mail']" in said.err) == (2, True)
    assert beltline("limit", "ls", "--json").json == []
    assert beltline("queue", "limit", "nowhere").code == 3
    assert beltline("queue", "limit", "mail", "--reset", "--rate", "5/s").code == 2


def test_snooze_and_resume_a_queue(beltline, store):
    store.send("resize")
    found = beltline("queue", "snooze", "resize", "10m", "--json").json
    assert found["snoozed_until"].endswith("Z")
    assert "snoozed until" in beltline("queue", "show", "resize").out
    assert [item["name"] for item in beltline("queue", "ls", "--json").json if item["snoozed_until"]] == ["resize"]
    assert lease(store) == []
    assert beltline("queue", "resume", "resize", "--json").json["snoozed_until"] is None
    assert len(lease(store)) == 1
    assert beltline("queue", "snooze", "resize", "soon").code == 2
    assert beltline("queue", "snooze", "nowhere", "5").code == 3


def test_a_kill_switch_is_shown_with_its_state(beltline, store):
    store.declare("resize", kill_switch=KillSwitch(least=2, pause_s=60.0), limits=("api",))
    text = beltline("queue", "show", "resize").out
    assert "kill switch    at 50 % of at least 2 failing in 60 s: well" in text
    assert "limits         api" in text
    store.send("resize", 1, 2)
    failed = DeadLetter(reason="x", failure=Failure(Cause.ERROR, "ValueError", "no good"))
    deliveries = lease(store)
    store.do(lambda engine: engine.settle([Settlement(each.receipt, failed) for each in deliveries]))
    assert "resize   tripped" in beltline("queue", "show", "resize").out
    assert beltline("queue", "show", "resize", "--json").json["tripped_until"] is not None
    assert beltline("queue", "resume", "resize", "--json").json["tripped_until"] is None


def test_why_of_a_limited_message_names_the_holder_and_what_helps(beltline, store):
    declare(store, Limit(name="api", concurrency=1))
    work(store, "resize")
    first, second = store.send("resize", 1, 2, flow=Flow(tenant="t", claims=(Claim("api", "acme"),)))
    lease(store)
    found = beltline("message", "why", second, "--json").json
    assert (found["rule"], found["limit"], found["key"], found["holders"]) == ("concurrency", "api", "acme", [first])
    assert found["opens_at"].endswith("Z")
    text = beltline("message", "why", second).out
    assert "help: beltline limit set api --concurrency 2" in text
    assert "adding workers will not help" in text
    assert "flow       tenant t, limit api of acme" in beltline("message", "show", second).out


def test_why_of_a_queue_counts_the_reasons(beltline, store):
    declare(store, Limit(name="api", concurrency=1))
    store.send("resize", *range(4), flow=Flow(claims=(Claim("api"),)))
    found = beltline("queue", "why", "resize", "--json").json
    assert [(reason["rule"], reason["messages"], reason["sampled"]) for reason in found["reasons"]] == [("no_worker", 4, False)]
    work(store, "resize")
    lease(store)
    found = beltline("queue", "why", "resize", "--json").json
    assert (found["ready"], found["held"], found["leased"], found["slots"], found["looked_at"]) == (3, 3, 1, 4, 3)
    [reason] = found["reasons"]
    assert (reason["rule"], reason["messages"], reason["limit"], reason["more_workers"]) == ("concurrency", 3, "api", False)
    text = beltline("queue", "why", "resize").out
    assert "3 messages ready, 3 of them held back" in text
    assert "(adding workers will not help)" in text
    assert "3 of the ready, which no further slot would let start" in beltline("queue", "show", "resize").out
    assert beltline("queue", "why", "mail", "--json").json["reasons"] == []
    assert beltline("queue", "why", "nowhere").code == 3


def test_doctor_tells_of_queues_that_stand_still(beltline, store):
    store.declare("resize", kill_switch=KillSwitch(least=1, pause_s=60.0))
    store.kill("resize")
    beltline("queue", "snooze", "mail", "10m")
    found = {finding["found"]: finding["verdict"] for finding in beltline("doctor", "--json").json}
    assert found["mail is snoozed"] == "note"
    assert found["resize was stopped by its kill switch"] == "problem"


def test_a_mistyped_limit_is_told_although_it_is_set(beltline, store):
    declare(store, Limit(name="api", rate=50))
    said = beltline("limit", "set", "ap", "--rate", "3/s", "--json")
    assert (said.code, said.json["rate"]) == (0, 3.0)
    assert "no limit was called 'ap' until now" in said.err
    assert "Did you mean 'api'?" in said.err
    assert beltline("limit", "set", "api", "--rate", "3/s").err == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--burst", "3"), "only beside a rate"),
        (("--burst", "0", "--rate", "5/s"), "from 1"),
        (("--concurrency", "nan"), "a whole number from 0"),
        (("--concurrency", "few"), "a number, or none"),
        (("--rate", "5 parsecs"), "50/s, 600/10m"),
        (("--rate", "0/s"), "above 0"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_and_says_what_can(beltline, store, words, says):
    declare(store, Limit(name="open"))
    said = beltline("limit", "set", "open", *words)
    assert (said.code, says in said.err) == (2, True), said.err
    assert beltline("limit", "show", "open", "--json").json["origin"] == "code"


def test_no_rate_takes_its_burst_along(beltline, store):
    declare(store, Limit(name="api", rate=50, burst=7))
    found = beltline("limit", "set", "api", "--rate", "none", "--json").json
    assert (found["rate"], found["burst"]) == (None, None)


def test_queues_that_are_subject_to_a_limit_as_a_whole_are_named(beltline, store):
    store.declare("mail", limits=("api",))
    declare(store, Limit(name="api", rate=1, per_s=3600.0))
    store.send("mail", 1, 2, 3)
    assert beltline("limit", "ls", "--json").json[0]["queues"] == ["mail"]
    found = beltline("limit", "show", "api", "--json").json
    assert (found["queues"], found["ready"]) == (["mail"], {"mail": 3})
    assert "queue mail is subject to it as a whole: 3 ready there" in beltline("limit", "show", "api").out


def test_a_snooze_says_what_it_did(beltline, store):
    said = beltline("queue", "snooze", "resize", "0")
    assert (said.code, "beltline queue resume resize" in said.err) == (2, True)
    assert beltline("queue", "snooze", "resize", "10m").err == ""
    assert "snoozed for longer already" in beltline("queue", "snooze", "resize", "5m").err
    beltline("queue", "pause", "resize")
    assert "resize: snoozed until " in beltline("queue", "snooze", "resize", "20m").out
    assert "(and paused)" in beltline("queue", "snooze", "resize", "30m").out


def test_why_of_a_queue_that_is_stopped_says_so_though_nothing_is_ready(beltline, store):
    assert "nothing is ready, and nothing stops the queue" in beltline("queue", "why", "resize").out
    beltline("queue", "pause", "resize")
    [reason] = beltline("queue", "why", "resize", "--json").json["reasons"]
    assert (reason["rule"], reason["messages"], reason["example"]) == ("paused", 0, "")
    assert "the queue: queue resize is paused" in beltline("queue", "why", "resize").out
