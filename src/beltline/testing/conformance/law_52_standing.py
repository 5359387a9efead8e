"""Why a message does not run can be asked at any time: everything that the store holds against handing it out is told, and asking changes nothing."""

import pytest

from beltline.core.errors import NotFound
from beltline.core.flow import Claim, KillSwitch, keeper
from beltline.core.names import MessageId, WorkerId
from beltline.core.outcome import Settled, Settlement
from beltline.core.queues import Feed
from beltline.core.views import Standing, WorkerView
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import API, LINE, NEXT, WORK

POWERS = ("Explain", "Limits", "Browse", "Control", "Fleet", "Runs")


async def _standing(engine: Full, id: str, **expected: object) -> None:
    """What is told of it: `expected`, and nothing else."""
    view = await engine.get(MessageId(id))
    told = await engine.standing(MessageId(id))
    assert told.message.message == view.message
    assert (told.message.state, told.message.due_at, told.message.why) == (view.state, view.due_at, view.why)
    names = [name for name in Standing.__struct_fields__ if name != "message"]
    assert {name: getattr(told, name) for name in names} == {name: getattr(Standing(message=view), name) for name in names} | expected


async def of_a_message_that_may_run_nothing_is_told(engine: Full) -> None:
    for message in await kit.send(engine, kit.message(), kit.shaped(NEXT, tenant="t")):
        await _standing(engine, message.id, tenant="t" if message.flow else "")


async def a_message_that_was_never_sent_is_not_found(engine: Full) -> None:
    with pytest.raises(NotFound):
        await engine.standing(kit.NEVER_SENT)


async def of_one_that_runs_or_has_ended_only_its_state_is_told(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=1)
    sent = await kit.send(engine, *kit.limited(2))
    await kit.bury(engine, await kit.take_one(engine))
    held = await kit.take_one(engine)
    await engine.pause(WORK)
    for message in sent:
        await _standing(engine, message.id)
    await kit.ok(engine, held)
    await _standing(engine, held.message.id)


async def those_before_it_in_its_own_lane_are_counted(engine: Full) -> None:
    plain = await kit.send(engine, kit.message(), kit.message(priority=1), kit.message())
    lane = await kit.send(engine, *(kit.shaped(tenant="t") for _ in range(3)))
    await kit.send(engine, kit.shaped(tenant="t", priority=1), kit.shaped(tenant="u"), kit.message(delay_s=60.0))
    for index, ahead in enumerate((1, 0, 2)):
        await _standing(engine, plain[index].id, ahead=ahead)
        await _standing(engine, lane[index].id, ahead=index, tenant="t")


async def they_are_counted_up_to_a_thousand(engine: Full) -> None:
    await kit.send(engine, *(kit.shaped(tenant="t") for _ in range(1005)))
    [last] = await kit.send(engine, kit.shaped(tenant="t"))
    await _standing(engine, last.id, ahead=1000, tenant="t")


async def a_pause_and_a_snooze_are_told(engine: Full) -> None:
    message = await kit.send_one(engine)
    await engine.pause(WORK)
    await _standing(engine, message.id, paused=True)
    until = await engine.snooze(WORK, seconds=60.0)
    await _standing(engine, message.id, paused=True, snoozed_until=until)
    await engine.resume(WORK)
    await _standing(engine, message.id)


async def a_delayed_message_tells_its_time_and_what_else_stands_against_it(engine: Full) -> None:
    message = await kit.send_one(engine, delay_s=60.0)
    await engine.pause(WORK)
    await _standing(engine, message.id, paused=True)
    assert (await engine.standing(message.id)).message.due_at == await engine.now() + 60.0


async def a_kill_switch_that_has_tripped_or_tries_is_told(engine: Full, time: Time) -> None:
    await engine.declare([kit.specs(WORK, kill_switch=KillSwitch(least=1, pause_s=30.0, tries=2))])
    _, message = await kit.send(engine, *kit.messages(2))
    await kit.retry(engine, await kit.take_one(engine))
    await _standing(engine, message.id, tripped_until=await engine.now() + 30.0, trying=True, ahead=1)
    time.advance(30.0)
    await _standing(engine, message.id, trying=True, ahead=1)


async def the_message_its_group_waits_for_is_told_with_its_state(engine: Full, time: Time) -> None:
    first, second = await kit.send(engine, *kit.messages(2, group="g"))
    await _standing(engine, first.id)
    await _standing(engine, second.id, head=first.id, head_state="ready", ahead=1)
    held = await kit.take_one(engine)
    await _standing(engine, second.id, head=first.id, head_state="leased")
    await kit.retry(engine, held, 60.0)
    await _standing(engine, second.id, head=first.id, head_state="delayed")
    time.advance(60.0)
    await kit.bury(engine, await kit.take_one(engine))
    await _standing(engine, second.id, head=first.id, head_state="dead")


