"""At most so many deliveries hold a place of a limit at the same time; a place comes back with the end of its lease, however it ends, and never twice."""

from collections.abc import Awaitable, Callable

from beltline.core.flow import Claim
from beltline.core.message import Delivery
from beltline.core.outcome import Ack, Settled, Settlement
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import API, LEASE_S, NEXT, TWO, WORK

POWERS = ("Limits", "Control", "Browse")

ENDINGS: tuple[Callable[[Full, Delivery], Awaitable[None]], ...] = (
    kit.ok,
    kit.retry,
    kit.release,
    kit.bury,
    lambda engine, delivery: kit.retry(engine, delivery, 60.0),
    lambda engine, delivery: kit.release(engine, delivery, 60.0),
    lambda engine, delivery: kit.retry(engine, delivery, lost=True),
    lambda engine, delivery: kit.ok(engine, delivery, kit.cancelled("stopped")),
)


async def _behind(engine: Full, number: int = 10, *, concurrency: int = 1) -> list[Delivery]:
    """So many messages of a limit, and the deliveries that hold all of its places."""
    await kit.set_limit(engine, concurrency=concurrency)
    await kit.send(engine, *kit.limited(number))
    held = await kit.take(engine)
    assert len(held) == concurrency
    return held


async def no_more_than_so_many_run_at_once(engine: Full) -> None:
    held = await _behind(engine, concurrency=3)
    assert await kit.take(engine) == []
    await kit.ok(engine, held[0])
    await kit.ok(engine, held[1])
    assert len(await kit.take(engine)) == 2


async def every_end_of_a_delivery_gives_its_place_back(engine: Full) -> None:
    [held] = await _behind(engine, len(ENDINGS) + 3)
    for end in ENDINGS:
        await end(engine, held)
        [held] = await kit.take(engine)
        assert await kit.take(engine) == []


async def a_crash_gives_its_place_back_when_its_lease_is_over_and_not_sooner(engine: Full, time: Time) -> None:
    await _behind(engine, 3)
    time.advance(LEASE_S - 0.25)
    assert await kit.take(engine) == []
    time.advance(0.25)
    assert len(await kit.take(engine)) == 1


async def a_late_renew_takes_the_place_again_if_nobody_has_it(engine: Full, time: Time) -> None:
    [held] = await _behind(engine, 3)
    time.advance(LEASE_S + 1.0)
    assert await engine.renew([held.receipt], lease_s=LEASE_S) == [Settled.DONE]
    assert await kit.take(engine) == []
    await kit.ok(engine, held)
    assert len(await kit.take(engine)) == 1


async def a_late_renew_is_refused_when_another_has_the_place(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(1), *kit.limited(1, NEXT))
    slow = await kit.take_one(engine)
    time.advance(LEASE_S)
    other = await kit.take_one(engine, NEXT)
    assert await engine.renew([other.receipt, slow.receipt], lease_s=LEASE_S) == [Settled.DONE, Settled.LEASE_LOST]
    await kit.ok(engine, slow)  # it has ended all the same, and nobody has begun it again
    assert await kit.take(engine) == []
    await kit.ok(engine, other)


async def of_two_late_renews_the_first_takes_the_only_place(engine: Full, time: Time) -> None:
    held = await _behind(engine, 2, concurrency=2)
    await kit.set_limit(engine, concurrency=1)
    time.advance(LEASE_S)
    receipts = [delivery.receipt for delivery in held]
    assert await engine.renew(receipts, lease_s=LEASE_S) == [Settled.DONE, Settled.LEASE_LOST]
    time.advance(LEASE_S / 2)
    assert await engine.renew(receipts[:1], lease_s=LEASE_S) == [Settled.DONE]


async def a_late_renew_needs_a_place_of_its_queue_too(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, "queue", concurrency=1)
    await engine.declare([kit.specs(WORK, limits=("queue",)), kit.specs(NEXT, limits=("queue",))])
    await kit.send(engine, *kit.messages(1), *kit.messages(1, NEXT))
    slow = await kit.take_one(engine)
    time.advance(LEASE_S)
    other = await kit.take_one(engine, NEXT)
    assert await engine.renew([slow.receipt], lease_s=LEASE_S) == [Settled.LEASE_LOST]
    await kit.ok(engine, other)
    assert await engine.renew([slow.receipt], lease_s=LEASE_S) == [Settled.DONE]


async def a_place_whose_lease_is_over_is_free_for_others(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(1), *kit.limited(1, NEXT))
    lost = await kit.take_one(engine)
    time.advance(LEASE_S)
    other = await kit.take_one(engine, NEXT)
    assert await kit.take(engine) == []
    await kit.ok(engine, other)
    again = await kit.take_one(engine)
    assert (again.message.id, again.lost) == (lost.message.id, 1)


