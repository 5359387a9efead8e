"""While a message with a unique key stands for others, a new one is not stored: it is answered with that message's id, or that message takes over what the new one says."""

from beltline.core.flow import Claim, Flow, Unique
from beltline.core.outcome import Ack, Admission, Sent, Settlement
from beltline.core.retry import Retry
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, WORK

POWERS = ("Limits", "Browse", "Control", "Upkeep")

BOTH = ("delayed", "ready")


def _unique(key: str = "k", **options: object) -> Unique:
    return Unique(key=key, **options)  # type: ignore[arg-type]


async def _send(engine: Full, unique: Unique | None = None, **fields: object) -> Sent:
    [sent] = await engine.send([kit.shaped(unique=unique or _unique(), **fields)])  # type: ignore[arg-type]
    return sent


async def _debounce(engine: Full, wait_s: float = 10.0, most_s: float = kit.ENDLESS, **fields: object) -> Sent:
    return await _send(engine, _unique(states=BOTH, replace=True, most_s=most_s), delay_s=wait_s, **fields)


async def one_that_waits_stands_for_a_new_one(engine: Full) -> None:
    first = await _send(engine)
    second = await _send(engine)
    assert (first.admission, second.admission, second.id) == (Admission.STORED, Admission.DEDUPLICATED, first.id)
    assert await kit.ready(engine) == 1


async def until_it_has_ended_and_no_longer(engine: Full, time: Time) -> None:
    first = await _send(engine, delay_s=5.0)
    assert (await _send(engine)).id == first.id
    time.advance(5.0)
    assert (await _send(engine)).id == first.id
    held = await kit.take_one(engine)
    assert (await _send(engine)).id == first.id
    await kit.ok(engine, held)
    assert (await _send(engine)).new


async def one_whose_lease_is_over_stands_for_others_until_it_is_settled(engine: Full, time: Time) -> None:
    first = await _send(engine)
    held = await kit.take_one(engine)
    time.advance(LEASE_S)
    assert (await _send(engine)).id == first.id
    assert (await _send(engine, _unique(states=("leased",)))).id == first.id
    await kit.ok(engine, held)
    assert (await _send(engine)).new


async def the_states_in_which_it_stands_are_those_the_new_one_says(engine: Full) -> None:
    await _send(engine)
    held = await kit.take_one(engine)
    assert (await _send(engine, _unique(states=("leased",)))).id == held.message.id
    again = await _send(engine, _unique(states=BOTH))
    assert again.new
    assert (await _send(engine, _unique(states=("delayed",)))).new


async def only_the_last_one_stored_is_remembered(engine: Full) -> None:
    first = await _send(engine)
    held = await kit.take_one(engine)
    second = await _send(engine, _unique(states=BOTH))
    assert (held.message.id, second.new) == (first.id, True)
    await kit.ok(engine, await kit.take_one(engine))
    assert (await _send(engine)).new


async def ended_and_dead_ones_stand_if_that_is_said(engine: Full) -> None:
    first = await _send(engine)
    await kit.ok(engine, await kit.take_one(engine))
    assert (await _send(engine, _unique(states=("done",)))).id == first.id
    second = await _send(engine)
    assert second.new
    await kit.bury(engine, await kit.take_one(engine))
    assert (await _send(engine, _unique(states=("dead",)))).id == second.id
    assert (await _send(engine)).new


async def its_window_counts_from_its_send(engine: Full, time: Time) -> None:
    first = await _send(engine)
    time.advance(59.75)
    assert (await _send(engine, _unique(window_s=60.0))).id == first.id
    time.advance(0.25)
    assert (await _send(engine, _unique(window_s=60.0))).new
    assert (await _send(engine, _unique(window_s=0.0))).new


async def a_key_is_that_of_one_queue(engine: Full) -> None:
    await _send(engine)
    [sent] = await engine.send([kit.shaped(NEXT, unique=_unique())])
    assert sent.new
    assert (await _send(engine, _unique("other"))).new


async def one_that_has_gone_to_another_queue_stands_for_nobody_here(engine: Full) -> None:
    first = await _send(engine)
    await kit.bury(engine, await kit.take_one(engine))
    await engine.redrive(MessageFilter(ids=(first.id,)), limit=1, queue=NEXT)
    assert (await _send(engine)).new


