"""The checker is tested too: one sound history that has everything in it, and what it must say when a single thing in it is not so."""

import os
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from tests.system.chaos_checker import FINDINGS, check
from tests.system.chaos_flow_checker import FLOW_FINDINGS
from tests.system.chaos_story import BY, EPOCH_S, LEASE_S, Edit, Story, change, drop, only
from tests.system.history import NONE, UNKNOWN, Attempt, Death, History, Journal, Renewal, lines, read

PLAIN = {"one": 1, "plain_two": 1, "plain_three": 1}
SPLIT = {"one": 1, "two": 2, "three": 1}


def plain() -> History:
    """Five items: one untroubled; one with a killed runner and a killed supervisor; one released, and overtaken in a freeze; one whose sender died; one unacknowledged."""
    story = Story(PLAIN, items=5)
    story.send("invoke", 0, 1)
    one, other = story.message(0, "one", group="lane"), story.message(1, "one", group="lane")
    story.send("ok", 0, 1)
    story.pass_through(one)
    two = story.message(0, "plain_two", group="lane")
    story.pass_through(two)
    three = story.message(0, "plain_three", group="lane")
    story.finish(0, story.pass_through(three))

    epoch = story.receive(other)
    story.start(other, epoch, pid=201)
    story.fault("runner", 201)
    story.history.deaths.append(Death(t=story.tick(), pid=201, doomed="", how="signal 9"))
    story.again(other, epoch, "lost")
    story.pass_through(other)
    two = story.message(1, "plain_two", group="lane")
    epoch = story.receive(two, pid=100)
    story.start(two, epoch, pid=202)
    story.fault("supervisor", 100, 202)
    story.expire(two, epoch)
    story.pass_through(two)
    three = story.message(1, "plain_three", group="lane")
    story.finish(1, story.pass_through(three, pid=102))

    story.send("invoke", 2)
    one = story.message(2, "one")
    story.send("ok", 2)
    epoch = story.receive(one)
    story.start(one, epoch)
    story.again(one, epoch, "release")
    story.pass_through(one)
    two = story.message(2, "plain_two")
    story.pass_through(two)
    three = story.message(2, "plain_three")
    late = story.receive(three, pid=101)
    story.start(three, late)
    story.fault("freeze", 101)
    story.expire(three, late)
    epoch = story.receive(three, pid=102)
    story.start(three, epoch)
    story.history.renewals.append(Renewal(asked_t=story.tick(), asked_wall=EPOCH_S + story.t, message=three, epoch=epoch, lease_s=LEASE_S))
    story.ack(three, epoch, pid=102)
    story.fault("thaw", 101)
    story.settle(three, late, "ack", "lease_lost", pid=101)
    story.finish(2, epoch)

    story.fault("server_down")
    story.send("invoke", 3)
    story.send("fail", 3)
    story.fault("server_up")
    story.send("invoke", 3)
    one = story.message(3, "one")
    story.fault("sender", 300)
    story.send("invoke", 3)
    story.send("ok", 3)
    story.pass_through(one)
    two = story.message(3, "plain_two")
    epoch = story.receive(two)
    story.start(two, epoch)
    story.ack(two, epoch, answer=UNKNOWN)  # its reply was lost
    three = story.message(3, "plain_three")
    story.settle(two, epoch, "ack", "lease_lost")
    story.finish(3, story.pass_through(three))

    story.send("invoke", 4)
    one = story.message(4, "one")
    story.fault("sender", 301)
    for stage in ("plain_two", "plain_three"):
        story.pass_through(one)
        one = story.message(4, stage)
    story.finish(4, story.pass_through(one))
    return story.end()


def split() -> History:
    story = Story(SPLIT, items=1)
    story.send("invoke", 0)
    one = story.message(0, "one")
    story.send("ok", 0)
    story.pass_through(one)
    parts = [story.message(0, "two", part=part) for part in ("a", "b")]
    for part in parts:
        story.pass_through(part)
    story.finish(0, story.pass_through(story.message(0, "three")))
    return story.end()