async def a_late_settle_gives_no_second_place_back(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(1), *kit.limited(5, NEXT))
    late = await kit.take_one(engine)
    time.advance(LEASE_S)
    await kit.take_one(engine, NEXT)
    await kit.ok(engine, late)
    assert await kit.take(engine, NEXT) == []


async def a_stale_receipt_gives_no_place_back(engine: Full, time: Time) -> None:
    [stale] = await _behind(engine, 3)
    time.advance(LEASE_S)
    assert kit.ids(await kit.take(engine)) == [stale.message.id]
    assert await kit.settle(engine, stale) is Settled.LEASE_LOST
    assert await kit.take(engine) == []


async def a_receipt_settled_twice_gives_one_place_back(engine: Full) -> None:
    held = await _behind(engine, concurrency=2)
    assert await engine.settle([Settlement(held[0].receipt, Ack())] * 2) == [Settled.DONE, Settled.LEASE_LOST]
    assert len(await kit.take(engine)) == 1


async def a_renewed_lease_keeps_its_place(engine: Full, time: Time) -> None:
    [held] = await _behind(engine, 3)
    for _ in range(3):
        time.advance(LEASE_S - 1.0)
        await engine.renew([held.receipt], lease_s=LEASE_S)
        assert await kit.take(engine) == []


async def a_cancelled_delivery_gives_its_place_back_when_it_ends(engine: Full) -> None:
    [held] = await _behind(engine, 3)
    await engine.cancel([held.message.id])
    assert await kit.take(engine) == []
    await kit.release(engine, held)
    assert len(await kit.take(engine)) == 1


async def keys_have_places_of_their_own(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=2)
    for key in ("x", "y", ""):
        await kit.send(engine, *kit.limited(5, key=key))
    held = await kit.take(engine)
    assert sorted(claim.key for each in held if each.message.flow for claim in each.message.flow.claims) == ["", "", "x", "x", "y", "y"]


async def a_delivery_holds_a_place_of_each_of_its_limits(engine: Full) -> None:
    for name, concurrency in (("a", 5), ("b", 2)):
        await kit.set_limit(engine, name, concurrency=concurrency)
    await kit.send(engine, *(kit.shaped(claims=[Claim("a"), Claim("b", "k")]) for _ in range(5)))
    held = await kit.take(engine)
    assert len(held) == 2
    await kit.send(engine, *kit.limited(9, limit="a", tenant="t"))
    assert len(await kit.take(engine)) == 3
    await kit.ok(engine, held[0])
    assert len(await kit.take(engine)) == 1


async def leases_of_queues_and_claims_share_the_places_of_a_limit(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, limits=(API,)), kit.specs(NEXT, limits=(API,))])
    await kit.set_limit(engine, concurrency=4)
    await kit.send(engine, *kit.messages(2), *kit.messages(5, NEXT), *kit.limited(5, kit.OTHER))
    held = await kit.take(engine)
    assert len(await kit.take(engine, kit.OTHER, limit=1)) == 1
    assert len(await kit.take(engine, NEXT)) == 1
    assert await kit.take(engine, kit.OTHER) == []
    await kit.ok(engine, held[0])
    assert len(await kit.take(engine, kit.OTHER)) == 1


async def a_claim_on_a_limit_of_its_own_queue_is_the_same_place(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, limits=(API,))])
    await kit.set_limit(engine, concurrency=2)
    await kit.send(engine, *kit.limited(5))
    held = await kit.take(engine)
    [view] = await engine.limits()
    assert (len(held), view.running) == (2, 2)
    await kit.ok(engine, held[0])
    assert len(await kit.take(engine)) == 1


async def what_started_before_a_limit_was_told_holds_its_place(engine: Full) -> None:
    await kit.send(engine, *kit.limited(5))
    held = await kit.take(engine, limit=3)
    await kit.set_limit(engine, concurrency=3)
    assert await kit.take(engine) == []
    await kit.ok(engine, held[0])
    assert len(await kit.take(engine)) == 1


async def after_a_limit_was_lowered_nothing_starts_until_fewer_run(engine: Full) -> None:
    held = await _behind(engine, concurrency=4)
    await kit.set_limit(engine, concurrency=2)
    for delivery in held[:2]:
        await kit.ok(engine, delivery)
        assert await kit.take(engine) == []
    await kit.ok(engine, held[2])
    assert len(await kit.take(engine)) == 1


async def a_limit_of_none_lets_nothing_start_until_it_is_raised(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, concurrency=0)
    await kit.send(engine, *kit.limited(2))
    for _ in range(3):
        assert await kit.take(engine) == []
        time.advance(3600.0)
    await kit.set_limit(engine, concurrency=1)
    assert len(await kit.take(engine)) == 1


