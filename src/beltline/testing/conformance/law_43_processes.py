"""Processes that open one store share it: what one of them sends another receives without being told, and no message is handed to two."""

from beltline.core.capabilities import Durability
from beltline.core.message import Delivery
from beltline.core.outcome import Ack
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Harness
from beltline.testing.conformance.kit import NEXT, WORK
from beltline.testing.conformance.processes import child, lines, opened

NEEDS = {"durability": Durability.OS}
POWERS = ("Browse",)
WAIT_S = 20.0  # real seconds at most


async def what_another_process_sends_wakes_a_waiting_receive(harness: Harness) -> None:
    engine = await opened(harness)

    async def receive() -> list[Delivery]:
        while True:
            deliveries = await engine.receive([WORK], limit=1, lease_s=kit.LEASE_S, wait_s=WAIT_S)
            if deliveries:
                return deliveries

    async def send() -> list[str]:
        with child(harness, "send") as process:
            return await lines(process, 3)

    try:
        [[delivery], sent] = await kit.together(receive, send)
        assert delivery.message.id == sent[0]
    finally:
        await engine.close()


async def workers_in_three_processes_share_a_queue_without_overlap(harness: Harness) -> None:
    engine = await opened(harness)
    try:
        with child(harness, "share"), child(harness, "share"):
            await kit.send(engine, *(kit.message(body=bytes([number])) for number in range(120)))
            while (await engine.counts(WORK)).done < 120:
                for delivery in await engine.receive([WORK], limit=3, lease_s=600.0):
                    await kit.ok(engine, delivery, Ack(then=(kit.message(NEXT, body=delivery.message.body),)))
        assert sorted(view.message.body for view in await kit.everything(engine, queues=(NEXT,))) == [bytes([number]) for number in range(120)]
        views = await kit.everything(engine, queues=(WORK,))
        assert {(view.failed, view.lost, view.epoch) for view in views} == {(0, 0, 1)}
        await kit.assert_counts_agree(engine)
    finally:
        await engine.close()