def test_a_sound_history_is_accepted_with_everything_in_it_explained() -> None:
    verdict = check(plain())
    assert verdict.findings == {name: [] for name in FINDINGS}
    assert verdict.sound
    assert verdict.causes == {"runner killed": 1, "supervisor killed": 1, "release": 1, "supervisor frozen": 1}
    assert (verdict.starts, verdict.repeats) == (19, 4)
    assert (verdict.recovered, verdict.unknown_settles, verdict.stale_refused, verdict.repeats_refused) == (1, 1, 1, 1)
    assert verdict.shares == {"supervisor-0": 2, "supervisor-1": 12}
    assert len(verdict.back_s) == 1


def test_a_sound_history_with_a_split_and_a_gather_is_accepted() -> None:
    assert check(split()).findings == {name: [] for name in FINDINGS}


# ------------------------------------------------------------------------------------------------ one thing is not so
def a_start_is_doubled(history: History) -> None:
    start = only(history.starts, message="0.one")
    history.starts.append(structs.replace(start, t=start.t + 0.5, pid=205))


def nobody_killed_the_runner(history: History) -> None:
    drop(history.faults, kind="runner")


def the_end_before_a_second_start_is_not_recorded(history: History) -> None:
    change(history.messages, {"attempts": ()}, id="1.plain_two")


def a_delivery_that_nobody_received_starts(history: History) -> None:
    drop(history.hand_outs, message="0.plain_two")


def a_start_comes_before_its_hand_out(history: History) -> None:
    change(history.starts, {"t": only(history.hand_outs, message="0.plain_two").t - 0.5}, message="0.plain_two")


def a_settle_is_accepted_twice(history: History) -> None:
    history.settlings.append(only(history.settlings, message="0.plain_two"))


def a_repeated_settle_is_accepted_again(history: History) -> None:
    settling = only(history.settlings, message="0.one")
    history.settlings.append(structs.replace(settling, asked_t=settling.asked_t + 3))


def a_stale_ack_is_accepted(history: History) -> None:
    change(history.settlings, {"answer": "done"}, message="2.plain_three", epoch=1)


def a_stale_release_is_accepted(history: History) -> None:
    received = only(history.hand_outs, message="2.one", epoch=2)
    change(history.settlings, {"asked_t": received.t + 0.5}, message="2.one", epoch=1)


def an_item_is_lost_whole(history: History) -> None:
    drop(history.messages, number=0)
    drop(history.runs, number=0)
    for acts in (history.hand_outs, history.starts, history.settlings):
        for stage in PLAIN:
            drop(acts, message=f"0.{stage}")
    history.counted["done"] -= 3


def an_item_is_lost_in_a_hand_off(history: History) -> None:
    drop(history.messages, id="0.plain_three")
    for acts in (history.hand_outs, history.starts, history.settlings):
        drop(acts, message="0.plain_three")
    change(history.runs, {"state": "running", "result": None}, number=0)
    history.counted["done"] -= 1


def an_acknowledged_message_is_forgotten_by_the_store(history: History) -> None:
    drop(history.messages, id="0.plain_two")
    history.counted["done"] -= 1


def an_item_is_in_two_stages(history: History) -> None:
    """The next stage was written before the settle of the one before."""
    change(history.messages, {"sent_at": only(history.messages, id="0.plain_three").sent_at - 1}, id="0.plain_three")


def an_item_is_in_no_stage(history: History) -> None:
    change(history.messages, {"ended_at": only(history.messages, id="2.one").ended_at - 0.5}, id="2.one")


def a_stage_message_is_doubled(history: History) -> None:
    history.messages.append(structs.replace(only(history.messages, id="2.plain_two"), id="2.again", state="ready", outcome="", epoch=0, ended_at=0.0))
    history.counted["ready"] = 1