async def a_rate_and_places_hold_together(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, rate=1.0, burst=3.0, concurrency=2)
    await kit.send(engine, *kit.limited(9))
    held = await kit.take(engine)
    assert len(held) == 2
    await kit.ok(engine, held[0])
    assert len(await kit.take(engine)) == 1
    await kit.ok(engine, held[1])
    assert await kit.take(engine) == []
    time.advance(1.0)
    assert len(await kit.take(engine)) == 1


async def a_place_given_back_opens_one_lane_of_each_queue_that_which_has_waited_longest(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(1, kit.OTHER))
    held = await kit.take_one(engine, kit.OTHER)
    for tenant in ("c", "b", "a"):
        await kit.send(engine, *kit.limited(2, tenant=tenant), *kit.limited(2, NEXT, tenant=tenant))
        assert await engine.receive([WORK, NEXT], limit=9, lease_s=LEASE_S) == []
        time.advance(1.0)
    await kit.ok(engine, held)
    assert [(await engine.counts(queue)).held for queue in (WORK, NEXT)] == [4, 4]
    assert kit.tenants(await kit.take(engine)) == "c"
    assert [(await engine.counts(queue)).held for queue in (WORK, NEXT)] == [5, 4]


async def of_lanes_that_have_waited_equally_long_the_first_by_name_is_opened(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(1, NEXT))
    held = await kit.take_one(engine, NEXT)
    await kit.send(engine, *(message for tenant in "cab" for message in kit.limited(1, tenant=tenant)))
    assert await kit.take(engine) == []
    for tenant in "abc":
        await kit.ok(engine, held)
        assert (await engine.counts(WORK)).held == "cba".index(tenant)
        held = await kit.take_one(engine)
        assert kit.tenants([held]) == tenant


async def nobody_behind_one_limit_waits_for_ever(engine: Full, time: Time) -> None:
    """One place, many lanes, and new messages all the time: those that wait longest are let in first."""
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(1, tenant="z"))
    await kit.send(engine, *(message for tenant in "abc" for message in kit.limited(3, tenant=tenant)))
    for deliveries in range(1, 40):
        held = await kit.take_one(engine)
        assert await kit.take(engine) == []
        time.advance(0.01)
        if kit.tenants([held]) == "z":
            assert deliveries <= 8
            return
        await kit.send(engine, *(message for tenant in "abc" for message in kit.limited(1, tenant=tenant)))
        await kit.ok(engine, held)
    raise AssertionError("one tenant was left behind")


async def a_head_behind_a_limit_holds_its_group_and_nobody_else(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=0)
    head, second = await kit.send(engine, kit.shaped(claims=[Claim(API)], group="g"), kit.message(group="g"))
    free = await kit.send_one(engine, group="h")
    assert kit.ids(await kit.take(engine)) == [free.id]
    await kit.set_limit(engine, concurrency=1)
    held = await kit.take_one(engine)
    assert held.message.id == head.id
    await kit.ok(engine, held)
    assert kit.ids(await kit.take(engine)) == [second.id]


async def purged_messages_leave_no_place_behind(engine: Full) -> None:
    [held] = await _behind(engine)
    assert await engine.purge(WORK) == 9
    await kit.ok(engine, held)
    await kit.send(engine, *kit.limited(3))
    assert len(await kit.take(engine)) == 1


async def a_purge_of_messages_in_every_state_leaves_lanes_and_places_as_if_they_had_never_been(engine: Full, time: Time) -> None:
    await kit.set_limit(engine, concurrency=3)
    await kit.send(engine, *kit.limited(3, key="x"))
    dead, _, live = await kit.take(engine)
    await kit.bury(engine, dead)
    time.advance(LEASE_S / 2)
    await engine.renew([live.receipt], lease_s=LEASE_S)
    time.advance(LEASE_S / 2)  # of three leases one is dead, one is over, one lives
    await kit.set_limit(engine, concurrency=1)
    await kit.send(engine, *kit.limited(4, key="x"))
    assert await kit.take(engine) == []  # their lane is closed
    await kit.send(engine, *kit.limited(2, key="y"), *kit.limited(2, key="x", group="g"), *kit.limited(1, key="x", delay_s=60.0))
    await kit.send(engine, kit.shaped(tenant="t"), kit.message())
    assert await engine.purge(WORK) == 13
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.delayed, counts.dead, counts.leased, counts.held) == (0, 0, 0, 1, 0)
    [view] = await engine.limits()
    assert (view.running, view.waiting) == (1, 0)
    await kit.assert_counts_agree(engine)
    await kit.send(engine, *kit.limited(2, key="x"), *kit.limited(2, key="y"), *kit.limited(1, key="x", group="g"))
    assert len(await kit.take(engine)) == 1  # of y
    await kit.ok(engine, live)
    assert len(await kit.take(engine)) == 1
    assert await kit.take(engine) == []


