"""The checker of flow control, tested as the other one is: a sound history with all of it, and what must be said when a single thing in it is not so."""

import pytest
from msgspec import structs

from beltline.core.schedule import occurrence_id
from tests.system.chaos_checker import check
from tests.system.chaos_flow_checker import FLOW_FINDINGS
from tests.system.chaos_story import EPOCH_S, LEASE_S, Edit, Story, change, drop, only
from tests.system.history import History, Occurrence, Renewal, Span

SHAPE = {"narrow": 1}
PAIR = (("pair", "a", 1.0),)
PACE = (("pace", "", 1.0),)
DUE_AT = 1_000_000.0


class Flowing(Story):
    """Every item is one message."""

    def item(self, number: int, *claims: tuple[str, str, float], queue: str = "narrow", group: str = "") -> str:
        self.send("invoke", number)
        id = self.message(number, "narrow", claims=claims, group=group)
        self.change(id, queue=queue)
        self.send("ok", number)
        return id

    def begin(self, id: str, pid: int = 101, said: int = -1) -> int:
        epoch = self.receive(id, pid)
        self.start(id, epoch, said=said)
        return epoch

    def done(self, id: str, epoch: int = 1) -> None:
        self.ack(id, epoch)
        if (message := self.change(id)).run:
            self.finish(message.number, epoch)

    def run(self, id: str, said: int = -1) -> None:
        self.done(id, self.begin(id, said=said))


def flowing() -> History:
    """Of `pair`, 2 at a time: 0 and 1 run, whose supervisor dies; 2 waits for 0, 3 for 2; `crowd`, of the whole queue: 3. Then everything else, in its own time."""
    story = Flowing(SHAPE, items=20)
    story.history.queue_limits = {"narrow": ("crowd",)}
    story.bound("pair", concurrency=2)
    story.bound("crowd", concurrency=3)
    story.bound("pace", rate=0.5, burst=2)
    zero, one, two, three = (story.item(number, *PAIR) for number in range(4))
    story.begin(zero)
    epoch = story.receive(one, pid=100)
    story.start(one, epoch, pid=202)
    story.fault("supervisor", 100, 202)
    story.done(zero)
    story.run(two)
    story.run(three)
    story.expire(one, epoch)
    story.done(one, story.begin(one))

    story.bound("pair", concurrency=1)
    four, five, six = (story.item(number, *PAIR) for number in (4, 5, 6))
    story.run(four)
    story.begin(five)
    story.bound("pair", concurrency=2)
    story.begin(six)
    story.done(five)
    story.done(six)

    fast = [story.item(number, *PACE, queue="steady") for number in (7, 8, 9)]
    first, second, third = (story.receive(id) for id in fast[:2] + fast[2:])  # one second apart: the burst
    for id, epoch in zip(fast, (first, second, third), strict=True):
        story.start(id, epoch)
        story.done(id, epoch)
    story.bound("pace", rate=0.1, burst=1)
    for number in (10, 11):
        story.tick(10)
        story.run(story.item(number, *PACE, queue="steady"))

    groups = [story.item(number, queue="lanes", group="lane") for number in (12, 13)]
    for id in groups:
        story.run(id)

    frail = [story.item(number, queue="frail") for number in (14, 15, 16, 17)]
    story.run(frail[0])
    story.shut("frail", 20.0, tries=1)
    story.tick(20)
    story.run(frail[1])
    story.begin(frail[2])
    story.begin(frail[3])
    story.done(frail[2])
    story.done(frail[3])
    story.shut("quiet", 20.0)
    story.tick(20)
    story.run(story.item(18, queue="quiet"))
    story.run(story.item(19, queue="quiet"))

    newest = story.ask(0, "newest", "n")
    story.ask(1, "newest", "n", answer=newest)
    epoch = story.begin(newest, said=1)
    later = story.ask(2, "newest", "n")
    story.done(newest, epoch)
    story.run(later, said=2)
    back = story.ask(6, "newest", "m")
    story.again(back, story.begin(back, said=6), "release")
    story.ask(7, "newest", "m", answer=back)
    story.ended(back, 1, "replaced")
    story.run(back, said=7)
    for rule in ("once", "recent", "spaced"):
        first_id = story.ask(3, rule, "k")
        story.ask(4, rule, "k", answer=first_id)
        story.run(first_id, said=3)
        story.run(story.ask(5, rule, "k"), said=5)

    story.history.spans = [Span(schedule="tick", after_at=DUE_AT, until_at=DUE_AT + 3, every_s=1.0)]
    for due_at in (DUE_AT + 1, DUE_AT + 2, DUE_AT + 3):
        id = story.single(occurrence_id("tick", due_at), queue="tick")
        story.run(id)
        story.history.occurrences.append(Occurrence(schedule="tick", due_at=due_at, sent_at=due_at + 0.1, id=id))
    for run in story.history.runs:
        story.history.values[run.number] = run.number * 10
    return story.end()