def an_item_is_invented(history: History) -> None:
    for place, message in enumerate(history.messages):
        if message.number == 4:
            history.messages[place] = structs.replace(message, number=77)
    change(history.runs, {"number": 77}, number=4)
    history.values[77] = 40


def a_send_that_failed_had_an_effect(history: History) -> None:
    change(history.messages, {"sent_at": EPOCH_S + only(history.sendings, phase="fail").t}, id="3.one")


def two_epochs_are_current_at_once(history: History) -> None:
    """Handed out again ten seconds before the lease was over."""
    first, second = only(history.hand_outs, message="1.plain_two", epoch=1), only(history.hand_outs, message="1.plain_two", epoch=2)
    at = first.lease_until - 10
    change(history.hand_outs, {"at": at, "lease_until": at + LEASE_S}, message="1.plain_two", epoch=2)
    change(history.messages, {"attempts": (Attempt(epoch=1, outcome="lost", ended_at=at),)}, id="1.plain_two")
    assert second.at > at


def a_renewed_lease_is_cut_short(history: History) -> None:
    """The renewal was answered with done, and the message handed out as if it had not been."""
    first = only(history.hand_outs, message="1.plain_two", epoch=1)
    history.renewals.append(Renewal(asked_t=first.t + 20, asked_wall=first.at + 20, message="1.plain_two", epoch=1, lease_s=LEASE_S))


def a_lost_lease_is_revived(history: History) -> None:
    second = only(history.hand_outs, message="2.plain_three", epoch=2)
    history.renewals.append(Renewal(asked_t=second.t + 0.5, asked_wall=second.at - 20, message="2.plain_three", epoch=1, lease_s=1.0))


def one_epoch_is_handed_out_twice(history: History) -> None:
    received = only(history.hand_outs, message="0.plain_three")
    history.hand_outs.append(structs.replace(received, t=received.t + 0.1, pid=102, by=BY[102]))


def a_hand_out_is_forgotten(history: History) -> None:
    """As after a crash of a store that answered before it was durable: it stands at an epoch below what it has handed out."""
    received = only(history.hand_outs, message="2.plain_two")
    history.hand_outs.append(structs.replace(received, t=received.t + 9, at=received.at + 9, lease_until=received.lease_until + 9, epoch=2))


def an_accepted_release_is_forgotten(history: History) -> None:
    change(history.settlings, {"answer": "done", "outcome": "release"}, message="2.plain_two")


def a_message_is_done_without_an_ack(history: History) -> None:
    drop(history.settlings, message="2.plain_two")


def a_refused_ack_had_an_effect(history: History) -> None:
    change(history.settlings, {"answer": "lease_lost"}, message="2.plain_two")


def a_release_that_nobody_asked_for(history: History) -> None:
    drop(history.settlings, message="2.one", epoch=1)


def a_group_is_overtaken(history: History) -> None:
    """Item 1 was handed out while item 0 of its group was still leased."""
    t = only(history.hand_outs, message="0.one").t + 0.5
    change(history.hand_outs, {"t": t, "at": EPOCH_S + t, "lease_until": EPOCH_S + t + LEASE_S}, message="1.one", epoch=1)


def a_group_starts_out_of_order(history: History) -> None:
    change(history.starts, {"t": only(history.starts, message="0.one").t - 0.5}, message="1.one", epoch=1)


def a_counter_has_drifted(history: History) -> None:
    history.counted["done"] += 1


def a_run_has_no_result(history: History) -> None:
    change(history.runs, {"result": None}, number=0)


def a_result_is_wrong(history: History) -> None:
    change(history.runs, {"result": (999, 1)}, number=0)


def a_result_is_of_a_fenced_delivery(history: History) -> None:
    change(history.runs, {"result": (20, 1)}, number=2)


def a_message_is_stuck_in_a_lease_without_a_holder(history: History) -> None:
    change(history.messages, {"state": "leased", "outcome": "", "ended_at": 0.0}, id="4.plain_three")
    drop(history.settlings, message="4.plain_three")
    change(history.runs, {"state": "running", "result": None}, number=4)
    history.counted.update(done=len(history.messages) - 1, leased=1)


