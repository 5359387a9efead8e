"""While a message is leased nobody else receives it."""

from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LEASE_S, ONE, TWO, WORK

POWERS = ("Browse",)


async def a_leased_message_is_not_received_again(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    await kit.take_one(engine, worker=ONE)
    assert await kit.take(engine, worker=TWO) == []
    time.advance(LEASE_S - 0.25)
    assert await kit.take(engine, worker=TWO) == []
    assert await kit.take(engine, worker=ONE) == []


async def every_message_of_a_batch_has_its_own_lease(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(3))
    first, _, third = await kit.take(engine)
    await kit.ok(engine, first)
    await kit.release(engine, third)
    assert kit.ids(await kit.take(engine)) == [sent[2].id]


async def a_lease_says_who_holds_it_and_until_when(engine: Full) -> None:
    sent = await kit.send_one(engine)
    await kit.take_one(engine, worker=TWO, lease_s=12.0)
    view = await engine.get(sent.id)
    assert (view.state, view.worker, view.due_at) == ("leased", TWO, await engine.now() + 12.0)
    counts = await engine.counts(WORK)
    assert (counts.ready, counts.leased) == (0, 1)


async def a_receipt_is_of_exactly_one_delivery(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(5))
    deliveries = await kit.take(engine)
    assert [delivery.receipt.id for delivery in deliveries] == [message.id for message in sent]
    assert all(delivery.receipt.epoch >= 1 for delivery in deliveries)


async def eight_receivers_share_a_queue_without_overlap(engine: Full) -> None:
    sent = await kit.send(engine, *kit.messages(120))

    async def receiver() -> list[str]:
        seen: list[str] = []
        while deliveries := await kit.take(engine, limit=4):
            seen += kit.ids(deliveries)
        return seen

    seen = [id for each in await kit.in_threads(*[receiver] * 8) for id in each]
    assert sorted(seen) == sorted(message.id for message in sent)
