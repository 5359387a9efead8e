"""beltline fleet size, decisions, desired."""

import json
from typing import Any

import pytest

from beltline.core.names import QueueName
from beltline.core.views import WorkerView
from beltline.upkeep.sizing import Sizing
from tests.cli.conftest import until

RESIZE = QueueName("resize")


def beat(store: Any, *, ranges: dict[str, list[int]] | None = None, slots: int = 2) -> None:
    service = {"resize": [10, 10.0, 10.0]}
    view = WorkerView(
        id="w1",
        host="photo-1",
        pid=1,
        started_at=0.0,
        age_s=0.0,
        state="up",
        queues={"resize": slots},
        detail={"ranges": ranges or {}, "service": service},
    )
    store.do(lambda engine: engine.beat(view))


def round_of(store: Any) -> None:
    store.do(lambda engine: Sizing(by="w1").once(engine, [RESIZE], urgent=[RESIZE]))


def test_why_a_fleet_has_its_size_newest_first(beltline, store):
    beat(store, ranges={"resize": [2, 8]})
    store.send("resize", *({"n": n} for n in range(300)))
    round_of(store)
    store.do(lambda engine: engine.set_range(RESIZE, 0, 3))
    round_of(store)
    found = beltline("fleet", "decisions", "resize", "--json").json
    assert [(each["slots_before"], each["slots"], each["limit"], each["worker"]) for each in found] == [(8, 3, "range", "w1"), (0, 8, "range", "w1")]
    assert "300 wait" in found[0]["reason"]
    assert "the range ends at 3" in found[0]["reason"]
    assert beltline("fleet", "decisions", "--limit", "1").rows[0][1:4] == ["resize", "8", "3"]
    assert beltline("fleet", "decisions", "mail", "--json").json == []
    assert beltline("fleet", "decisions", "resise").code == 3


def test_an_operator_says_how_large_a_fleet_may_be_and_takes_it_back(beltline, store):
    beat(store, ranges={"resize": [2, 8]})
    assert beltline("fleet", "size", "resize", "--json").json["ordered"] is None
    assert beltline("fleet", "size", "resize", "3..5", "--json").json["ordered"] == "3..5"
    round_of(store)
    found = beltline("fleet", "size", "resize", "--json").json
    assert (found["slots"], found["slots_now"], found["workers"], found["target_s"]) == (3, 2, 1, 10.0)
    assert "3..5 in the whole fleet" in beltline("fleet", "size", "resize").out
    assert beltline("fleet", "size", "resize", "4", "--json").json["ordered"] == "4"
    assert beltline("fleet", "size", "resize", "auto", "--json").json["ordered"] is None


def test_a_range_without_a_worker_that_has_one_is_kept_and_said(beltline, store):
    beat(store)
    said = beltline("fleet", "size", "resize", "3..5")
    assert (said.code, "no live worker of resize has a range" in said.err) == (0, True)


@pytest.mark.parametrize("words", [("resize", "8..2"), ("resize", "0"), ("resize", "many"), ("resize", "5000")])
def test_what_is_no_range_is_refused(beltline, store, words):
    said = beltline("fleet", "size", *words)
    assert said.code == 2
    assert "4 or 2..8" in said.err


def test_a_queue_nobody_declared_has_no_size(beltline, store):
    for words in (("size", "resise"), ("size", "resise", "2..3"), ("desired", "resise")):
        said = beltline("fleet", *words)
        assert (said.code, "Did you mean 'resize'?" in said.err) == (3, True)


def test_the_number_for_another_autoscaler(beltline, store):
    """Workers of two fixed slots; 30 messages of a second within 10 s, one of them for the start of a runner."""
    beat(store)
    store.send("resize", *({"n": n} for n in range(30)))
    found = beltline("fleet", "desired", "resize", "--json").json
    assert (found["desired_slots"], found["desired_workers"], found["slots_each"]) == (4, 2, 2)
    assert [each["queue"] for each in beltline("fleet", "desired", "--json").json] == ["mail", "resize"]
    assert beltline("fleet", "desired", "resize").rows[0][:4] == ["resize", "4", "2", "2"]


def test_an_empty_store_has_no_decisions(beltline, store):
    assert beltline("fleet", "decisions").out.count("\n") == 1
    assert beltline("fleet", "desired", "mail", "--json").json["desired_workers"] == 0


def test_a_real_worker_with_a_range_starts_from_nothing_and_says_why(process, beltline, tasks):
    worker = process("worker", "-q", "double:0..3", "--json")
    assert json.loads(worker.stdout.readline())["queues"] == {"double": 0}
    said = beltline("send", "double", "21", "--wait", "--timeout", "30")
    assert (said.code, said.out) == (0, "42\n")
    assert beltline("fleet", "size", "double", "2", "--json").json["ordered"] == "2"
    until(lambda: beltline("fleet", "size", "double", "--json").json["slots_now"] == 2)
    [decision] = beltline("fleet", "decisions", "double", "--json").json
    assert (decision["slots_before"], decision["slots"], decision["term"]) == (0, 2, "least")
    assert decision["worker"] == beltline("fleet", "ls", "--json").json[0]["id"]


def test_taking_a_range_back_warns_of_nothing(beltline, store):
    beat(store)
    said = beltline("fleet", "size", "resize", "auto")
    assert (said.code, said.err) == (0, "")


def test_a_queue_of_fixed_slots_says_that_nothing_changes_them(beltline, store):
    beat(store)
    assert "none: its workers have a fixed number of slots" in beltline("fleet", "size", "resize").out
    assert "woken" not in beltline("fleet", "size", "resize").out
    beat(store, ranges={"resize": [0, 8]}, slots=1)
    said = beltline("fleet", "size", "resize").out
    assert "as the workers were started" in said
    assert "0 slots decided, 1 there on 1 worker (woken by a message" in said
