"""How many slots a fleet gets: the terms, the bounds, the patience, the shares."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from beltline.core.errors import ValueInvalid
from beltline.core.names import QueueName
from beltline.core.scaling import (
    BELT,
    DRAIN,
    FIRST,
    HOST,
    IDLE,
    KEYS,
    LEAST,
    PATIENCE,
    PROTECT,
    RANGE,
    STEADY,
    Belt,
    Decision,
    Rules,
    Sample,
    Service,
    Trend,
    check_range,
    decide,
)

WORK, NEXT = QueueName("work"), QueueName("next")
PLAIN = Rules(start_s=0.0)
SECOND = Service(100, 1.0, 0.0)


def sample(at: float = 1000.0, **fields: Any) -> Sample:
    made: dict[str, Any] = {"came": 0, "ended": 1, "runnable": 0, "held": 0, "leased": 0, "oldest_s": 0.0, "service": SECOND, **fields}
    return Sample(queue=WORK, at=at, **made)


def settled(slots: int, **fields: Any) -> Trend:
    """A fleet that has stood at `slots` for long, with a sample 2 s ago."""
    made: dict[str, Any] = {"at": 998.0, "samples": 100, "stirred_at": 998.0, "quiet_from": 998.0, "grown_at": 0.0, **fields}
    return Trend(slots=slots, **made)


def rounds(samples: list[Sample], trend: Trend, rules: Rules = PLAIN) -> tuple[list[Decision], Trend]:
    made = []
    for each in samples:
        decision, trend = decide(each, trend, rules)
        made.append(decision)
    return made, trend


# ------------------------------------------------------------------------------------------------------------------ growth
def test_the_acceptable_backlog_of_the_cloud_fifteen_hundred_of_a_tenth_of_a_second_within_ten():
    decision, _ = decide(sample(came=1500, runnable=1500, service=Service(10, 0.1, 0.0)), Trend(), PLAIN)
    assert (decision.slots, decision.term) == (15, DRAIN)


def test_what_arrives_keeps_its_slots_busy_with_air_to_breathe():
    decision, _ = decide(sample(came=20, leased=8, ended=12), settled(9, per_s=10.0, came=0), PLAIN)
    assert decision.arrivals_per_s == pytest.approx(10.0)
    assert (decision.need, decision.term) == (math.ceil(10.0 * 1.0 / 0.75), STEADY)


def test_a_backlog_that_is_late_already_is_drained_within_a_quarter_of_the_target():
    fresh, _ = decide(sample(runnable=100, leased=1, target_s=10.0, oldest_s=0.0), settled(1), PLAIN)
    late, _ = decide(sample(runnable=100, leased=1, target_s=10.0, oldest_s=60.0), settled(1), PLAIN)
    assert (fresh.slots, late.slots) == (10, 40)


def test_the_start_of_a_runner_is_taken_off_the_time_there_is():
    decision, _ = decide(sample(runnable=100, leased=1), settled(1), Rules(start_s=5.0))
    assert decision.slots == 20


def test_growth_takes_one_sample_and_waits_for_nothing():
    decision, trend = decide(sample(runnable=50), settled(2, grown_at=999.0, agreeing=2), PLAIN)
    assert (decision.before, decision.slots, decision.news) == (2, 5, True)
    assert (trend.slots, trend.grown_at, trend.agreeing) == (5, 1000.0, 0)


def test_tasks_that_have_been_running_without_an_end_are_taken_to_be_as_slow_as_that():
    """Nothing is known of the service time yet, and both slots have been busy for 30 s."""
    fast, _ = decide(sample(ended=0, runnable=20, leased=2, service=Service()), settled(2, quiet_from=998.0), PLAIN)
    slow, _ = decide(sample(ended=0, runnable=20, leased=2, service=Service()), settled(2, quiet_from=970.0), PLAIN)
    free, _ = decide(sample(ended=0, runnable=20, leased=1, service=Service()), settled(2, quiet_from=970.0), PLAIN)
    assert (fast.service_s, slow.service_s, free.service_s) == (2.0, 30.0, 0.0)
    assert (fast.need, slow.need, free.need) == (4, 22, 1)  # no more than there are messages


def test_an_end_that_is_a_little_late_is_no_news():
    decision, _ = decide(sample(ended=0, runnable=20, leased=2, service=Service(100, 1.0, 1.0)), settled(2, quiet_from=996.0), PLAIN)
    assert decision.service_s == 1.0


# ------------------------------------------------------------------------------------------------------------------- zero
def test_from_zero_at_the_first_message():
    decision, _ = decide(sample(came=1, runnable=1), settled(0, stirred_at=-math.inf), PLAIN)
    assert (decision.slots, decision.term) == (1, FIRST)


def test_a_message_that_is_through_before_anybody_looks_is_the_first_one_all_the_same():
    idle = settled(0, stirred_at=-math.inf, came=3, served=3)
    decision, trend = decide(sample(came=4, served=4), idle, PLAIN)
    assert (decision.before, decision.slots, decision.term, decision.news) == (0, 1, FIRST, True)
    made, _ = rounds([sample(at=1000.0 + 2.0 * number, came=4, served=4) for number in range(1, 80)], trend)
    assert [(each.at, each.slots) for each in made if each.news] == [(1124.0, 0)]
    for fields in ({"served": 3}, {"served": 4, "shut": "paused"}):
        assert decide(sample(came=4, **fields), idle, PLAIN)[0].slots == 0
    assert decide(sample(came=4, served=4), Trend(), PLAIN)[0].slots == 0  # nobody has looked before: that may be long ago
    assert decide(sample(came=4, served=4, most=2), Trend(), PLAIN)[0].slots == 1


def test_a_first_message_is_told_as_one_whether_it_waits_or_runs_and_whatever_is_known_of_it():
    for fields in ({"runnable": 1}, {"leased": 1}):
        unknown, _ = decide(sample(came=1, ended=0, service=Service(), **fields), Trend(), PLAIN)
        assert (unknown.slots, unknown.term) == (1, FIRST)
        assert unknown.reason == "a first message: 1 slot until it is known how long tasks take"
        known, _ = decide(sample(came=1, ended=0, **fields), Trend(), PLAIN)
        assert known.reason == "the first message has come"
    still_unknown, _ = decide(sample(came=9, ended=0, leased=1, service=Service()), settled(2, quiet_from=1000.0), PLAIN)
    assert (still_unknown.term, still_unknown.need) == (FIRST, 1)


def test_when_nothing_arrives_any_more_no_rate_is_told():
    decision, _ = decide(sample(), settled(1), PLAIN)
    assert (decision.slots, decision.term) == (1, STEADY)
    assert decision.reason.startswith("next to nothing arrives: 1 slot until nothing has come, waited or run for 120 s")


def test_zero_stays_zero_while_nothing_can_run():
    for fields in ({}, {"held": 5}, {"shut": "paused", "runnable": 9}):
        decision, _ = decide(sample(came=9, **fields), settled(0, came=0), PLAIN)
        assert (decision.slots, decision.term) == (0, IDLE), fields


def test_to_zero_only_when_nothing_has_stirred_for_the_cool_down():
    quiet = [sample(at=1000.0 + 2.0 * number) for number in range(1, 100)]
    made, _ = rounds(quiet, settled(1, grown_at=-math.inf, stirred_at=1000.0))
    assert [each.at for each in made if each.slots != each.before] == [1122.0 + 2.0]  # idle at 1120; the third sample that agrees
    assert (made[-1].slots, made[-1].term) == (0, IDLE)


def test_never_to_zero_where_the_range_begins_above_it():
    made, _ = rounds([sample(at=1000.0 + 2.0 * number, least=2) for number in range(1, 400)], settled(5, grown_at=-math.inf))
    assert (made[-1].slots, made[-1].term) == (2, LEAST)


# --------------------------------------------------------------------------------------------------------------- shrinking
def test_fewer_only_after_agreeing_samples_and_the_cool_down_one_step_at_a_time():
    made, _ = rounds([sample(at=1000.0 + 2.0 * number, leased=0, runnable=1, least=1) for number in range(80)], settled(4, grown_at=1000.0))
    falls = [(each.at, each.slots) for each in made if each.slots < each.before]
    assert falls == [(1120.0, 3), (1126.0, 2), (1132.0, 1)]
    assert {each.limit for each in made if each.at < 1120.0} == {PATIENCE}


def test_a_sample_that_disagrees_starts_the_count_anew():
    quiet, loud = {"runnable": 1}, {"runnable": 40}
    made, _ = rounds([sample(at=1000.0 + 2.0 * number, **(loud if number % 3 == 2 else quiet)) for number in range(30)], settled(4))
    assert {each.slots for each in made} == {4}


def test_of_the_samples_that_agree_the_largest_is_taken():
    made, _ = rounds([sample(runnable=runnable, at=1000.0 + number) for number, runnable in enumerate((10, 195, 20))], settled(20))
    assert made[-1].slots == 20  # 195 wait: 20 slots
    made, _ = rounds([sample(runnable=runnable, at=1000.0 + number) for number, runnable in enumerate((10, 185, 20))], settled(20))
    assert made[-1].slots == 19


def test_what_is_leased_is_left_alone():
    made, _ = rounds([sample(at=1000.0 + 2.0 * number, leased=4, ended=number) for number in range(20)], settled(4))
    assert {each.slots for each in made} == {4}
    assert made[-1].limit == PROTECT


def test_a_large_fleet_shrinks_by_a_tenth():
    made, _ = rounds([sample(at=1000.0 + 2.0 * number, runnable=1) for number in range(3)], settled(50))
    assert made[-1].slots == 45


def test_a_range_that_was_narrowed_is_an_order():
    decision, _ = decide(sample(runnable=500, leased=8, most=4, ordered=True), settled(8, grown_at=999.0), PLAIN)
    assert (decision.slots, decision.desired, decision.limit) == (4, 4, RANGE)


# ------------------------------------------------------------------------------------------------------------------ bounds
def test_the_range_ends_it_and_other_autoscalers_hear_what_would_be_needed():
    decision, _ = decide(sample(runnable=230, most=8), settled(2), PLAIN)
    assert (decision.slots, decision.need, decision.desired, decision.limit) == (8, 23, 23, RANGE)
    assert "the range ends at 8" in decision.reason


def test_a_stage_whose_next_belt_is_full_gets_no_more():
    full = Belt(NEXT, load=1000, high_water=1000)
    decision, _ = decide(sample(runnable=500, leased=3, belts=(full,)), settled(3), PLAIN)
    assert (decision.slots, decision.limit) == (3, BELT)
    assert "next behind it holds 1000 of 1000" in decision.reason


def test_a_stage_gets_no_more_than_the_next_belt_has_room_for():
    decision, _ = decide(sample(runnable=500, leased=3, belts=(Belt(NEXT, 90, 100, 3),)), settled(3), PLAIN)
    assert (decision.slots, decision.limit) == (6, BELT)


def test_what_is_held_back_by_limits_and_groups_is_no_reason_for_slots():
    """1,000 messages of 3 groups: three can run, whatever the number of slots."""
    decision, _ = decide(sample(runnable=1, held=997, leased=2, oldest_s=500.0), settled(2), PLAIN)
    assert decision.slots <= 3
    held, _ = decide(sample(runnable=30, held=1000, leased=0, oldest_s=500.0, service=Service(1, 100.0, 0.0)), settled(1), PLAIN)
    assert (held.slots, held.limit) == (30, KEYS)
    assert "more slots would not help" in held.reason


def test_draining_asks_for_no_more_slots_than_there_are_messages():
    one, _ = decide(sample(runnable=1, oldest_s=60.0, service=Service(100, 15.0, 0.0)), settled(0), PLAIN)
    assert (one.slots, one.need) == (1, 1)
    few, _ = decide(sample(runnable=3, leased=2, oldest_s=60.0, service=Service(100, 15.0, 0.0)), settled(2), PLAIN)
    assert (few.slots, few.need, few.term) == (5, 5, DRAIN)
    assert "5 slots to start them" in few.reason


def test_one_slot_stays_while_what_is_held_back_is_let_through_now_and_then():
    decision, _ = decide(sample(runnable=0, held=60, leased=0), settled(1, grown_at=-math.inf, agreeing=9), PLAIN)
    assert decision.slots == 1


def test_why_nothing_may_be_received_is_said():
    for shut in ("paused", "snoozed", "stopped by its kill switch"):
        decision, _ = decide(sample(held=60, shut=shut), settled(2), PLAIN)
        assert decision.reason.startswith(f"the queue is {shut}; "), decision.reason


def test_a_host_that_refuses_is_named():
    decision, _ = decide(sample(runnable=80, most=8, standing=2, refusal="photo-1: no free memory: 12 of the 2000 MiB"), settled(2), PLAIN)
    assert (decision.slots, decision.limit) == (8, HOST)
    assert "photo-1: no free memory" in decision.reason


def test_what_holds_a_fleet_down_is_told_once_per_cool_down():
    made, _ = rounds([sample(at=1000.0 + 2.0 * number, runnable=500, leased=8, ended=number, most=8) for number in range(130)], settled(8))
    assert [each.at for each in made if each.news] == [1000.0]


def test_no_number_of_slots_is_said_in_the_reason():
    decision, _ = decide(sample(runnable=1, hopeless="chain album cannot be through within 5 s"), settled(1), PLAIN)
    assert decision.news
    assert decision.reason.endswith("chain album cannot be through within 5 s")


# ---------------------------------------------------------------------------------------------------------------- arrivals
def test_one_burst_is_a_backlog_and_no_rate():
    _, trend = rounds([sample(at=1000.0, came=100), sample(at=1002.0, came=100_100)], settled(2, per_s=1.0, came=98))
    assert trend.per_s < 4.0


def test_a_rate_that_lasts_is_believed_within_some_samples():
    trend = settled(2, per_s=1.0, came=0)
    for number in range(1, 16):
        _, trend = decide(sample(at=998.0 + 2.0 * number, came=20 * number), trend, PLAIN)
    assert trend.per_s == pytest.approx(10.0, rel=0.15)


def test_a_count_that_sinks_is_no_arrival():
    """Retries leave the count while they are delayed."""
    _, trend = decide(sample(came=90), settled(2, per_s=0.0, came=100), PLAIN)
    assert trend.per_s == 0.0


# -------------------------------------------------------------------------------------------------------------- properties
loads = st.fixed_dictionaries(
    {
        "runnable": st.integers(0, 10_000),
        "held": st.integers(0, 100),
        "leased": st.integers(0, 60),
        "oldest_s": st.floats(0, 1e5),
        "target_s": st.floats(0.01, 1000),
        "least": st.integers(0, 10),
        "most": st.one_of(st.integers(10, 80), st.just(math.inf)),
        "came": st.integers(0, 100_000),
        "ended": st.integers(0, 100_000),
        "shut": st.sampled_from(("", "paused")),
        "ordered": st.booleans(),
        "offered": st.integers(0, 80),
        "service": st.builds(Service, st.floats(0, 200), st.floats(0, 600), st.floats(0, 1e4)),
        "belts": st.lists(st.builds(Belt, st.just(NEXT), st.floats(0, 300), st.floats(1, 300), st.integers(1, 10)), max_size=2).map(tuple),
    }
)
trends = st.builds(
    settled,
    st.integers(0, 80),
    per_s=st.floats(0, 1000),
    came=st.integers(0, 100_000),
    grown_at=st.floats(0, 1000),
    agreeing=st.integers(0, 5),
    peak=st.integers(0, 80),
    stirred_at=st.floats(0, 998),
    quiet_from=st.floats(900, 998),
)


@given(loads, trends)
def test_a_size_is_always_within_the_range(load: dict[str, Any], trend: Trend):
    decision, after = decide(sample(**load), trend)
    assert load["least"] <= decision.slots <= load["most"]
    assert after.slots == decision.slots
    assert decision.reason


@given(loads, trends, st.integers(0, 10_000))
def test_a_larger_backlog_never_gets_fewer_slots(load: dict[str, Any], trend: Trend, more: int):
    fewer, _ = decide(sample(**load), trend)
    many, _ = decide(sample(**{**load, "runnable": load["runnable"] + more, "came": load["came"]}), trend)
    assert many.slots >= fewer.slots


@given(loads, trends)
def test_draining_never_asks_for_more_than_the_messages_there_are(load: dict[str, Any], trend: Trend):
    decision, _ = decide(sample(**{**load, "held": 0}), trend)
    if decision.term == DRAIN:
        assert decision.need <= load["runnable"] + load["leased"]


@given(loads, trends)
def test_shrinking_never_takes_what_is_leased(load: dict[str, Any], trend: Trend):
    decision, _ = decide(sample(**load), trend)
    if decision.slots < decision.before:
        assert decision.slots >= min(load["leased"], decision.before, load["most"])


@given(loads, trends)
def test_shrinking_needs_agreement_and_the_cool_down_or_an_order(load: dict[str, Any], trend: Trend):
    decision, _ = decide(sample(**load), trend)
    if decision.slots < decision.before <= load["most"]:
        assert trend.agreeing + 1 >= 3
        assert 1000.0 - trend.grown_at >= 120.0
        assert decision.before - decision.slots <= max(1, decision.before // 10)


@given(loads, trends)
def test_nothing_grows_before_a_belt_that_is_full(load: dict[str, Any], trend: Trend):
    full = Belt(NEXT, 500, 300)
    decision, _ = decide(sample(**{**load, "belts": (full,), "least": 0}), trend)
    assert decision.slots <= decision.before


@given(loads, trends)
def test_the_number_for_others_is_never_below_the_size(load: dict[str, Any], trend: Trend):
    decision, _ = decide(sample(**load), trend)
    assert decision.desired >= decision.slots


def test_a_range_must_be_one():
    assert check_range(0, 1) == (0, 1)
    for least, most in ((-1, 2), (3, 2), (0, 0)):
        with pytest.raises(ValueInvalid):
            check_range(least, most)


# ----------------------------------------------------------------------------------------------------------------- service
def test_service_times_are_means_and_deviations_that_new_ones_change():
    service = Service().learn(4, 8.0, 18.0)
    assert (service.mean_s, service.variance) == (2.0, 0.5)
    many = service.learn(100_000, 100_000.0, 100_000.0)
    assert many.mean_s == pytest.approx(1.0, abs=0.01)
    changed = many.learn(100, 500.0, 2500.0)
    assert changed.mean_s == pytest.approx(3.0, abs=0.02)
    assert service.learn(0, 0.0, 0.0) is service


def test_a_trend_survives_the_store():
    import msgspec

    _, trend = decide(sample(runnable=5), structs.replace(settled(2), told="x"), PLAIN)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(trend), type=Trend) == trend