async def one_batch_is_looked_at_in_its_order(engine: Full) -> None:
    messages = [
        kit.shaped(unique=_unique(key, states=states), delay_s=delay_s)
        for key, states, delay_s in (
            ("k", BOTH, 0.0),
            ("k", BOTH, 0.0),
            ("k", ("delayed",), 5.0),
            ("k", ("ready",), 0.0),
            ("k", ("delayed",), 5.0),
            ("m", BOTH, 0.0),
        )
    ]
    answers = await engine.send(messages)
    stands = (0, 0, 2, 3, 4, 5)
    assert [sent.id for sent in answers] == [messages[index].id for index in stands]
    assert [sent.new for sent in answers] == [True, False, True, True, True, True]


async def the_id_and_the_dedup_key_are_looked_at_first(engine: Full) -> None:
    first = kit.shaped(unique=_unique(), dedup_key="d")
    await kit.send(engine, first)
    other = await kit.send_one(engine, dedup_key="e")
    answers = await engine.send([first, kit.shaped(unique=_unique(), dedup_key="e"), kit.shaped(unique=_unique(), dedup_key="f")])
    assert [(sent.id, sent.admission) for sent in answers] == [
        (first.id, Admission.SAME_ID),
        (other.id, Admission.DEDUPLICATED),
        (first.id, Admission.DEDUPLICATED),
    ]
    await kit.send(engine, kit.message(dedup_key="f"))


async def hand_offs_are_stored_whatever_their_key_and_stand_for_nobody(engine: Full) -> None:
    await kit.send_one(engine)
    follower = [kit.shaped(NEXT, unique=_unique()) for _ in range(2)]
    await kit.ok(engine, await kit.take_one(engine), Ack(then=tuple(follower)))
    assert await kit.ready(engine, NEXT) == 2
    [sent] = await engine.send([kit.shaped(NEXT, unique=_unique())])
    assert sent.new


async def what_is_not_stored_counts_for_no_bound_and_has_no_id(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, max_backlog=1)])
    await _send(engine)
    second = kit.shaped(unique=_unique())
    [sent] = await engine.send([second])
    assert sent.admission is Admission.DEDUPLICATED
    await kit.finish(engine)
    [sent] = await engine.send([second])
    assert (sent.id, sent.admission) == (second.id, Admission.STORED)


async def the_newest_takes_over_what_has_not_begun(engine: Full) -> None:
    old = kit.shaped(unique=_unique(states=BOTH, replace=True), body=b"old", headers={"a": "1"}, tenant="t", claims=[Claim("free")], priority=3)
    await kit.send(engine, old)
    new = kit.message(
        body=b"new", headers={"b": "2"}, timeout_s=7.0, retry=Retry(attempts=9), priority=-5, flow=Flow(unique=_unique(states=BOTH, replace=True))
    )
    [sent] = await engine.send([new])
    assert (sent.id, sent.admission) == (old.id, Admission.REPLACED)
    message = (await kit.take_one(engine)).message
    assert (message.id, message.body, message.headers, message.timeout_s, message.retry) == (old.id, b"new", {"b": "2"}, 7.0, Retry(attempts=9))
    assert (message.priority, message.flow) == (3, old.flow)
    view = await engine.get(old.id)
    assert [(attempt.outcome, attempt.note) for attempt in view.attempts] == [("replaced", f"by {new.id}")]


async def one_that_is_ready_keeps_its_place(engine: Full) -> None:
    first = await _debounce(engine, 0.0)
    other = await kit.send_one(engine)
    assert (await _debounce(engine, 0.0)).id == first.id
    assert await kit.finish(engine) == [first.id, other.id]


async def one_that_has_begun_is_left_alone(engine: Full) -> None:
    first = await _debounce(engine, 0.0, body=b"old")
    held = await kit.take_one(engine)
    second = await _debounce(engine, 0.0, body=b"new")
    assert second.new
    await kit.release(engine, held)
    assert [(each.message.id, each.message.body) for each in await kit.take(engine)] == [(first.id, b"old"), (second.id, b"new")]