async def a_dead_message_starts_again_after_its_redrive_only_with_a_place(engine: Full) -> None:
    [held] = await _behind(engine, 2)
    await kit.bury(engine, held)
    [other] = await kit.take(engine)
    await engine.redrive(MessageFilter(ids=(held.message.id,)), limit=1)
    assert await kit.take(engine) == []
    await kit.ok(engine, other)
    assert kit.ids(await kit.take(engine)) == [held.message.id]


async def never_more_run_than_the_limit_whatever_happens(engine: Full, time: Time) -> None:
    """I15: at every hand-out the leases that are not over, the new one among them, are at most the limit. No lease is renewed late here."""
    dice, places = kit.dice(47), {"x": 2, "y": 2, "": 2}
    await kit.set_limit(engine, concurrency=2)
    await engine.declare([kit.specs(NEXT, limits=(API,))])
    running: dict[str, Delivery] = {}
    handed_out = 0
    for _ in range(200):
        await kit.send(
            engine, *kit.limited(1, key=dice.choice(("x", "y", "")), tenant=dice.choice(("", "t"))), *kit.messages(dice.randint(0, 1), NEXT)
        )
        for delivery in await engine.receive(
            dice.choice(([WORK, NEXT], [NEXT, WORK])), limit=dice.randint(1, 4), lease_s=dice.choice((2.0, 5.0)), worker=TWO
        ):
            running[delivery.message.id] = delivery
            handed_out += 1
        now = await engine.now()
        used = [each.message.flow.claims[0].key if each.message.flow else "" for each in running.values() if each.lease_until > now]
        assert {key: used.count(key) for key in used if used.count(key) > places[key]} == {}
        for delivery in dice.sample(list(running.values()), k=min(len(running), dice.randint(0, 3))):
            await kit.settle(engine, delivery, dice.choice((Ack(), kit.retried(), kit.retried(delay_s=1.0))))
            del running[delivery.message.id]
        time.advance(dice.choice((0.0, 0.0, 0.5, 1.0)))
    assert handed_out > 150


async def of_many_receivers_at_once_together_no_more_run(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=5)
    await kit.send(engine, *kit.limited(30, key="x"))
    batches = await kit.in_threads(*[lambda: kit.take(engine, limit=3)] * 8)
    held = [delivery for batch in batches for delivery in batch]
    assert len(held) == 5
    await kit.in_threads(*(lambda each=each: kit.ok(engine, each) for each in held))
    batches = await kit.in_threads(*[lambda: kit.take(engine, limit=3)] * 8)
    assert sum(len(batch) for batch in batches) == 5


async def places_are_held_over_a_restart(engine: Full, harness: Harness, time: Time) -> None:
    [held] = await _behind(engine, 3)
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    assert await kit.take(again) == []
    await kit.ok(again, held)
    assert len(await kit.take(again)) == 1
    time.advance(LEASE_S)
    assert len(await kit.take(again)) == 1
    await again.close()


async def a_place_given_back_wakes_a_waiting_receive(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    try:
        await engine.declare([kit.specs(WORK), kit.specs(NEXT, limits=(API,))])
        await kit.set_limit(engine, concurrency=1)
        for queue, messages in ((WORK, kit.limited(2)), (NEXT, kit.messages(2, NEXT))):
            await kit.send(engine, *messages)
            held = await kit.take_one(engine, queue)
            assert await kit.take(engine, queue) == []
            [got, _] = await kit.together(
                lambda queue=queue: kit.wait_for_one(engine, queue),  # type: ignore[misc]
                lambda held=held: kit.in_threads(lambda: kit.ok(engine, held)),  # type: ignore[misc]
            )
            await kit.ok(engine, got[0])
    finally:
        await engine.close()


async def the_end_of_a_lease_wakes_a_receive_that_waits_for_its_place(harness: Harness) -> None:
    engine: Full = harness.engine()  # type: ignore[assignment]
    await engine.open()
    try:
        await engine.declare([kit.specs(WORK), kit.specs(NEXT)])
        await kit.set_limit(engine, concurrency=1)
        await kit.send(engine, *kit.limited(1, NEXT), *kit.limited(1))
        await kit.take_one(engine, NEXT, lease_s=0.2)
        assert len(await kit.wait_for_one(engine)) == 1
    finally:
        await engine.close()
