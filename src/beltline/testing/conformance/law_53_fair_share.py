"""Tenants of a queue are served in turns, by their weights, however much each has sent: one that takes more than its part yields to the others, and none starves."""

from typing import Any

from beltline.core.flow import Claim
from beltline.core.outcome import Ack, Settlement
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, WORK

POWERS = ("Limits", "Control")
WINDOW_S = 150.0  # of worker time


async def _send(engine: Full, tenant: str, number: int, **options: Any) -> None:
    await kit.send(engine, *(kit.shaped(tenant=tenant, **options) for _ in range(number)))


async def _pass(engine: Full, number: int, *, ran_s: float = 0.0) -> str:
    """Receive and ack one by one; whose they were."""
    seen = ""
    for _ in range(number):
        deliveries = await kit.take(engine, limit=1)
        seen += kit.tenants(deliveries)
        await engine.settle([Settlement(delivery.receipt, Ack(ran_s=ran_s)) for delivery in deliveries])
    return seen


async def tenants_take_turns(engine: Full) -> None:
    await _send(engine, "t", 6)
    await _send(engine, "u", 3)
    assert await _pass(engine, 9) == "tutututtt"


async def turns_are_the_same_in_one_batch_and_in_many(engine: Full) -> None:
    for tenant in "tuv":
        await _send(engine, tenant, 4)
    assert kit.tenants(await kit.take(engine, limit=7)) + await _pass(engine, 5) == "tuvtuvtuvtuv"


async def a_message_is_next_however_many_another_tenant_has_sent(engine: Full) -> None:
    for _ in range(10):
        await _send(engine, "big", 1000)
    for _ in range(3):
        await _send(engine, "small", 1)
        assert "small" in await _pass(engine, 2)
        await _pass(engine, 10)


async def small_tenants_are_through_when_a_big_one_has_had_as_many_turns_as_each(engine: Full) -> None:
    await _send(engine, "z", 1000)
    for tenant in "abcdefghij":
        await _send(engine, tenant, 5)
    seen = await _pass(engine, 55)
    assert {tenant: seen.count(tenant) for tenant in "abcdefghijz"} == dict.fromkeys("abcdefghijz", 5)


async def a_weight_is_a_part_of_the_turns(engine: Full) -> None:
    await _send(engine, "t", 40, weight=3.0)
    await _send(engine, "u", 40, weight=1.0)
    await _send(engine, "v", 40, weight=0.5)
    seen = await _pass(engine, 45)
    assert (seen.count("t"), seen.count("u"), seen.count("v")) == (30, 10, 5)


async def the_weight_of_a_tenant_is_what_its_last_message_says(engine: Full) -> None:
    await _send(engine, "t", 20, weight=100.0)
    await _send(engine, "t", 1, weight=1.0)
    await _send(engine, "u", 20)
    assert await _pass(engine, 6) == "tututu"


async def nobody_saves_up_turns_by_being_away(engine: Full) -> None:
    await _send(engine, "u", 30)
    await _pass(engine, 20)
    await _send(engine, "t", 20)
    assert await _pass(engine, 6) == "ttutut"


async def nobody_saves_up_turns_with_messages_that_are_not_ready(engine: Full, time: Time) -> None:
    await _send(engine, "t", 10, delay_s=60.0)
    await _send(engine, "u", 30)
    await _pass(engine, 20)
    time.advance(60.0)
    assert await _pass(engine, 6) == "ttutut"


async def whoever_was_given_much_does_not_start_anew_by_a_short_absence(engine: Full) -> None:
    await _send(engine, "t", 1, weight=0.1)
    await _send(engine, "u", 30)
    assert await _pass(engine, 2) == "tu"
    await _send(engine, "t", 5, weight=0.1)
    assert await _pass(engine, 12) == "u" * 9 + "tuu"


async def in_a_tenant_priority_and_then_the_order_of_sending_decide(engine: Full) -> None:
    sent = await kit.send(engine, *(kit.shaped(tenant="t", priority=priority) for priority in (0, 1, 0, 1)))
    assert await kit.finish(engine) == [sent[index].id for index in (1, 3, 0, 2)]


async def in_a_tenant_waiting_overtakes_priority(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=60.0)])
    [old] = await kit.send(engine, kit.shaped(tenant="t"))
    time.advance(61.0)
    [urgent] = await kit.send(engine, kit.shaped(tenant="t", priority=1))
    assert await kit.finish(engine) == [old.id, urgent.id]