def found(history: History) -> set[str]:
    return {name for name, texts in check(history).findings.items() if texts}


def test_a_sound_history_of_flow_control_is_accepted() -> None:
    verdict = check(flowing())
    assert {name: texts for name, texts in verdict.findings.items() if texts} == {}
    assert verdict.pressed["pair"] > 0
    assert verdict.pressed["pace"] > 0


def move(history: History, message: str, t: float, epoch: int = 1) -> None:
    """It was handed out at another time, and started at once."""
    change(
        history.hand_outs,
        {"t": t, "at": EPOCH_S + t, "lease_until": EPOCH_S + t + LEASE_S, "at_t": t, "until_t": t + LEASE_S},
        message=message,
        epoch=epoch,
    )
    change(history.starts, {"t": t + 0.1, "end_t": t + 0.2}, message=message, epoch=epoch)


def received_t(history: History, message: str, epoch: int = 1) -> float:
    return float(only(history.hand_outs, message=message, epoch=epoch).t)


# ------------------------------------------------------------------------------------------------ one thing is not so
def a_third_starts_while_two_run(history: History) -> None:
    move(history, "2.narrow", received_t(history, "1.narrow") + 0.5)


def the_place_of_a_killed_supervisor_is_given_away_before_its_lease_is_over(history: History) -> None:
    """1 is dead, 2 runs, and 3 starts."""
    move(history, "3.narrow", received_t(history, "2.narrow") + 0.5)


def two_start_when_the_first_lease_of_a_dead_one_is_over(history: History) -> None:
    at = received_t(history, "1.narrow")
    for id, t in (("2.narrow", at + LEASE_S + 2), ("3.narrow", at + LEASE_S + 3)):
        move(history, id, t)
        settle_at(history, id, t + 3)


def the_place_of_a_renewed_lease_is_given_away(history: History) -> None:
    two_start_when_the_first_lease_of_a_dead_one_is_over(history)
    at = received_t(history, "1.narrow") + 10
    history.renewals.append(Renewal(t=at, asked_t=at, asked_wall=EPOCH_S + at, message="1.narrow", epoch=1, lease_s=LEASE_S))


def a_limit_that_was_lowered_is_not_kept(history: History) -> None:
    move(history, "5.narrow", received_t(history, "4.narrow") + 0.5)


def a_start_comes_before_the_limit_is_raised(history: History) -> None:
    move(history, "6.narrow", received_t(history, "5.narrow") + 0.5)


def the_limit_of_a_whole_queue_is_not_kept(history: History) -> None:
    """Without a claim of their own: only the queue's limit is broken."""
    at = received_t(history, "4.narrow")
    for place, message in enumerate(history.messages):
        if message.number in (4, 5, 6, 7):
            history.messages[place] = structs.replace(message, claims=(), queue="narrow")
    for number in (5, 6, 7):
        move(history, f"{number}.narrow", at + number / 10)


def two_of_a_group_run_at_once(history: History) -> None:
    move(history, "13.narrow", received_t(history, "12.narrow") + 0.5)


def the_rate_is_not_kept(history: History) -> None:
    """The third start a second after the first: burst 2, one more in two seconds."""
    move(history, "9.narrow", received_t(history, "7.narrow") + 1.0)


