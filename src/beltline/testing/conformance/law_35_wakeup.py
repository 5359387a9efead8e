"""A receive that waits is woken by whatever makes a message receivable, in any thread, or by time alone; waits that end or are cancelled take no message with them."""

import asyncio

from beltline.core.capabilities import Wakeup
from beltline.core.message import Delivery
from beltline.core.names import QueueName
from beltline.core.outcome import Ack
from beltline.core.queues import Feed
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness
from beltline.testing.conformance.kit import LAST, LEASE_S, NEXT, OTHER, QUEUES, WORK

NEEDS = {"wakeup": Wakeup.LONG_POLL}
POWERS = ("Browse", "Control")
WAIT_S = 20.0  # real seconds at most: every wait here ends by an event long before


class _Waiting:
    """An engine with a clock of its own, open and with all queues: what waits here waits in real time."""

    def __init__(self, harness: Harness) -> None:
        self.engine: Full = harness.engine()  # type: ignore[assignment]

    async def __aenter__(self) -> Full:
        await self.engine.open()
        await self.engine.declare([kit.specs(name) for name in QUEUES])
        return self.engine

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()


async def _receive(engine: Full, *queues: QueueName, limit: int = 1) -> list[Delivery]:
    """Within WAIT_S; an engine may come back early with nothing, then it is asked again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            deliveries = await engine.receive(queues or (WORK,), limit=limit, lease_s=LEASE_S, wait_s=WAIT_S)
            if deliveries:
                return deliveries


async def a_receive_without_a_wait_does_not_wait(harness: Harness) -> None:
    async with _Waiting(harness) as engine, asyncio.timeout(WAIT_S):
        assert await engine.receive([WORK], limit=1, lease_s=LEASE_S) == []


async def a_wait_that_is_over_gives_nothing(harness: Harness) -> None:
    async with _Waiting(harness) as engine, asyncio.timeout(WAIT_S):
        assert await engine.receive([WORK, NEXT], limit=1, lease_s=LEASE_S, wait_s=0.02) == []


async def what_is_ready_is_given_without_waiting_for_more(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        await kit.send_one(engine)
        assert len(await _receive(engine, limit=100)) == 1


async def a_send_wakes_it(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        [deliveries, sent] = await kit.together(lambda: _receive(engine), lambda: kit.send_one(engine))
        assert kit.ids(deliveries) == [sent.id]


async def a_send_from_another_thread_wakes_it(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        [deliveries, [sent]] = await kit.together(lambda: _receive(engine), lambda: kit.in_threads(lambda: kit.send_one(engine)))
        assert kit.ids(deliveries) == [sent.id]


async def a_send_wakes_receivers_in_other_threads(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        [batches, sent] = await kit.together(lambda: kit.in_threads(*[lambda: _receive(engine)] * 4), lambda: kit.send(engine, *kit.messages(4)))
        assert sorted(delivery.message.id for batch in batches for delivery in batch) == sorted(message.id for message in sent)


async def a_receive_of_many_queues_is_woken_by_each(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        for queue in (OTHER, WORK, NEXT):
            [deliveries, sent] = await kit.together(
                lambda: _receive(engine, WORK, NEXT, OTHER),
                lambda queue=queue: kit.send_one(engine, queue),  # type: ignore[misc]
            )
            assert kit.ids(deliveries) == [sent.id]


async def a_delay_that_ends_wakes_it(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        sent = await kit.send_one(engine, delay_s=0.1)
        assert kit.ids(await _receive(engine)) == [sent.id]


async def a_delayed_message_sent_meanwhile_wakes_it_in_time(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        [deliveries, sent] = await kit.together(lambda: _receive(engine), lambda: kit.send_one(engine, delay_s=0.1))
        assert kit.ids(deliveries) == [sent.id]


async def a_lease_that_runs_out_wakes_it(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        sent = await kit.send_one(engine)
        await kit.take_one(engine, lease_s=0.1)
        [delivery] = await _receive(engine)
        assert (delivery.message.id, delivery.lost) == (sent.id, 1)


async def a_release_and_a_retry_wake_it(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        await kit.send_one(engine)
        for end in (kit.release, kit.retry):
            held = await kit.take_one(engine)
            [deliveries, _] = await kit.together(lambda: _receive(engine), lambda end=end, held=held: end(engine, held))  # type: ignore[misc]
            await kit.release(engine, deliveries[0])


async def a_hand_off_wakes_the_next_stage(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        await kit.send_one(engine)
        held, follower = await kit.take_one(engine), kit.message(NEXT)
        [deliveries, _] = await kit.together(
            lambda: _receive(engine, NEXT), lambda: kit.in_threads(lambda: kit.ok(engine, held, Ack(then=(follower,))))
        )
        assert kit.ids(deliveries) == [follower.id]


async def a_gather_that_fires_wakes_the_next_stage(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        await kit.split_run(engine, 1)
        part = await kit.take_one(engine, NEXT)
        [deliveries, _] = await kit.together(lambda: _receive(engine, LAST), lambda: kit.in_threads(lambda: kit.answer(engine, part, 1)))
        assert len(deliveries) == 1


async def the_end_of_a_head_wakes_it_for_the_next_of_the_group(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        _, second = await kit.send(engine, *kit.messages(2, group="g"))
        held = await kit.take_one(engine)
        [deliveries, _] = await kit.together(lambda: _receive(engine), lambda: kit.in_threads(lambda: kit.ok(engine, held)))
        assert kit.ids(deliveries) == [second.id]


async def a_redrive_and_a_hurry_wake_it(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        dead = await kit.dead_one(engine)
        [deliveries, _] = await kit.together(
            lambda: _receive(engine), lambda: kit.in_threads(lambda: engine.redrive(MessageFilter(ids=(dead.id,)), limit=1))
        )
        assert kit.ids(deliveries) == [dead.id]
        delayed = await kit.send_one(engine, delay_s=3600.0)
        [deliveries, _] = await kit.together(lambda: _receive(engine), lambda: kit.in_threads(lambda: engine.hurry([delayed.id])))
        assert kit.ids(deliveries) == [delayed.id]


async def room_in_the_next_stage_wakes_the_stage_before(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        await engine.declare([kit.specs(WORK, feeds=(Feed(NEXT),)), kit.specs(NEXT, high_water=1, low_water=0)])
        await kit.send(engine, kit.message(WORK), kit.message(NEXT))
        assert await kit.take(engine) == []
        [deliveries, _] = await kit.together(lambda: _receive(engine), lambda: kit.in_threads(lambda: kit.finish(engine, NEXT)))
        assert len(deliveries) == 1


async def the_end_of_many_short_waits_loses_no_message(harness: Harness) -> None:
    """Waits that end while messages arrive: each message is received once, by whoever comes."""
    async with _Waiting(harness) as engine:
        seen: list[str] = []

        async def receiver() -> None:
            while len(seen) < 60:
                seen.extend(kit.ids(await engine.receive([WORK], limit=2, lease_s=LEASE_S, wait_s=0.002)))

        async def sender() -> list[str]:
            return [(await kit.send_one(engine)).id for _ in range(60)]

        [_, sent] = await kit.together(lambda: kit.in_threads(*[receiver] * 3), lambda: kit.in_threads(sender))
        assert sorted(seen) == sorted(sent[0])


async def a_cancelled_wait_takes_no_message_with_it(harness: Harness) -> None:
    async with _Waiting(harness) as engine:
        for _ in range(20):
            try:
                async with asyncio.timeout(0.001):
                    await engine.receive([WORK], limit=1, lease_s=LEASE_S, wait_s=WAIT_S)
            except TimeoutError:
                continue
        sent = await kit.send_one(engine)
        assert kit.ids(await _receive(engine)) == [sent.id]