async def between_tenants_a_point_of_priority_is_worth_as_many_turns_as_ageing_has_seconds(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=5.0)])
    await _send(engine, "t", 10)
    await _send(engine, "u", 10, priority=1)
    assert await _pass(engine, 9) == "uuuuututu"


async def with_strict_priorities_the_higher_one_goes_first_whoever_owns_it(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=kit.ENDLESS)])
    await _send(engine, "t", 5)
    await _send(engine, "u", 5, priority=1)
    assert await _pass(engine, 10) == "uuuuuttttt"


async def equal_turns_go_by_name_in_utf_8(engine: Full) -> None:
    names = ["a", "a\u0301", "a-", "ab", "z", "\u00e9", "\u03a9", "\uff5a", "\U0001d56b"]
    for name in reversed(names):
        await _send(engine, name, 1)
    assert [delivery.message.flow.tenant for delivery in await kit.take(engine) if delivery.message.flow] == sorted(names, key=str.encode)


async def messages_of_nobody_are_one_tenant(engine: Full) -> None:
    await kit.send(engine, *kit.messages(4))
    await _send(engine, "t", 2)
    assert kit.tenants(await kit.take(engine)) == "-t-t--"


async def messages_of_nobody_keep_their_order_also_beside_those_with_claims(engine: Full) -> None:
    sent = []
    for number in range(6):
        made = kit.message() if number % 2 else kit.shaped(claims=[Claim("free")])
        sent += await kit.send(engine, made)
    assert kit.ids(await kit.take(engine)) == [message.id for message in sent]


async def a_queue_without_tenants_does_not_change_because_another_has_some(engine: Full) -> None:
    plain = await kit.send(engine, *kit.messages(3, NEXT), kit.message(NEXT, priority=1))
    await _send(engine, "t", 3)
    assert await kit.finish(engine, NEXT) == [plain[index].id for index in (3, 0, 1, 2)]


async def a_lease_that_is_over_and_handed_out_again_costs_no_turn(engine: Full, time: Time) -> None:
    await _send(engine, "t", 3)
    await _send(engine, "u", 3)
    await kit.take_one(engine)
    time.advance(LEASE_S)
    assert kit.tenants(await kit.take(engine, limit=3)) == "tut"


async def a_retried_message_costs_a_turn_again(engine: Full) -> None:
    await _send(engine, "t", 1)
    await _send(engine, "u", 3)
    await kit.retry(engine, await kit.take_one(engine))
    assert await _pass(engine, 4) == "utuu"


async def a_tenant_with_thirty_leases_and_a_tenth_of_all_yields_to_the_others(engine: Full) -> None:
    await _send(engine, "t", 60)
    held = await kit.take(engine, limit=30)
    await _send(engine, "u", 4)
    assert kit.tenants(await kit.take(engine, limit=6)) == "uuuutt"
    assert len(held) == 30


async def a_tenant_with_fewer_leases_does_not_yield(engine: Full) -> None:
    await _send(engine, "t", 60)
    await kit.take(engine, limit=27)
    await _send(engine, "u", 4)
    assert kit.tenants(await kit.take(engine, limit=4)) == "utut"


async def a_tenth_of_all_leases_is_no_more_than_its_part(engine: Full) -> None:
    names = [f"n{number:02}" for number in range(10)]
    for name in names:
        await _send(engine, name, 40)
    await kit.take(engine, limit=300)
    await _send(engine, "u", 3)
    assert "u" in kit.tenants(await kit.take(engine, limit=2))
    assert kit.tenants(await kit.take(engine, limit=1)) != "u"


async def leases_that_are_over_count_until_they_are_handed_out_or_settled(engine: Full, time: Time) -> None:
    await _send(engine, "t", 60)
    held = await kit.take(engine, limit=30)
    time.advance(LEASE_S)
    await _send(engine, "u", 2)
    deliveries = await kit.take(engine, limit=33)
    assert kit.tenants(deliveries[30:]) == "uut"
    assert {each.message.id for each in deliveries[:30]} == {each.message.id for each in held}


async def whoever_has_ended_its_leases_is_quiet_again(engine: Full) -> None:
    await _send(engine, "t", 60)
    held = await kit.take(engine, limit=30)
    await _send(engine, "u", 6)
    assert kit.tenants(await kit.take(engine, limit=2)) == "uu"
    await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in held])
    assert "t" in kit.tenants(await kit.take(engine, limit=3))