def a_rate_that_was_lowered_is_not_kept(history: History) -> None:
    move(history, "11.narrow", received_t(history, "10.narrow") + 8.0)


def a_hand_out_while_the_queue_is_snoozed(history: History) -> None:
    move(history, "18.narrow", only(history.shuts, queue="quiet").t + 10)


def a_hand_out_while_the_switch_is_tripped(history: History) -> None:
    move(history, "15.narrow", only(history.shuts, queue="frail").t + 10)


def more_are_tried_than_the_switch_allows(history: History) -> None:
    move(history, "16.narrow", received_t(history, "15.narrow") + 0.5)


def more_are_tried_because_an_old_one_still_runs(history: History) -> None:
    """14 was out when the switch tripped, and counts."""
    at = received_t(history, "15.narrow")
    for acts in (history.settlings,):
        change(acts, {"asked_t": at + 1.5}, message="14.narrow")
    move(history, "14.narrow", only(history.shuts, queue="frail").t - 0.5)


def two_of_a_unique_key_live_at_once(history: History) -> None:
    settle_at(history, "once.3", only(history.askings, id="once.5").t + 1)


def two_of_a_unique_key_live_at_once_within_its_window(history: History) -> None:
    settle_at(history, "recent.3", only(history.askings, id="recent.5").t + 1)
    change(history.singles, {"sent_at": only(history.singles, id="recent.3").sent_at + 0.9}, id="recent.5")


def two_of_which_the_newest_wins_wait_together(history: History) -> None:
    at = only(history.askings, id="newest.2").t + 0.1
    move(history, "newest.0", at)


def a_throttle_lets_two_through(history: History) -> None:
    change(history.singles, {"sent_at": only(history.singles, id="spaced.3").sent_at + 0.9}, id="spaced.5")


def the_newest_arguments_are_forgotten(history: History) -> None:
    change(history.starts, {"said": 0}, message="newest.0")


def the_message_that_stands_for_another_is_not_there(history: History) -> None:
    change(history.askings, {"answer": "gone"}, id="once.4")


def a_unique_message_is_invented(history: History) -> None:
    drop(history.askings, id="once.5")


def an_occurrence_is_missing(history: History) -> None:
    """And its message too."""
    id = occurrence_id("tick", DUE_AT + 2)
    drop(history.occurrences, id=id)
    drop(history.singles, id=id)
    for acts in (history.hand_outs, history.starts, history.settlings):
        drop(acts, message=id)
    history.counted["done"] -= 1


def an_occurrence_is_sent_twice(history: History) -> None:
    history.occurrences.append(only(history.occurrences, due_at=DUE_AT + 2))


def an_occurrence_is_sent_early(history: History) -> None:
    change(history.occurrences, {"sent_at": DUE_AT + 1.9}, due_at=DUE_AT + 2)


def an_occurrence_was_never_due(history: History) -> None:
    change(history.spans, {"until_at": DUE_AT + 2}, schedule="tick")


def an_occurrence_has_a_random_id(history: History) -> None:
    occurrence = only(history.occurrences, due_at=DUE_AT + 2)
    history.occurrences.append(structs.replace(occurrence, schedule="other"))


def a_limit_holds_places_of_nobody(history: History) -> None:
    history.left.append("limit pair: 1 running, 0 waiting")


def settle_at(history: History, message: str, t: float) -> None:
    change(history.settlings, {"asked_t": t}, message=message)


