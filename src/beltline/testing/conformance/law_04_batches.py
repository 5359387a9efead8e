"""A batch is stored whole or not at all, in the order given, with one answer per message; a send to a full queue is refused with QueueFull and stores nothing."""

import math

import pytest

from beltline.core.errors import BodyTooLarge, QueueFull, QueueNotDeclared
from beltline.core.names import QueueName
from beltline.core.outcome import Admission
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full
from beltline.testing.conformance.kit import NEXT, WORK

NEEDS = {"send_atomic": math.inf}
POWERS = ("Browse", "Control")


async def an_empty_batch_is_answered_with_nothing(engine: Full) -> None:
    assert await engine.send([]) == []
    assert await engine.settle([]) == []
    assert await engine.renew([], lease_s=30.0) == []


async def the_answers_stand_in_the_order_of_the_batch(engine: Full) -> None:
    batch = [kit.message([WORK, NEXT][number % 2]) for number in range(50)]
    assert [sent.id for sent in await engine.send(batch)] == [message.id for message in batch]


async def a_batch_is_received_in_the_order_it_was_sent(engine: Full) -> None:
    batch = await kit.send(engine, *kit.messages(200))
    assert await kit.finish(engine) == [message.id for message in batch]


async def a_batch_with_an_undeclared_queue_stores_nothing(engine: Full) -> None:
    nowhere = QueueName("nowhere")
    with pytest.raises(QueueNotDeclared) as refused:
        await engine.send([kit.message(), kit.message(nowhere), kit.message(NEXT)])
    assert refused.value.queue == nowhere
    assert set(refused.value.known) >= {WORK, NEXT}
    assert await kit.everything(engine) == []


async def a_batch_with_a_body_too_large_stores_nothing(engine: Full) -> None:
    large = bytes(int(engine.capabilities.max_body) + 1)
    with pytest.raises(BodyTooLarge):
        await engine.send([kit.message(), kit.message(body=large)])
    assert await kit.everything(engine) == []


async def a_batch_that_was_refused_can_be_sent_once_it_is_right(engine: Full) -> None:
    batch = kit.messages(3)
    with pytest.raises(QueueNotDeclared):
        await engine.send([*batch, kit.message(QueueName("nowhere"))])
    assert [sent.admission for sent in await engine.send(batch)] == [Admission.STORED] * 3


async def a_batch_above_the_bound_stores_nothing(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, max_backlog=5)])
    await kit.send(engine, *kit.messages(3))
    with pytest.raises(QueueFull) as refused:
        await engine.send([kit.message(NEXT), *kit.messages(3)])
    assert (refused.value.queue, refused.value.bound) == (WORK, 5)
    assert (await kit.ready(engine), await kit.ready(engine, NEXT)) == (3, 0)
    await kit.send(engine, *kit.messages(2))


async def the_bound_counts_what_is_ready_delayed_and_leased(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, max_backlog=3)])
    await kit.send(engine, *kit.messages(2))
    held = await kit.take_one(engine)
    await kit.send_one(engine, delay_s=60.0)
    with pytest.raises(QueueFull):
        await engine.send([kit.message()])
    await kit.ok(engine, held)
    await kit.send_one(engine)


async def dead_letters_do_not_fill_a_queue(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, max_backlog=1)])
    await kit.dead_one(engine)
    await kit.send_one(engine)


async def repeats_fit_into_a_full_queue(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, max_backlog=2)])
    sent = await kit.send(engine, kit.message(dedup_key="k"), kit.message())
    answers = await engine.send([*sent, kit.message(dedup_key="k")])
    assert [answer.admission for answer in answers] == [Admission.SAME_ID, Admission.SAME_ID, Admission.DEDUPLICATED]


async def eight_senders_never_lift_a_queue_above_its_bound(engine: Full) -> None:
    await engine.declare([kit.specs(WORK, max_backlog=20)])

    async def sender() -> int:
        stored = 0
        for _ in range(5):
            try:
                await engine.send([kit.message()])
            except QueueFull:
                continue
            stored += 1
        return stored

    assert sum(await kit.in_threads(*[sender] * 8)) == 20
    assert await kit.ready(engine) == 20


async def a_bound_declared_anew_holds_at_once_and_touches_no_message(engine: Full) -> None:
    await kit.send(engine, *kit.messages(4))
    await engine.declare([kit.specs(WORK, max_backlog=2)])
    assert await kit.ready(engine) == 4
    with pytest.raises(QueueFull):
        await engine.send([kit.message()])
    await engine.declare([kit.specs(WORK)])
    await kit.send_one(engine)


async def queues_are_known_by_what_was_declared(engine: Full) -> None:
    spec = kit.specs(QueueName("photos.fifo"), max_backlog=9, high_water=8, low_water=4, ageing_s=math.inf, max_deliveries=1, on_dead="skip")
    await engine.declare([spec])
    await engine.declare([spec])
    assert spec in await engine.queues()
    assert len(await engine.queues()) == len(kit.QUEUES) + 1


async def an_undeclared_queue_is_refused_by_every_verb(engine: Full) -> None:
    nowhere = QueueName("nowhere")
    for call in (
        lambda: engine.receive([WORK, nowhere], limit=1, lease_s=30.0),
        lambda: engine.counts(nowhere),
        lambda: engine.purge(nowhere),
        lambda: engine.pause(nowhere),
        lambda: engine.resume(nowhere),
    ):
        with pytest.raises(QueueNotDeclared):
            await call()