async def a_tenant_with_most_of_the_recent_worker_time_yields_to_the_others(engine: Full) -> None:
    await _send(engine, "t", 10)
    assert await _pass(engine, 1, ran_s=100.0) == "t"
    await _send(engine, "u", 3)
    assert await _pass(engine, 5) == "uuutt"


async def worker_time_counts_however_a_delivery_ends(engine: Full) -> None:
    await _send(engine, "t", 3)
    await kit.ok(engine, await kit.take_one(engine), kit.retried(ran_s=100.0))
    await _send(engine, "u", 3)
    assert await _pass(engine, 4) == "uuut"


async def worker_time_of_the_window_before_counts(engine: Full, time: Time) -> None:
    await _send(engine, "t", 10)
    await _pass(engine, 1, ran_s=100.0)
    time.advance(WINDOW_S)
    await _send(engine, "u", 3)
    assert await _pass(engine, 4) == "uuut"


async def older_worker_time_is_forgotten(engine: Full, time: Time) -> None:
    await _send(engine, "t", 10)
    await _pass(engine, 1, ran_s=100.0)
    time.advance(2 * WINDOW_S)
    await _send(engine, "u", 3)
    assert await _pass(engine, 4) == "utut"


async def of_two_that_take_more_than_their_part_turns_decide(engine: Full) -> None:
    for tenant in "tu":
        await _send(engine, tenant, 10)
    await _pass(engine, 2, ran_s=100.0)
    await _send(engine, "v", 2)
    assert await _pass(engine, 6) == "vvtutu"


async def a_low_priority_starves_in_no_tenant(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, ageing_s=2.0)])
    await _send(engine, "t", 1, priority=-5)
    for deliveries in range(1, 60):
        await _send(engine, "u", 1, priority=5)
        if await _pass(engine, 1) == "t":
            assert deliveries <= 22
            return
    raise AssertionError("it has waited for more turns than its priority is worth")


async def a_tenants_messages_are_all_handed_out_in_a_random_crowd(engine: Full, time: Time) -> None:
    dice = kit.dice(53)
    sent = 0
    for _ in range(60):
        for _ in range(dice.randint(0, 4)):
            await _send(engine, dice.choice("aabbbcd"), 1, priority=dice.randint(-2, 2), weight=dice.choice((0.5, 1.0, 4.0)))
            sent += 1
        await _pass(engine, dice.randint(0, 3), ran_s=dice.choice((0.0, 20.0)))
        time.advance(dice.choice((0.0, 1.0, 100.0)))
    await kit.finish(engine)
    counts = await engine.counts(WORK)
    assert (counts.done, counts.ready) == (sent, 0)


async def a_group_that_spans_tenants_keeps_its_order(engine: Full) -> None:
    sent = await kit.send(engine, *(kit.shaped(tenant=tenant, group="g") for tenant in "ttuut"))
    seen = []
    for _ in sent:
        delivery = await kit.take_one(engine)
        assert await kit.take(engine) == []
        seen.append(delivery.message.id)
        await kit.ok(engine, delivery)
    assert seen == [message.id for message in sent]


async def a_head_that_is_redriven_stands_before_its_mates_of_other_tenants(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, on_dead="skip")])
    first, second = await kit.send(engine, kit.shaped(tenant="t", group="g"), kit.shaped(tenant="u", group="g"))
    await kit.bury(engine, await kit.take_one(engine))
    await engine.redrive(MessageFilter(ids=(first.id,)), limit=1)
    assert await kit.finish(engine) == [first.id, second.id]


async def a_message_redriven_to_another_queue_takes_its_turns_there(engine: Full) -> None:
    [moved] = await kit.send(engine, kit.shaped(tenant="t"))
    await kit.bury(engine, await kit.take_one(engine))
    await kit.send(engine, *(kit.shaped(NEXT, tenant="s") for _ in range(3)))
    await engine.redrive(MessageFilter(ids=(moved.id,)), limit=1, queue=NEXT)
    assert kit.tenants(await kit.take(engine, NEXT)) == "stss"


async def turns_are_there_after_a_restart(engine: Full, harness: Harness) -> None:
    await _send(engine, "t", 10, weight=0.2)
    await _send(engine, "u", 10)
    assert await _pass(engine, 2) == "tu"
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    assert await _pass(again, 6) == "uuuutu"
    await again.close()