def an_acknowledged_message_still_runs(history: History) -> None:
    change(history.starts, {"end_t": only(history.settlings, message="2.plain_two").asked_t + 0.5}, message="2.plain_two")


def an_acknowledged_message_never_ran(history: History) -> None:
    drop(history.starts, message="2.plain_two")


BROKEN: list[tuple[Edit, set[str]]] = [
    (a_start_is_doubled, {"unexplained"}),
    (nobody_killed_the_runner, {"unexplained"}),
    (the_end_before_a_second_start_is_not_recorded, {"unexplained", "overlap"}),
    (a_delivery_that_nobody_received_starts, {"unreceived"}),
    (a_start_comes_before_its_hand_out, {"unreceived"}),
    (a_settle_is_accepted_twice, {"doubled"}),
    (a_repeated_settle_is_accepted_again, {"doubled"}),
    (a_stale_ack_is_accepted, {"stale"}),
    (a_stale_release_is_accepted, {"stale"}),
    (an_item_is_lost_whole, {"lost"}),
    (an_item_is_lost_in_a_hand_off, {"lost", "misplaced", "stuck"}),
    (an_acknowledged_message_is_forgotten_by_the_store, {"forgotten", "misplaced", "torn"}),
    (an_item_is_in_two_stages, {"torn"}),
    (an_item_is_in_no_stage, {"torn"}),
    (a_stage_message_is_doubled, {"misplaced", "torn", "stuck"}),
    (an_item_is_invented, {"unexpected"}),
    (a_send_that_failed_had_an_effect, {"denied"}),
    (two_epochs_are_current_at_once, {"overlap", "unexplained"}),
    (a_renewed_lease_is_cut_short, {"overlap", "unexplained"}),
    (a_lost_lease_is_revived, {"overlap"}),
    (one_epoch_is_handed_out_twice, {"overlap"}),
    (a_hand_out_is_forgotten, {"forgotten", "overlap"}),
    (an_accepted_release_is_forgotten, {"forgotten", "unasked"}),
    (a_message_is_done_without_an_ack, {"unasked"}),
    (a_refused_ack_had_an_effect, {"unasked"}),
    (a_release_that_nobody_asked_for, {"unasked", "unexplained"}),
    (a_group_is_overtaken, {"disorder", "crowded"}),
    (a_group_starts_out_of_order, {"disorder", "unreceived"}),
    (a_counter_has_drifted, {"miscounted"}),
    (a_run_has_no_result, {"result"}),
    (a_result_is_wrong, {"result"}),
    (a_result_is_of_a_fenced_delivery, {"result"}),
    (a_message_is_stuck_in_a_lease_without_a_holder, {"stuck"}),
    (an_acknowledged_message_never_ran, {"unstarted"}),
    (an_acknowledged_message_still_runs, {"early"}),
]


@pytest.mark.parametrize(("edit", "expected"), BROKEN, ids=[edit.__name__ for edit, _ in BROKEN])
def test_a_broken_history_is_refused_for_the_right_reason(edit: Edit, expected: set[str]) -> None:
    history = plain()
    edit(history)
    assert {name for name, texts in check(history).findings.items() if texts} == expected


def test_every_finding_is_provoked_by_some_broken_history() -> None:
    assert set().union(*(expected for _, expected in BROKEN)) >= set(FINDINGS) - set(FLOW_FINDINGS)


def test_a_gather_that_fires_before_its_last_part_is_refused() -> None:
    history = split()
    change(history.messages, {"sent_at": only(history.messages, id="0.twoa").ended_at}, id="0.three")
    assert {name for name, texts in check(history).findings.items() if texts} == {"torn"}