BROKEN: list[tuple[Edit, set[str]]] = [
    (a_third_starts_while_two_run, {"crowded"}),
    (the_place_of_a_killed_supervisor_is_given_away_before_its_lease_is_over, {"crowded"}),
    (the_place_of_a_renewed_lease_is_given_away, {"crowded"}),
    (a_limit_that_was_lowered_is_not_kept, {"crowded"}),
    (a_start_comes_before_the_limit_is_raised, {"crowded"}),
    (the_limit_of_a_whole_queue_is_not_kept, {"crowded"}),
    (two_of_a_group_run_at_once, {"crowded", "disorder"}),
    (the_rate_is_not_kept, {"hurried"}),
    (a_rate_that_was_lowered_is_not_kept, {"hurried"}),
    (a_hand_out_while_the_queue_is_snoozed, {"shut"}),
    (a_hand_out_while_the_switch_is_tripped, {"shut"}),
    (more_are_tried_than_the_switch_allows, {"shut"}),
    (more_are_tried_because_an_old_one_still_runs, {"shut"}),
    (two_of_a_unique_key_live_at_once, {"twins"}),
    (two_of_a_unique_key_live_at_once_within_its_window, {"twins"}),
    (two_of_which_the_newest_wins_wait_together, {"twins"}),
    (a_throttle_lets_two_through, {"twins"}),
    (the_newest_arguments_are_forgotten, {"outdated"}),
    (the_message_that_stands_for_another_is_not_there, {"lost"}),
    (a_unique_message_is_invented, {"unexpected"}),
    (an_occurrence_is_missing, {"occurrence"}),
    (an_occurrence_is_sent_twice, {"occurrence"}),
    (an_occurrence_is_sent_early, {"occurrence"}),
    (an_occurrence_was_never_due, {"occurrence"}),
    (an_occurrence_has_a_random_id, {"occurrence"}),
    (a_limit_holds_places_of_nobody, {"left"}),
]


@pytest.mark.parametrize(("edit", "expected"), BROKEN, ids=[edit.__name__ for edit, _ in BROKEN])
def test_a_broken_history_is_refused_for_the_right_reason(edit: Edit, expected: set[str]) -> None:
    history = flowing()
    edit(history)
    assert found(history) == expected, check(history).findings


def test_every_finding_about_flow_is_provoked_by_some_broken_history() -> None:
    assert set().union(*(expected for _, expected in BROKEN)) >= set(FLOW_FINDINGS)


# ------------------------------------------------------------------------------------------------ what cannot be known is not a finding
def a_place_is_given_back_while_the_next_receive_waits(history: History) -> None:
    """Its instant was read before the settle's: 2 has one from before the end of 0, and was answered after it."""
    two = only(history.hand_outs, message="2.narrow")
    change(history.hand_outs, {"at": two.at - 4, "at_t": two.at_t - 4}, message="2.narrow")


def a_start_while_the_limit_is_being_raised(history: History) -> None:
    bound = history.bounds[-2]
    assert (bound.name, bound.concurrency) == ("pair", 2)
    move(history, "6.narrow", (bound.asked_t + bound.t) / 2)


def a_lease_is_renewed_when_it_was_over(history: History) -> None:
    """It takes its place without asking: the two that have it by then are not to blame."""
    at = received_t(history, "1.narrow") + LEASE_S + 1
    history.renewals.append(Renewal(t=at, asked_t=at, asked_wall=EPOCH_S + at, message="1.narrow", epoch=1, lease_s=0.5))


def a_settle_whose_answer_was_lost_may_have_given_the_place_back(history: History) -> None:
    story = Story(SHAPE, items=0)
    story.history, story.t = history, received_t(history, "2.narrow") - 1.5
    story.settle("1.narrow", 1, "ack", "lease_lost", pid=100)
    move(history, "3.narrow", received_t(history, "2.narrow") + 0.5)


def a_message_is_unique_again_as_soon_as_the_end_of_the_last_is_asked_for(history: History) -> None:
    settle_at(history, "once.3", only(history.askings, id="once.5").t - 0.1)


@pytest.mark.parametrize(
    "edit",
    [
        a_place_is_given_back_while_the_next_receive_waits,
        a_start_while_the_limit_is_being_raised,
        a_lease_is_renewed_when_it_was_over,
        two_start_when_the_first_lease_of_a_dead_one_is_over,
        a_settle_whose_answer_was_lost_may_have_given_the_place_back,
        a_message_is_unique_again_as_soon_as_the_end_of_the_last_is_asked_for,
    ],
    ids=lambda edit: str(edit.__name__),
)
def test_what_the_journal_cannot_tell_is_no_finding(edit: Edit) -> None:
    history = flowing()
    edit(history)
    assert {name: texts for name, texts in check(history).findings.items() if texts and name in FLOW_FINDINGS} == {}
