"""However many decide about the size of a fleet, one is heard each turn; an operator's range stands; the newest 1,000 decisions of a queue are kept."""

import math

import pytest

from beltline.core.errors import QueueNotDeclared, ValueInvalid
from beltline.core.names import QueueName
from beltline.core.scaling import LOGGED, Decision, Size
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import NEXT, WORK

POWERS = ("Sizes",)
NOWHERE = QueueName("nowhere")


def _decision(queue: QueueName = WORK, slots: int = 4, **fields: object) -> Decision:
    return Decision(
        **{  # type: ignore[arg-type]
            "queue": queue,
            "at": 1_800_000_000.25,
            "before": 2,
            "slots": slots,
            "need": 5,
            "desired": slots,
            "term": "drain",
            "limit": "range",
            "reason": "12 wait … the range ends at 4",
            "news": True,
            "arrivals_per_s": 1.5,
            "service_s": 0.25,
            "runnable": 12,
            "held": 0,
            "leased": 2,
            "oldest_s": 3.0,
            "target_s": 10.0,
            "least": 2,
            "most": math.inf,
            "offered": 8,
            "by": "worker-1",
            **fields,
        }
    )


async def nobody_has_decided_at_first(engine: Full) -> None:
    assert await engine.sizes() == []
    assert await engine.decisions() == []


async def a_size_is_kept_with_what_the_decider_remembers_and_when(engine: Full) -> None:
    assert await engine.set_size(WORK, turn=0, slots=4, state=b"\x00trend")
    assert await engine.sizes() == [Size(queue=WORK, turn=1, slots=4, decided_at=await engine.now(), state=b"\x00trend")]


async def a_decision_on_a_turn_that_is_over_writes_nothing(engine: Full, time: Time) -> None:
    await engine.set_size(WORK, turn=0, slots=4, state=b"first", log=_decision(slots=4))
    before = await engine.sizes()
    time.advance(2.0)
    assert not await engine.set_size(WORK, turn=0, slots=9, state=b"late", log=_decision(slots=9))
    assert not await engine.set_size(WORK, turn=2, slots=9, state=b"early", log=_decision(slots=9))
    assert await engine.sizes() == before
    assert [each.slots for each in await engine.decisions()] == [4]


async def of_many_that_decide_at_once_each_turn_hears_one(engine: Full) -> None:
    async def decide(number: int) -> None:
        for turn in range(5):
            heard.append(await engine.set_size(WORK, turn=turn, slots=number, state=b"", log=_decision(slots=number)))
            while (await engine.sizes())[0].turn <= turn:
                pass  # the turn is taken already, by whoever was first

    heard: list[bool] = []
    await kit.in_threads(*(lambda number=number: decide(number) for number in range(1, 5)))
    [size] = await engine.sizes()
    assert (sum(heard), size.turn, len(await engine.decisions())) == (5, 5, 5)


async def sizes_of_other_queues_are_left_alone(engine: Full) -> None:
    await engine.set_size(NEXT, turn=0, slots=1, state=b"n")
    await engine.set_size(WORK, turn=0, slots=2, state=b"w")
    await engine.set_size(WORK, turn=1, slots=3, state=b"w")
    assert [(size.queue, size.turn, size.slots) for size in await engine.sizes()] == [(NEXT, 1, 1), (WORK, 2, 3)]


async def an_order_stands_over_decisions_until_it_is_taken_back(engine: Full) -> None:
    await engine.set_size(WORK, turn=0, slots=4, state=b"s")
    await engine.set_range(WORK, 2, 8)
    await engine.set_size(WORK, turn=1, slots=5, state=b"s")
    assert [(size.ordered, size.slots, size.turn) for size in await engine.sizes()] == [((2, 8), 5, 2)]
    await engine.set_range(WORK, 0, 3)
    assert [size.ordered for size in await engine.sizes()] == [(0, 3)]
    await engine.clear_range(WORK)
    assert [(size.ordered, size.slots, size.turn) for size in await engine.sizes()] == [(None, 5, 2)]


async def an_order_makes_the_next_decision_due(engine: Full) -> None:
    await engine.set_size(WORK, turn=0, slots=4, state=b"s")
    await engine.set_range(WORK, 2, 8)
    assert [size.decided_at for size in await engine.sizes()] == [0.0]
    await engine.set_size(WORK, turn=1, slots=4, state=b"s")
    assert [size.decided_at for size in await engine.sizes()] == [await engine.now()]
    await engine.clear_range(WORK)
    assert [size.decided_at for size in await engine.sizes()] == [0.0]


async def an_order_may_come_before_any_decision(engine: Full) -> None:
    await engine.set_range(WORK, 1, 2)
    assert await engine.sizes() == [Size(queue=WORK, ordered=(1, 2))]
    assert await engine.set_size(WORK, turn=0, slots=2, state=b"s")
    await engine.clear_range(NEXT)
    assert [size.queue for size in await engine.sizes()] == [WORK]


async def a_range_that_is_none_is_refused(engine: Full) -> None:
    for least, most in ((-1, 2), (3, 2), (0, 0), (0, 10**9)):
        with pytest.raises(ValueInvalid):
            await engine.set_range(WORK, least, most)
    assert await engine.sizes() == []


async def a_queue_nobody_has_declared_is_refused(engine: Full) -> None:
    with pytest.raises(QueueNotDeclared):
        await engine.set_size(NOWHERE, turn=0, slots=1, state=b"")
    with pytest.raises(QueueNotDeclared):
        await engine.set_range(NOWHERE, 1, 2)
    with pytest.raises(QueueNotDeclared):
        await engine.clear_range(NOWHERE)
    with pytest.raises(QueueNotDeclared):
        await engine.decisions(NOWHERE)


async def a_decision_is_read_as_it_was_written_newest_first(engine: Full) -> None:
    told = [_decision(slots=1), _decision(NEXT, 2, most=8.0, reason="größer"), _decision(slots=3)]
    await engine.set_size(WORK, turn=0, slots=1, state=b"", log=told[0])
    await engine.set_size(NEXT, turn=0, slots=2, state=b"", log=told[1])
    await engine.set_size(WORK, turn=1, slots=3, state=b"", log=told[2])
    assert await engine.decisions() == told[::-1]
    assert await engine.decisions(WORK) == [told[2], told[0]]
    assert await engine.decisions(limit=1) == [told[2]]


async def a_decision_without_news_is_not_in_the_log(engine: Full) -> None:
    await engine.set_size(WORK, turn=0, slots=1, state=b"", log=_decision())
    await engine.set_size(WORK, turn=1, slots=1, state=b"")
    assert len(await engine.decisions()) == 1


async def the_log_keeps_the_newest_of_each_queue(engine: Full) -> None:
    await engine.set_size(NEXT, turn=0, slots=1, state=b"", log=_decision(NEXT))
    for turn in range(LOGGED + 3):
        await engine.set_size(WORK, turn=turn, slots=turn, state=b"", log=_decision(slots=turn))
    kept = [each.slots for each in await engine.decisions(WORK, limit=2 * LOGGED)]
    assert kept == list(range(LOGGED + 2, 2, -1))
    assert len(await engine.decisions(NEXT)) == 1


async def sizes_orders_and_decisions_are_there_after_a_restart(engine: Full, harness: Harness) -> None:
    await engine.set_range(WORK, 0, 3)
    await engine.set_size(WORK, turn=0, slots=3, state=b"s", log=_decision())
    before = await engine.sizes()
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    assert await again.sizes() == before
    assert await again.decisions() == [_decision()]
    await again.close()
