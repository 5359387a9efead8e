"""Zero is a number: no delay and no lease are allowed; negative and impossible numbers are refused before anything is written."""

import math

import pytest

from beltline.core.errors import ValueInvalid
from beltline.core.limits import MAX_LEASE_S
from beltline.core.outcome import Ack, Release, RetryAfter, Settled, Settlement
from beltline.core.views import MessageFilter
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full
from beltline.testing.conformance.kit import LEASE_S, WORK

POWERS = ("Browse", "Control")
IMPOSSIBLE = (-1.0, -0.001, math.nan, -math.inf)


async def a_lease_of_zero_can_be_received_again_at_once(engine: Full) -> None:
    await kit.send_one(engine)
    first = await kit.take_one(engine, lease_s=0.0)
    second = await kit.take_one(engine, lease_s=0.0)
    assert (second.receipt.epoch, second.lost) == (first.receipt.epoch + 1, 1)


async def a_lease_of_zero_can_be_settled_while_nobody_else_has_received_it(engine: Full) -> None:
    await kit.send_one(engine)
    await kit.ok(engine, await kit.take_one(engine, lease_s=0.0))
    assert await kit.take(engine) == []


async def one_receive_gives_a_message_once_even_with_a_lease_of_zero(engine: Full) -> None:
    await kit.send(engine, *kit.messages(2))
    deliveries = await engine.receive([WORK, WORK], limit=10, lease_s=0.0)
    assert len(deliveries) == 2


async def a_renewal_to_zero_gives_the_message_back(engine: Full) -> None:
    await kit.send_one(engine)
    held = await kit.take_one(engine)
    assert await engine.renew([held.receipt], lease_s=0.0) == [Settled.DONE]
    assert (await kit.take_one(engine)).lost == 1


async def impossible_leases_are_refused(engine: Full) -> None:
    await kit.send_one(engine)
    for lease_s in (*IMPOSSIBLE, MAX_LEASE_S * 2, math.inf):
        with pytest.raises(ValueInvalid):
            await kit.take(engine, lease_s=lease_s)
    held = await kit.take_one(engine)
    for lease_s in (*IMPOSSIBLE, MAX_LEASE_S * 2, math.inf):
        with pytest.raises(ValueInvalid):
            await engine.renew([held.receipt], lease_s=lease_s)
    assert (await engine.get(held.message.id)).due_at == held.lease_until


async def impossible_delays_are_refused(engine: Full) -> None:
    for delay_s in (*IMPOSSIBLE, math.inf):
        with pytest.raises(ValueInvalid):
            await engine.send([kit.message(), kit.message(delay_s=delay_s)])
    assert await kit.everything(engine) == []


async def impossible_delays_of_an_outcome_are_refused_and_nothing_is_written(engine: Full) -> None:
    await kit.send(engine, *kit.messages(2))
    first, second = await kit.take(engine)
    for delay_s in (*IMPOSSIBLE, math.inf):
        for outcome in (RetryAfter(delay_s=delay_s, failure=kit.failure()), Release(delay_s=delay_s)):
            with pytest.raises(ValueInvalid):
                await engine.settle([Settlement(first.receipt, Ack()), Settlement(second.receipt, outcome)])
    assert (await engine.counts(WORK)).leased == 2
    await kit.ok(engine, first)
    await kit.ok(engine, second)


async def impossible_waits_and_limits_are_refused(engine: Full) -> None:
    await kit.send_one(engine)
    for wait_s in IMPOSSIBLE:
        with pytest.raises(ValueInvalid):
            await engine.receive([WORK], limit=1, lease_s=LEASE_S, wait_s=wait_s)
    for limit in (0, -1):
        with pytest.raises(ValueInvalid):
            await engine.receive([WORK], limit=limit, lease_s=LEASE_S)
        with pytest.raises(ValueInvalid):
            await engine.browse(MessageFilter(), limit=limit)
    assert len(await kit.take(engine)) == 1


async def the_longest_lease_is_kept(engine: Full) -> None:
    await kit.send_one(engine)
    delivery = await kit.take_one(engine, lease_s=MAX_LEASE_S)
    assert delivery.lease_until == await engine.now() + MAX_LEASE_S