def test_a_split_that_was_written_by_half_is_refused() -> None:
    history = split()
    drop(history.messages, id="0.twob")
    for acts in (history.hand_outs, history.starts, history.settlings):
        drop(acts, message="0.twob")
    history.counted["done"] -= 1
    assert {name for name, texts in check(history).findings.items() if texts} == {"misplaced", "torn"}


# ------------------------------------------------------------------------------------------------ the files
def test_what_participants_write_is_read_back(tmp_path: Path) -> None:
    supervisor, runner, sender, nemesis = (Journal(tmp_path, role) for role in ("supervisor-0", "runner", "sender", "nemesis"))
    sender.write("send", wall=5.0, phase="invoke", numbers=[0, 1])
    supervisor.write("received", wall=101.0, lease_s=4.0, got=[["a", 1, 104.0], ["b", 2, 104.0]])
    runner.write("start", message="a", epoch=1, said=7)
    runner.write("end", message="a", epoch=1)
    sender.write("ask", number=3, rule="once", key="k", id="c")
    sender.write("answer", id="c", answer="a")
    sender.write("ask", number=4, rule="once", key="k", id="d")
    nemesis.write("bound", name="api", asked_t=1.0, concurrency=2.0, rate=NONE, burst=NONE)
    nemesis.write("shut", queue="q", until=9.0, tries=3)
    supervisor.write("renewed", asked_t=1.0, asked_wall=101.0, lease_s=4.0, done=[["b", 2]])
    supervisor.write("settle", n=0, what=[["a", 1, "ack"], ["b", 2, "release"]])
    supervisor.write("settled", n=0, answers=["done", "lease_lost"])
    supervisor.write("settle", n=1, what=[["b", 2, "ack"]])
    supervisor.write("died", runner=9, doomed="", how="signal 9")
    nemesis.write("fault", kind="runner", pids=(9,))
    for journal in (supervisor, runner, sender, nemesis):
        journal.close()
    history = read(tmp_path, shape=PLAIN, values={})
    assert [(each.message, each.epoch, each.at, each.lease_until, each.by) for each in history.hand_outs] == [
        ("a", 1, 100.0, 104.0, "supervisor-0"),
        ("b", 2, 100.0, 104.0, "supervisor-0"),
    ]
    assert [(each.message, each.outcome, each.answer) for each in history.settlings] == [
        ("a", "ack", "done"),
        ("b", "release", "lease_lost"),
        ("b", "ack", UNKNOWN),
    ]
    assert [(each.message, each.epoch, each.pid, each.said, each.end_t > each.t) for each in history.starts] == [("a", 1, os.getpid(), 7, True)]
    assert [(each.at_t < each.t, round(each.until_t - each.at_t, 6)) for each in history.hand_outs] == [(True, 4.0)] * 2
    assert [(each.id, each.answer, each.t < NONE) for each in history.askings] == [("c", "a", True), ("d", "", False)]
    assert [(each.name, each.concurrency, each.asked_t < each.t) for each in history.bounds] == [("api", 2.0, True)]
    assert [(each.queue, each.until, each.tries) for each in history.shuts] == [("q", 9.0, 3)]
    assert [(each.phase, each.numbers) for each in history.sendings] == [("invoke", (0, 1))]
    assert [(each.message, each.lease_s) for each in history.renewals] == [("b", 4.0)]
    assert [(each.pid, each.how) for each in history.deaths] == [(9, "signal 9")]
    assert [(each.kind, each.pids) for each in history.faults] == [("runner", (9,))]


def test_a_line_that_its_writer_did_not_finish_is_left_out(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "runner")
    journal.write("start", message="a", epoch=1)
    journal.close()
    [path] = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b'{"op":"start","mess')
    assert [event["message"] for event in lines(tmp_path)] == ["a"]


def test_a_history_survives_its_own_encoding() -> None:
    """So that the history of a run that failed can be kept and looked at again."""
    history = plain()
    assert check(msgspec.json.decode(msgspec.json.encode(history), type=History)) == check(history)
