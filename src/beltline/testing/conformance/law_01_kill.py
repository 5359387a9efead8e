"""Killing a worker or a sender at any moment (SIGKILL) loses nothing: what was acknowledged is there, what was held is handed out again, what was ended stays ended."""

from beltline.core.capabilities import Durability
from beltline.core.message import Delivery
from beltline.core.outcome import Ack
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Harness
from beltline.testing.conformance.kit import NEXT, WORK
from beltline.testing.conformance.processes import child, lines, opened

NEEDS = {"durability": Durability.OS}
POWERS = ("Browse",)


async def a_killed_sender_has_sent_all_that_was_acknowledged(harness: Harness) -> None:
    engine = await opened(harness)
    with child(harness, "send") as process:
        acknowledged = await lines(process, 40)
    try:
        stored = [view.message.id for view in await kit.everything(engine)]
        assert set(acknowledged) <= set(stored)
        assert len(set(stored)) == len(stored)
    finally:
        await engine.close()


async def a_killed_worker_gives_back_all_it_held(harness: Harness) -> None:
    engine = await opened(harness)
    try:
        sent = await kit.send(engine, *kit.messages(20))
        with child(harness, "hold") as process:
            held = await lines(process, 21)
        assert held == [*(message.id for message in sent), "held"]
        back: list[Delivery] = []
        while len(back) < 20:
            got = await engine.receive([WORK], limit=100, lease_s=60.0, wait_s=5.0)
            assert got, "the messages of the killed worker did not come back"
            back += got
        assert {delivery.message.id for delivery in back} == {message.id for message in sent}
        assert [(delivery.lost, delivery.failed, delivery.attempt) for delivery in back] == [(1, 0, 2)] * 20
    finally:
        await engine.close()


async def a_line_of_killed_workers_keeps_each_item_in_exactly_one_stage(harness: Harness) -> None:
    engine = await opened(harness)
    try:
        await kit.send(engine, *(kit.message(body=bytes([number])) for number in range(200)))
        for kills in (1, 3, 2):
            with child(harness, "work") as process:
                await lines(process, kills)
            here, there = await engine.counts(WORK), await engine.counts(NEXT)
            assert here.ready + here.leased + there.ready == 200
            assert here.done == there.ready
        while (await engine.counts(WORK)).done < 200:
            for delivery in await engine.receive([WORK], limit=100, lease_s=60.0, wait_s=5.0):
                await kit.ok(engine, delivery, Ack(then=(kit.message(NEXT, body=delivery.message.body),)))
        assert sorted(view.message.body for view in await kit.everything(engine, queues=(NEXT,))) == [bytes([number]) for number in range(200)]
    finally:
        await engine.close()