async def the_bucket_that_refuses_it_is_told_with_its_holders(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=2)
    sent = await kit.send(engine, *kit.limited(3, key="x"))
    held = await kit.take(engine)
    await _standing(engine, sent[2].id, limit=API, key="x", opens_at=held[0].lease_until, holders=tuple(sorted(message.id for message in sent[:2])))
    await kit.ok(engine, held[0])
    await _standing(engine, sent[2].id)


async def ten_holders_are_told_at_most(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=12)
    sent = await kit.send(engine, *kit.limited(13))
    held = await kit.take(engine)
    told = await engine.standing(sent[12].id)
    assert told.holders == tuple(sorted(kit.ids(held))[:10])


async def a_rate_tells_when_it_opens_and_has_no_holders(engine: Full) -> None:
    await kit.set_limit(engine, rate=0.25, burst=1.0)
    sent = await kit.send(engine, *kit.limited(2, key="x"))
    await kit.take(engine)
    await _standing(engine, sent[1].id, limit=API, key="x", opens_at=await engine.now() + 4.0)


async def the_limit_of_its_queue_is_told(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, limits=("wide", API))])
    await kit.set_limit(engine, "wide", concurrency=50)
    await kit.set_limit(engine, concurrency=1)
    sent = await kit.send(engine, *kit.messages(2))
    held = await kit.take_one(engine)
    assert held.message.id == sent[0].id
    await _standing(engine, sent[1].id, queue_limit=API, queue_opens_at=held.lease_until, holders=(sent[0].id,))


async def a_limit_of_none_tells_no_time(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=0)
    [message] = await kit.send(engine, *kit.limited(1))
    await _standing(engine, message.id, limit=API, opens_at=kit.ENDLESS)


async def full_queues_that_its_own_one_feeds_are_told(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, feeds=(Feed(NEXT),)), kit.specs(NEXT, high_water=2, low_water=1)])
    await kit.send(engine, *kit.messages(3, NEXT))
    message = await kit.send_one(engine)
    assert await kit.take(engine) == []
    await _standing(engine, message.id, feeds=(str(NEXT),))


async def the_keeper_of_its_key_is_told(engine: Full) -> None:
    for name in ("w1", "w2"):
        await engine.beat(WorkerView(id=name, host="h", pid=1, started_at=0.0, age_s=0.0, state="up", queues={"work": 1}))
    await kit.take(engine)
    [message] = await kit.send(engine, kit.shaped(sticky="model", tenant="t"))
    assert await kit.take(engine, worker=WorkerId("w3")) == []
    await _standing(engine, message.id, keeper=keeper("model", ["w1", "w2"]), tenant="t")


async def a_tenant_that_takes_more_than_its_part_is_told(engine: Full) -> None:
    await kit.send(engine, *(kit.shaped(tenant="t") for _ in range(33)))
    await kit.take(engine, limit=30)
    [other] = await kit.send(engine, kit.shaped(tenant="u"))
    [mine] = await kit.send(engine, kit.shaped(tenant="t"))
    assert kit.tenants(await kit.take(engine, limit=2)) == "ut"
    told = await engine.standing(mine.id)
    assert (told.tenant, told.noisy, told.ahead) == ("t", True, 2)
    assert other.id != mine.id


async def asking_changes_nothing(engine: Full) -> None:
    await kit.set_limit(engine, concurrency=1)
    sent = await kit.send(engine, *kit.limited(3, tenant="t"), *kit.messages(2), kit.shaped(tenant="u", delay_s=60.0))
    deliveries = await kit.take(engine, limit=2)
    before = [await engine.counts(WORK), await engine.limits(), await engine.buckets(API), await kit.everything(engine)]
    for message in sent:
        await engine.standing(message.id)
    assert [await engine.counts(WORK), await engine.limits(), await engine.buckets(API), await kit.everything(engine)] == before
    assert await engine.settle([Settlement(delivery.receipt, kit.cancelled()) for delivery in deliveries]) == [Settled.DONE] * 2
    assert kit.tenants(await kit.take(engine)) == "-t"


async def messages_of_runs_are_told_like_others(engine: Full) -> None:
    [message] = await kit.send(engine, kit.placed(flow=kit.shaped(claims=[Claim(API)]).flow))
    await kit.set_limit(engine, concurrency=0)
    await _standing(engine, message.id, limit=API, opens_at=kit.ENDLESS)
    assert (await engine.run_counts(LINE)).running == 1
