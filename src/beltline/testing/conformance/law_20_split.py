"""A split writes all parts and the gather that waits for them in the settle of the message before, or none of it."""

import pytest

from beltline.core.capabilities import HandOff
from beltline.core.codec import pack
from beltline.core.errors import QueueNotDeclared
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, Settlement
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full
from beltline.testing.conformance.kit import LAST, NEXT, WORK

NEEDS = {"hand_off": HandOff.ATOMIC}
POWERS = ("Browse", "Results", "Runs")


async def all_parts_are_there_and_the_gather_waits_for_them(engine: Full) -> None:
    [first] = await kit.send(engine, kit.placed())
    ack, parts, gather = kit.fan(first, 5)
    await kit.ok(engine, await kit.take_one(engine), ack)
    assert kit.ids(await kit.take(engine, NEXT)) == [part.id for part in parts]
    [view] = await engine.gathers(kit.run_of(first))
    assert (view.id, view.expected, view.missing, view.dead, view.fired) == (gather.id, 5, 5, 0, False)
    assert (view.run, view.stage) == (kit.run_of(first), "gathered")
    assert (await engine.run(kit.run_of(first))).open == 5


async def a_thousand_parts_are_one_write(engine: Full) -> None:
    run, _ = await kit.split_run(engine, 1000)
    assert await kit.ready(engine, NEXT) == 1000
    deliveries = await kit.take(engine, NEXT, limit=1000)
    await engine.settle([Settlement(each.receipt, Ack(part=pack(number))) for number, each in enumerate(deliveries)])
    gathered = await kit.take_one(engine, LAST)
    assert gathered.message.body == pack({"thumbs": list(range(1000))})
    assert (await engine.run(run)).open == 1


async def a_split_with_one_part_that_cannot_be_stored_writes_none(engine: Full) -> None:
    [first] = await kit.send(engine, kit.placed())
    ack, parts, gather = kit.fan(first, 3)
    stray = kit.placed(kit.run_of(first), QueueName("nowhere"), parts=parts[0].place.parts if parts[0].place else ())
    held = await kit.take_one(engine)
    with pytest.raises(QueueNotDeclared):
        await engine.settle([Settlement(held.receipt, Ack(then=(*ack.then, stray), gathers=(gather,)))])
    assert await kit.ready(engine, NEXT) == 0
    assert await engine.gathers(kit.run_of(first)) == []
    assert (await engine.run(kit.run_of(first))).open == 1
    await kit.ok(engine, held, ack)
    assert await kit.ready(engine, NEXT) == 3


async def a_gather_into_an_undeclared_queue_is_refused_when_it_is_opened(engine: Full) -> None:
    [first] = await kit.send(engine, kit.placed())
    ack, _, _ = kit.fan(first, 2, then=QueueName("nowhere"))
    held = await kit.take_one(engine)
    with pytest.raises(QueueNotDeclared):
        await engine.settle([Settlement(held.receipt, ack)])
    assert await engine.gathers(kit.run_of(first)) == []
    assert await kit.ready(engine, NEXT) == 0
    await kit.ok(engine, held)


async def a_repeated_split_makes_no_second_part_and_no_second_gather(engine: Full) -> None:
    [first] = await kit.send(engine, kit.placed())
    again = await kit.send_one(engine, place=first.place)
    ack, _, _ = kit.fan(first, 3)
    one, two = await kit.take(engine)
    assert two.message.id == again.id
    await kit.ok(engine, one, ack)
    await kit.ok(engine, two, ack)
    assert await kit.ready(engine, NEXT) == 3
    [view] = await engine.gathers(kit.run_of(first))
    assert view.missing == 3


async def parts_can_be_sent_with_their_gather(engine: Full) -> None:
    """A send may open a gather too: parts and gather are stored together."""
    root = kit.placed()
    _, parts, gather = kit.fan(root, 2)
    assert all(sent.new for sent in await engine.send(parts, gathers=[gather]))
    for delivery, value in zip(await kit.take(engine, NEXT), ("a", "b"), strict=True):
        await kit.answer(engine, delivery, value)
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["a", "b"]})
    assert (await engine.counts(WORK)).ready == 0


async def parts_know_their_place(engine: Full) -> None:
    run, gather = await kit.split_run(engine, 3)
    places = [delivery.message.place for delivery in await kit.take(engine, NEXT)]
    assert [(place.run, place.item, place.parts[-1].gather, place.parts[-1].index) for place in places if place] == [
        (run, str(index), gather.id, index) for index in range(3)
    ]
