"""What is sent or settled in a transaction takes effect when that transaction commits, together with all else in it, and not at all when it does not."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextvars import Context
from typing import Protocol

import pytest

from beltline.core.codec import pack
from beltline.core.errors import HandleMisused, QueueFull, QueueNotDeclared
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, Admission, RetryAfter, Settled, Settlement
from beltline.engines.protocol import AsyncTransaction, Transactional
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time
from beltline.testing.conformance.kit import LAST, LEASE_S, NEXT, WORK

POWERS = ("Browse", "Results", "Runs", "Transactional")


class Both(Full, Transactional, Protocol):
    """What these tests are given."""


@contextlib.asynccontextmanager
async def _begun(engine: Both) -> AsyncGenerator[AsyncTransaction]:
    transaction = await engine.atransaction()
    try:
        yield transaction
    finally:
        await transaction.rollback()


async def a_settle_takes_effect_with_the_commit_and_everything_it_says(engine: Both) -> None:
    sent = await kit.send_one(engine)
    delivery, follower = await kit.take_one(engine), kit.message(NEXT)
    async with _begun(engine) as transaction:
        assert await transaction.settle(Settlement(delivery.receipt, Ack(result=pack(42), then=(follower,)))) is Settled.DONE
        assert await kit.state_of(engine, sent.id) == "leased"
        assert await kit.ready(engine, NEXT) == 0
        await transaction.commit()
    assert await kit.state_of(engine, sent.id) == "done"
    [view] = await engine.results([sent.id])
    assert view is not None
    assert view.result == pack(42)
    assert (await kit.take_one(engine, NEXT)).message == follower
    await kit.assert_counts_agree(engine)


async def a_settle_that_is_rolled_back_has_never_been(engine: Both) -> None:
    sent = await kit.send_one(engine)
    delivery, follower = await kit.take_one(engine), kit.message(NEXT)
    async with _begun(engine) as transaction:
        assert await transaction.settle(Settlement(delivery.receipt, Ack(then=(follower,)))) is Settled.DONE
    assert await kit.state_of(engine, sent.id) == "leased"
    assert await kit.ready(engine, NEXT) == 0
    await kit.ok(engine, delivery, RetryAfter(delay_s=0.0, failure=kit.failure()))
    assert (await kit.take_one(engine)).failed == 1
    await kit.assert_counts_agree(engine)


async def a_stale_receipt_settles_nothing_there_either(engine: Both, time: Time) -> None:
    await kit.send_one(engine)
    slow = await kit.take_one(engine)
    time.advance(LEASE_S + 1)
    await kit.take_one(engine)
    async with _begun(engine) as transaction:
        assert await transaction.settle(Settlement(slow.receipt, Ack(then=(kit.message(NEXT),)))) is Settled.LEASE_LOST
    assert await kit.ready(engine, NEXT) == 0
    assert (await engine.counts(WORK)).leased == 1


async def a_late_receipt_that_nobody_overtook_settles(engine: Both, time: Time) -> None:
    await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    time.advance(LEASE_S + 1)
    async with _begun(engine) as transaction:
        assert await transaction.settle(Settlement(delivery.receipt, Ack())) is Settled.DONE
        await transaction.commit()
    assert (await engine.counts(WORK)).done == 1


async def a_message_sent_in_a_transaction_exists_when_it_commits(engine: Both) -> None:
    before, inside = kit.message(), kit.messages(3)
    await kit.send(engine, before)
    async with _begun(engine) as transaction:
        answers = await engine.asend_with(transaction.connection, inside)
        assert [(sent.id, sent.admission) for sent in answers] == [(message.id, Admission.STORED) for message in inside]
        assert await kit.ready(engine) == 1
        await transaction.commit()
    after = await kit.send_one(engine)
    assert await kit.finish(engine) == [message.id for message in (before, *inside, after)]
    await kit.assert_counts_agree(engine)


async def a_message_of_a_transaction_that_is_rolled_back_was_never_sent(engine: Both) -> None:
    message = kit.message(dedup_key="invoice 7")
    async with _begun(engine) as transaction:
        await engine.asend_with(transaction.connection, [message])
    assert await kit.take(engine) == []
    assert [sent.admission for sent in await engine.send([message])] == [Admission.STORED]


async def the_same_id_and_the_same_dedup_key_are_known_there(engine: Both) -> None:
    first = await kit.send_one(engine, dedup_key="invoice 7")
    async with _begun(engine) as transaction:
        again = await engine.asend_with(transaction.connection, [first])
        same = await engine.asend_with(transaction.connection, [kit.message(dedup_key="invoice 7")])
        await transaction.commit()
    assert [sent.admission for sent in (*again, *same)] == [Admission.SAME_ID, Admission.DEDUPLICATED]
    assert same[0].id == first.id


async def a_refusal_leaves_the_transaction_usable(engine: Both) -> None:
    await engine.declare([kit.specs(NEXT, max_backlog=1)])
    await kit.send_one(engine)
    delivery, follower = await kit.take_one(engine), kit.message(NEXT)
    async with _begun(engine) as transaction:
        with pytest.raises(QueueNotDeclared):
            await engine.asend_with(transaction.connection, [kit.message(), kit.message(QueueName("nowhere"))])
        with pytest.raises(QueueFull):
            await engine.asend_with(transaction.connection, kit.messages(2, NEXT))
        with pytest.raises(QueueNotDeclared):
            await transaction.settle(Settlement(delivery.receipt, Ack(then=(kit.message(QueueName("nowhere")),))))
        await engine.asend_with(transaction.connection, [follower])
        assert await transaction.settle(Settlement(delivery.receipt, Ack())) is Settled.DONE
        await transaction.commit()
    assert await kit.finish(engine, NEXT) == [follower.id]
    counts = await engine.counts(WORK)
    assert (counts.done, counts.ready, counts.leased) == (1, 0, 0)


async def the_last_part_settled_in_a_transaction_fires_its_gather(engine: Both) -> None:
    await kit.split_run(engine, 2)
    one, two = await kit.take(engine, NEXT)
    await kit.answer(engine, one, "a")
    async with _begun(engine) as transaction:
        assert await transaction.settle(Settlement(two.receipt, Ack(part=pack("b")))) is Settled.DONE
        assert await kit.ready(engine, LAST) == 0
        await transaction.commit()
    assert (await kit.take_one(engine, LAST)).message.body == pack({"thumbs": ["a", "b"]})


async def _renewed(engine: Both, *, committed: bool) -> Settled:
    """What a renewal says that was asked while the transaction that settles the same delivery was open."""
    await kit.send_one(engine)
    delivery = await kit.take_one(engine)
    async with _begun(engine) as transaction:
        assert await transaction.settle(Settlement(delivery.receipt, Ack())) is Settled.DONE
        renewing = asyncio.get_running_loop().create_task(engine.renew([delivery.receipt], lease_s=LEASE_S), context=Context())
        await asyncio.sleep(0)  # so that it has begun
        await (transaction.commit() if committed else transaction.rollback())
    [answer] = await renewing
    return answer


async def a_renewal_tells_that_the_settle_was_committed(engine: Both) -> None:
    assert await _renewed(engine, committed=True) is Settled.LEASE_LOST


async def a_renewal_tells_that_the_settle_was_rolled_back(engine: Both) -> None:
    assert await _renewed(engine, committed=False) is Settled.DONE


async def synchronous_code_has_the_same(engine: Both) -> None:
    await kit.send_one(engine)
    delivery, message = await kit.take_one(engine), kit.message(NEXT)

    def work() -> None:
        for end in ("rollback", "commit"):
            transaction = engine.transaction()
            assert [sent.new for sent in engine.send_with(transaction.connection, [message])] == [True]
            assert transaction.settle(Settlement(delivery.receipt, Ack())) is Settled.DONE
            getattr(transaction, end)()
            transaction.rollback()  # after the end it does nothing

    await asyncio.to_thread(work)
    assert await kit.finish(engine, NEXT) == [message.id]
    assert (await engine.counts(WORK)).done == 1


async def what_is_no_connection_to_the_store_is_refused(engine: Both) -> None:
    with pytest.raises(HandleMisused):
        engine.send_with(object(), [kit.message()])
    with pytest.raises(HandleMisused):
        await engine.asend_with(object(), [kit.message()])
    with pytest.raises(HandleMisused):
        await engine.atransaction(object())
    assert await kit.ready(engine) == 0