async def a_delayed_one_is_put_off_until_the_new_one_would_be_due(engine: Full, time: Time) -> None:
    first = await _debounce(engine)
    for number in range(3):
        time.advance(6.0)
        assert (await kit.take(engine), (await _debounce(engine, body=str(number).encode())).id) == ([], first.id)
    time.advance(9.75)
    assert await kit.take(engine) == []
    time.advance(0.25)
    assert (await kit.take_one(engine)).message.body == b"2"


async def but_no_longer_than_it_says_after_its_own_send(engine: Full, time: Time) -> None:
    first = await _debounce(engine, most_s=25.0)
    for _ in range(3):
        time.advance(8.0)
        assert (await kit.take(engine), (await _debounce(engine, most_s=25.0)).id) == ([], first.id)
    time.advance(1.0)
    assert (await kit.take_one(engine)).message.id == first.id


async def a_newer_one_that_is_due_now_makes_it_ready(engine: Full) -> None:
    first = await _debounce(engine, 3600.0)
    other = await kit.send_one(engine)
    assert (await _debounce(engine, 0.0)).admission is Admission.REPLACED
    assert sorted(await kit.finish(engine)) == sorted([first.id, other.id])


async def an_instant_puts_off_like_a_delay(engine: Full, time: Time) -> None:
    first = await _debounce(engine)
    await _debounce(engine, 0.0, ready_at=await engine.now() + 30.0)
    time.advance(29.75)
    assert await kit.take(engine) == []
    time.advance(0.25)
    assert kit.ids(await kit.take(engine)) == [first.id]


async def within_one_batch_the_last_one_wins(engine: Full) -> None:
    unique = _unique(states=BOTH, replace=True)
    messages = [kit.shaped(unique=unique, body=str(number).encode()) for number in range(3)]
    answers = await engine.send(messages)
    assert [sent.admission for sent in answers] == [Admission.STORED, Admission.REPLACED, Admission.REPLACED]
    [delivery] = await kit.take(engine)
    assert (delivery.message.id, delivery.message.body) == (messages[0].id, b"2")


async def run_again_after_the_present_one_with_the_newest_arguments(engine: Full) -> None:
    """A group of the same key and a replace of what has not begun: one runs, one waits, and the one that waits has the newest arguments."""

    async def send(body: bytes) -> Sent:
        return await _send(engine, _unique(states=BOTH, replace=True), group="k", body=body)

    first = await send(b"1")
    held = await kit.take_one(engine)
    second = await send(b"2")
    third = await send(b"3")
    assert (second.new, third.id) == (True, second.id)
    assert await kit.take(engine) == []
    await kit.ok(engine, held)
    last = await kit.take_one(engine)
    assert (first.id, last.message.id, last.message.body) == (held.message.id, second.id, b"3")


async def whose_history_was_dropped_stands_for_nobody(engine: Full, time: Time) -> None:
    await _send(engine)
    await kit.ok(engine, await kit.take_one(engine))
    time.advance(10.0)
    await engine.retain(history_s=5.0)
    assert (await _send(engine, _unique(states=("done",)))).new


async def eight_senders_with_one_key_store_one_message(engine: Full) -> None:
    answers = await kit.in_threads(*[lambda: engine.send([kit.shaped(unique=_unique())])] * 8)
    assert sorted(sent.admission for [sent] in answers) == [Admission.STORED] + [Admission.DEDUPLICATED] * 7
    assert len({sent.id for [sent] in answers}) == 1
    assert await kit.ready(engine) == 1


async def of_sends_and_settles_at_once_one_message_waits_at_any_time(engine: Full) -> None:
    await _send(engine)

    async def work() -> None:
        for delivery in await kit.take(engine, limit=1):
            await engine.settle([Settlement(delivery.receipt, Ack())])

    for _ in range(5):
        await kit.in_threads(work, lambda: _send(engine), lambda: _send(engine), work)
        counts = await engine.counts(WORK)
        assert counts.ready + counts.leased <= 1


async def keys_are_remembered_over_a_restart(engine: Full, harness: Harness) -> None:
    first = await _send(engine)
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    assert (await _send(again)).id == first.id
    await again.close()
