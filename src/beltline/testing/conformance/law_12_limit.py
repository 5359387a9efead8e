"""A receive never hands out more than its limit, however many receivers there are."""

from beltline.core.message import Delivery
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, NEXT, WORK


async def a_receive_gives_at_most_its_limit(engine: Full) -> None:
    await kit.send(engine, *kit.messages(10))
    assert [len(await kit.take(engine, limit=limit)) for limit in (1, 3, 100, 100)] == [1, 3, 6, 0]


async def the_limit_is_shared_by_the_queues_of_a_receive(engine: Full) -> None:
    await kit.send(engine, *kit.messages(3), *kit.messages(3, NEXT))
    deliveries = await engine.receive([NEXT, WORK, NEXT], limit=4, lease_s=LEASE_S)
    assert [each.message.queue for each in deliveries] == [NEXT, NEXT, NEXT, WORK]


async def the_limit_holds_for_expired_delayed_and_waiting_messages_together(engine: Full, time: Time) -> None:
    await kit.send(engine, *kit.messages(3))
    await kit.take(engine)
    await kit.send(engine, *kit.messages(3, delay_s=10.0))
    time.advance(LEASE_S)
    await kit.send(engine, *kit.messages(3))
    assert [len(await kit.take(engine, limit=4)) for _ in range(4)] == [4, 4, 1, 0]


async def eight_receivers_never_exceed_it(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(400), *kit.messages(100, NEXT))

    async def receiver(limit: int) -> list[list[Delivery]]:
        batches = []
        while batch := await engine.receive([WORK, NEXT], limit=limit, lease_s=LEASE_S):
            assert len(batch) <= limit
            batches.append(batch)
        return batches

    taken = await kit.in_threads(*(lambda limit=limit: receiver(limit) for limit in (1, 2, 3, 5, 7, 10, 20, 50)))
    seen = [delivery.message.id for batches in taken for batch in batches for delivery in batch]
    assert sorted(seen) == sorted(message.id for message in sent)


async def a_receive_of_many_queues_takes_what_there_is(engine: Full) -> None:
    await kit.send(engine, *kit.messages(2, NEXT))
    assert len(await engine.receive(kit.QUEUES, limit=50, lease_s=LEASE_S)) == 2
