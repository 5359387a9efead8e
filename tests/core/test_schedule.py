"""When a schedule is due: cron expressions, zones and their changes, intervals, what is caught up, and the ids."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from math import inf
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beltline.core.errors import NameInvalid, ScheduleInvalid, ValueInvalid
from beltline.core.message import Message, Place
from beltline.core.names import message_id
from beltline.core.schedule import (
    DUE,
    NO_ID,
    OF,
    Schedule,
    newest,
    next_after,
    occurrence,
    occurrence_id,
    occurrences,
    plan,
    schedule,
    step,
    triggered,
)

MESSAGE = Message(id=message_id("1" * 32), queue="mail", task="tasks.remind", body=b"\x80", headers={"by": "ann"})
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Pacific/Apia", "Asia/Kathmandu", "Africa/Casablanca")
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0


def cron(expression: str, tz: str = "UTC", **more: object) -> Schedule:
    return schedule("s", MESSAGE, cron=expression, tz=tz, **more)


def every(seconds: object, **more: object) -> Schedule:
    return schedule("s", MESSAGE, every=seconds, **more)


def at(text: str) -> float:
    """`2026-10-25T02:30+01:00` in seconds."""
    return datetime.fromisoformat(text).timestamp()


def due(spec: Schedule, after: str, count: int) -> list[str]:
    """The next ones as the clock of the zone shows them."""
    found = islice(occurrences(spec, at(after)), count)
    return [datetime.fromtimestamp(each.at, ZoneInfo(spec.tz)).strftime("%m-%d %H:%M %z") for each in found]


# The rule stands at the top of core/cron.py. Each row: zone, expression, after, what is due next.
CASES = {
    "a daily time that does not exist comes at the first instant that does": (
        "Europe/Berlin", "30 2 * * *", "2026-03-28T12:00+01:00", ["03-29 03:00 +0200", "03-30 02:30 +0200"],
    ),
    "several that do not exist come once": (
        "Europe/Berlin", "0,15,30,45 2 * * *", "2026-03-28T12:00+01:00", ["03-29 03:00 +0200", "03-30 02:00 +0200"],
    ),
    "and not beside the one that stands there anyway": (
        "Europe/Berlin", "30 2,3 * * *", "2026-03-28T12:00+01:00", ["03-29 03:00 +0200", "03-29 03:30 +0200", "03-30 02:30 +0200"],
    ),
    "at the end of the gap itself there is one, not two": (
        "Europe/Berlin", "0 2,3 * * *", "2026-03-28T12:00+01:00", ["03-29 03:00 +0200", "03-30 02:00 +0200"],
    ),
    "a daily time that comes twice comes the first time": (
        "Europe/Berlin", "30 2 * * *", "2026-10-24T12:00+02:00", ["10-25 02:30 +0200", "10-26 02:30 +0100"],
    ),
    "asked in the second of the two hours, it is not due again": (
        "Europe/Berlin", "30 2 * * *", "2026-10-25T02:10+01:00", ["10-26 02:30 +0100"],
    ),
    "each quarter of an hour is real time: four times in each of the two hours": (
        "Europe/Berlin", "*/15 * * * *", "2026-10-25T01:50+02:00",
        ["10-25 02:00 +0200", "10-25 02:15 +0200", "10-25 02:30 +0200", "10-25 02:45 +0200",
         "10-25 02:00 +0100", "10-25 02:15 +0100", "10-25 02:30 +0100", "10-25 02:45 +0100", "10-25 03:00 +0100"],
    ),
    "and never in the hour that is left out": (
        "Europe/Berlin", "*/15 * * * *", "2026-03-29T01:35+01:00", ["03-29 01:45 +0100", "03-29 03:00 +0200", "03-29 03:15 +0200"],
    ),
    "hourly is every real hour": (
        "Europe/Berlin", "@hourly", "2026-10-25T01:30+02:00", ["10-25 02:00 +0200", "10-25 02:00 +0100", "10-25 03:00 +0100"],
    ),
    "a wild minute in an hour that is left out is not due that day": (
        "Europe/Berlin", "*/30 2 * * *", "2026-03-28T02:45+01:00", ["03-30 02:00 +0200", "03-30 02:30 +0200"],
    ),
    "New York, spring": ("America/New_York", "30 2 * * *", "2026-03-07T12:00-05:00", ["03-08 03:00 -0400", "03-09 02:30 -0400"]),
    "New York, autumn": ("America/New_York", "30 1 * * *", "2026-10-31T12:00-04:00", ["11-01 01:30 -0400", "11-02 01:30 -0500"]),
    "a working day at nine is at nine before and after a change": (
        "America/New_York", "0 9 * * MON-FRI", "2026-03-06T10:00-05:00", ["03-09 09:00 -0400", "03-10 09:00 -0400"],
    ),
    "a change of half an hour forward": ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00+10:30", ["10-04 02:30 +1100", "10-05 02:15 +1100"]),
    "a change of half an hour back": ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04T12:00+11:00", ["04-05 01:45 +1100", "04-06 01:45 +1030"]),
    "half an hour twice": (
        "Australia/Lord_Howe", "*/15 * * * *", "2026-04-05T01:20+11:00",
        ["04-05 01:30 +1100", "04-05 01:45 +1100", "04-05 01:30 +1030", "04-05 01:45 +1030", "04-05 02:00 +1030"],
    ),
    "hours after a change of half an hour are whole again": (
        "Australia/Lord_Howe", "*/15 5 * * *", "2026-10-04T00:00+10:30", ["10-04 05:00 +1100", "10-04 05:15 +1100", "10-04 05:30 +1100"],
    ),
    "a midnight that does not exist": ("America/Santiago", "@daily", "2026-09-05T12:00-04:00", ["09-06 01:00 -0300", "09-07 00:00 -0300"]),
    "a day that does not exist": (
        "Pacific/Apia", "0 12 * * *", "2011-12-29T11:00-10:00", ["12-29 12:00 -1000", "12-31 00:00 +1400", "12-31 12:00 +1400"],
    ),
    "a day that does not exist, in real time": (
        "Pacific/Apia", "0 */12 * * *", "2011-12-29T11:00-10:00", ["12-29 12:00 -1000", "12-31 00:00 +1400", "12-31 12:00 +1400"],
    ),
    "a zone without changes, off by a quarter": ("Asia/Kathmandu", "0 6 * * *", "2026-03-28T12:00+05:45", ["03-29 06:00 +0545", "03-30 06:00 +0545"]),
    "two changes around Ramadan": (
        "Africa/Casablanca", "30 2 * * *", "2026-02-14T12:00+01:00", ["02-15 02:30 +0100", "02-16 02:30 +0000"],
    ),
    "UTC knows no change": ("UTC", "30 2 * * *", "2026-03-28T12:00+00:00", ["03-29 02:30 +0000", "03-30 02:30 +0000"]),
    "the leap day": ("UTC", "0 9 29 2 *", "2026-01-01T00:00+00:00", ["02-29 09:00 +0000", "02-29 09:00 +0000"]),
    "the last day of a month": ("UTC", "0 0 L * *", "2026-01-30T00:00+00:00", ["01-31 00:00 +0000", "02-28 00:00 +0000"]),
    "the second Tuesday": ("Europe/Berlin", "0 8 * * TUE#2", "2026-03-01T00:00+01:00", ["03-10 08:00 +0100", "04-14 08:00 +0200"]),
    "day of month or weekday": ("UTC", "0 0 13 * FRI", "2026-02-01T00:00+00:00", ["02-06 00:00 +0000", "02-13 00:00 +0000"]),
    "weekly is Sunday": ("UTC", "@weekly", "2026-03-02T00:00+00:00", ["03-08 00:00 +0000", "03-15 00:00 +0000"]),
    "yearly": ("Europe/Berlin", "@yearly", "2026-03-02T00:00+01:00", ["01-01 00:00 +0100", "01-01 00:00 +0100"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_clock_of_a_zone(case):
    tz, expression, after, expected = case
    assert due(cron(expression, tz), after, len(expected)) == expected


def test_an_interval_knows_no_clock_on_a_wall():
    before = at("2026-10-25T00:30+02:00")
    found = [each.at for each in islice(occurrences(every(1800.0), before), 8)]
    assert [later - earlier for earlier, later in pairwise(found)] == [1800.0] * 7
    assert found[0] == before + 1800.0


def test_multiples_are_counted_from_1970_or_from_the_start():
    assert next_after(every(300), at("2026-03-01T10:02:17+00:00")) == at("2026-03-01T10:05:00+00:00")
    spec = every(timedelta(minutes=5), start=datetime(2026, 3, 1, 10, 1, tzinfo=UTC))
    assert next_after(spec, at("2026-03-01T10:02:17+00:00")) == at("2026-03-01T10:06:00+00:00")
    assert next_after(spec, at("2020-01-01T00:00+00:00")) == at("2026-03-01T10:01:00+00:00"), "none before the start"
    assert newest(spec, at("2020-01-01T00:00+00:00"), at("2021-01-01T00:00+00:00"), 5) == []


def test_what_a_change_of_the_clock_makes_of_an_occurrence_is_said():
    spec = cron("30 2 * * *", "Europe/Berlin")
    notes = [each.note for each in islice(occurrences(spec, at("2026-03-27T12:00+01:00")), 3)]
    assert notes == ["", "02:30 does not exist on this day", ""]
    [twice] = islice(occurrences(spec, at("2026-10-24T12:00+02:00")), 1)
    assert twice.note == "02:30 comes twice on this day: the first"


EXPRESSIONS = ("30 2 * * *", "*/7 * * * *", "5 */3 * * *", "0,59 0,2,3,23 * * *", "15 2 * * SUN", "* 2 * * *", "0 12 1 * *")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ZONES),
    st.sampled_from(EXPRESSIONS),
    st.integers(int(at("2011-01-01T00:00+00:00")), int(at("2037-01-01T00:00+00:00"))),
    st.floats(0, 1),
)
def test_from_wherever_one_asks_the_same_occurrences_come_in_order(tz, expression, after, part):
    spec = cron(expression, tz)
    found = [each.at for each in islice(occurrences(spec, after), 12)]
    assert all(earlier < later for earlier, later in pairwise([after, *found]))
    place = int(part * (len(found) - 2))
    assert [each.at for each in islice(occurrences(spec, found[place]), 3)][: len(found) - place - 1] == found[place + 1 : place + 4]
    between = (found[place] + found[place + 1]) / 2
    assert next_after(spec, between) == found[place + 1]
    assert next_after(spec, found[place + 1] - 0.001) == found[place + 1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ZONES), st.sampled_from(EXPRESSIONS), st.integers(int(at("2025-01-01T00:00+00:00")), int(at("2027-01-01T00:00+00:00"))))
def test_the_newest_are_the_last_of_all(tz, expression, until):
    spec, after = cron(expression, tz), until - 3 * DAY_S
    everything = []
    for each in occurrences(spec, after):
        if each.at > until:
            break
        everything.append(each.at)
    for count in (1, 5, 10_000):
        assert newest(spec, after, until, count) == everything[-count:]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(ZONES), st.integers(int(at("2011-01-01T00:00+00:00")), int(at("2037-01-01T00:00+00:00"))))
def test_a_daily_time_comes_once_a_day(tz, after):
    """Once for each day the clock of the zone shows, whatever happens to it."""
    spec, zone = cron("30 2 * * *", tz), ZoneInfo(tz)
    days = [datetime.fromtimestamp(each.at, zone).date() for each in islice(occurrences(spec, after), 400)]
    assert all(later - earlier == timedelta(days=1) for earlier, later in pairwise(days)) or tz == "Pacific/Apia"
    assert len(set(days)) == len(days) or tz == "Pacific/Apia"


# ------------------------------------------------------------------------------------------------------------ refused
@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("70 2 * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 0 32 * *", "bad day-of-month"),
        ("0 0 * 13 *", "bad month"),
        ("0 0 * * 9", "bad day-of-week"),
        ("0 0 30 2 *", "day-of-month"),
        ("* * *", "3 fields"),
        ("0 * * * * *", "6 fields"),
        ("", "0 fields"),
        ("@reboot", "@reboot"),
        ("*/0 * * * *", "bad minute"),
        ("5-1 * * * *", "bad minute"),
        ("0 0 * * " + "1," * 200, "200 characters"),
        ("²* * * * *", "bad minute"),
    ],
)
def test_what_is_no_cron_expression_is_refused_with_the_reason(expression, why):
    with pytest.raises(ScheduleInvalid, match="Schedule 's'") as told:
        cron(expression)
    assert why in str(told.value)


@pytest.mark.parametrize("tz", ["", "Mars", "../etc/passwd", "Europe", "/etc/localtime", "Europe/Berlin\x00"])
def test_a_zone_nobody_knows_is_refused(tz):
    with pytest.raises(ScheduleInvalid, match="no time zone"):
        cron("@daily", tz)


def test_the_zone_that_was_probably_meant_is_told():
    for wrong in ("Europe/Berlim", "berlin"):
        with pytest.raises(ScheduleInvalid, match="'Europe/Berlin'"):
            cron("@daily", wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"cron": "@daily", "every": 60},
        {"every": 0.5},
        {"every": -60},
        {"every": inf},
        {"every": "5"},
        {"every": True},
        {"cron": "@daily", "start": datetime(2026, 1, 1, tzinfo=UTC)},
        {"every": 60, "start": datetime(2026, 1, 1)},  # noqa: DTZ001 - the point
        {"every": 60, "catch_up": "never"},
        {"every": 60, "catch_up_limit": 0},
        {"every": 60, "catch_up_limit": 1001},
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises((ScheduleInvalid, ValueInvalid)):
        schedule("s", MESSAGE, **wrong)


def test_a_name_is_checked_and_an_instant_of_the_message_has_no_place():
    with pytest.raises(NameInvalid):
        schedule("no name", MESSAGE, every=60)
    with pytest.raises(ScheduleInvalid, match="at="):
        schedule("s", Message(id=NO_ID, queue="q", task="t", body=b"", ready_at=1.0), every=60)


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="0123456789*/-,LW#@SUNJANadily \t", max_size=30))
def test_any_text_is_an_expression_or_a_clear_error(text):
    try:
        assert next_after(cron(text), 0.0) < inf
    except ScheduleInvalid as error:
        if not error.help:
            raise


# ----------------------------------------------------------------------------------------------------------- catching up
NOW = at("2026-03-01T12:00:30+00:00")


def test_once_is_the_newest_that_is_due():
    planned = plan(cron("*/10 * * * *"), NOW - 2 * HOUR_S, NOW)
    assert planned.due == (at("2026-03-01T12:00+00:00"),)
    assert (planned.skipped, planned.stands_at, planned.next_at) == (11, planned.due[0], planned.due[0] + 10 * MINUTE_S)


def test_all_are_the_newest_of_them_oldest_first():
    planned = plan(every(600, catch_up="all", catch_up_limit=3), NOW - 2 * HOUR_S, NOW)
    assert planned.due == tuple(at(f"2026-03-01T{clock}+00:00") for clock in ("11:40", "11:50", "12:00"))
    assert planned.skipped == 9


def test_skip_sends_what_is_on_time():
    spec = cron("0 * * * *", catch_up="skip")
    assert plan(spec, NOW - DAY_S, NOW).due == (at("2026-03-01T12:00+00:00"),)
    late = plan(spec, NOW - DAY_S, NOW + 31.0)
    assert (late.due, late.skipped, late.stands_at) == ((), 24, at("2026-03-01T12:00+00:00"))


@pytest.mark.parametrize("spec", [cron("*/10 * * * *"), every(600), cron("*/10 * * * *", catch_up="all"), every(600, catch_up="skip")])
def test_nothing_that_is_due_is_nothing_to_do(spec):
    stood_at = at("2026-03-01T12:00+00:00")
    planned = plan(spec, stood_at, NOW)
    assert (planned.due, planned.skipped, planned.stands_at, planned.next_at) == ((), 0, stood_at, stood_at + 600)
    assert plan(spec, NOW + DAY_S, NOW).due == (), "a position in the future waits until it has come"


@pytest.mark.parametrize("spec", [cron("* * * * *", "Europe/Berlin", catch_up="all"), every(1, catch_up="all"), cron("0 3 * * *", catch_up="all")])
def test_years_ahead_cost_no_more_than_the_limit(spec):
    planned = plan(spec, NOW, NOW + 50 * 365 * DAY_S)
    assert len(planned.due) == 100
    assert planned.due == tuple(sorted(planned.due))
    assert planned.skipped > 0
    assert plan(spec, planned.stands_at, NOW + 50 * 365 * DAY_S).due == ()


# ------------------------------------------------------------------------------------------------------------------ sent
def test_the_id_is_made_of_name_and_instant_and_sorts_by_it():
    dues = [at("2026-03-01T12:00+00:00") + number * 60 for number in range(5)]
    ids = [occurrence_id("nightly", due) for due in dues]
    assert ids == [occurrence_id("nightly", due) for due in dues] == sorted(ids)
    assert len({*ids, occurrence_id("daily", dues[0]), occurrence_id("nightly", dues[0] + 0.001)}) == 7
    assert all(message_id(id) == id for id in ids)
    assert int(ids[0][:12], 16) == round(dues[0] * 1000)
    assert {id[12] for id in ids} == {"8"}


def test_a_message_of_an_occurrence_is_the_template_with_its_own_id_and_two_headers():
    spec, instant = every(60), at("2026-03-01T12:00+00:00")
    message = occurrence(spec, instant)
    assert message.headers == {"by": "ann", OF: "s", DUE: "2026-03-01T12:00:00+00:00"}
    assert (message.id, message.queue, message.task, message.body) == (occurrence_id("s", instant), "mail", "tasks.remind", b"\x80")
    assert spec.message.id == NO_ID
    by_hand = triggered(spec, message_id("2" * 32))
    assert (by_hand.id, by_hand.headers) == ("2" * 32, {"by": "ann", OF: "s"})


def test_an_occurrence_of_a_chain_is_a_run_of_its_own():
    entering = Message(id=NO_ID, queue="first", task="t", body=b"", place=Place(NO_ID, "line", "first"))
    message = occurrence(schedule("s", entering, every=60), 120.0)
    assert message.place == Place(message.id, "line", "first")


def test_a_step_says_where_it_stood_and_where_it_will_stand():
    spec = every(60, catch_up="all")
    made = step(spec, 3, 60.0, 185.0)
    assert [message.headers[DUE][11:19] for message in made.messages] == ["00:02:00", "00:03:00"]
    assert (made.name, made.revision, made.stood_at, made.stands_at, made.next_at, made.skipped) == ("s", 3, 60.0, 180.0, 240.0, 0)


def test_only_what_decides_when_it_is_due_is_its_timing():
    spec = cron("30 2 * * *", "Europe/Berlin")
    assert cron("  30  2 * * * ", "Europe/Berlin", catch_up="skip").timing == spec.timing == cron("30 2 * * *", "Europe/Berlin").timing
    assert cron("30 2 * * *").timing != spec.timing
    assert every(60).timing != every(61).timing
