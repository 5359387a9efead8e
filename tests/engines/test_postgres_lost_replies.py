"""The connection is cut before a request reaches the server, or between its commit and the answer: `unknown`, and a repeat that changes nothing."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from beltline.core.errors import BeltlineError, EngineUnavailable, NotFound
from beltline.core.outcome import Ack, Admission, DeadLetter, Settled, Settlement
from beltline.core.schedule import Step, Stepped, schedule
from beltline.engines.postgres import PostgresEngine
from beltline.testing.conformance.kit import LEASE_S, failure, split_run, take_one
from tests.engines.postgres_faults_kit import BOUND_S, NEXT, WORK, assert_sound, begun, insist, message, more, opened, traffic
from tests.services.postgres import PostgresServer
from tests.services.proxy import Proxy, Way


@pytest.fixture
def proxy(postgres: PostgresServer):
    with Proxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def through(postgres_url: str, proxy: Proxy) -> str:
    """Without LISTEN and with one connection: the next request is the one of the next verb."""
    head, _, database = postgres_url.rpartition("/")
    return f"{head.rpartition(':')[0]}:{proxy.port}/{database}?listen=0&pool=1"


@pytest.fixture
async def engine(through: str) -> AsyncIterator[PostgresEngine]:
    async with opened(through) as engine:
        yield engine


async def lost(proxy: Proxy, when: str, work) -> None:
    """The verb is `unknown` to its caller."""
    proxy.cut_at_request(1, when=when)
    with pytest.raises(EngineUnavailable) as caught:
        await asyncio.wait_for(work, BOUND_S)
    assert caught.value.effect == "unknown"


async def test_a_send_that_never_arrived_has_stored_nothing(engine: PostgresEngine, proxy: Proxy) -> None:
    sent = message()
    await lost(proxy, "before", engine.send([sent]))
    with pytest.raises(NotFound):
        await engine.get(sent.id)
    assert (await engine.send([sent]))[0].new


async def test_a_send_whose_answer_was_lost_is_there_once(engine: PostgresEngine, proxy: Proxy) -> None:
    sent = [message() for _ in range(5)]
    await lost(proxy, "after", engine.send(sent))
    assert [answer.admission for answer in await engine.send(sent)] == [Admission.SAME_ID] * 5
    assert (await engine.counts(WORK)).ready == 5


async def test_sends_that_shared_a_commit_are_all_unsure_and_all_there_once(engine: PostgresEngine, proxy: Proxy) -> None:
    sent = [message() for _ in range(20)]
    proxy.cut_at_request(1, when="after")
    answers = await asyncio.gather(*(engine.send([made]) for made in sent), return_exceptions=True)
    assert {type(answer) for answer in answers} == {EngineUnavailable}
    assert len({id(answer) for answer in answers}) == 20
    assert [(await engine.send([made]))[0].admission for made in sent] == [Admission.SAME_ID] * 20
    assert (await engine.counts(WORK)).ready == 20


async def test_a_held_answer_that_is_cut_off_has_happened(engine: PostgresEngine, proxy: Proxy) -> None:
    sent = message()
    proxy.hold_replies()
    sending = begun(engine.send([sent]))
    await asyncio.to_thread(proxy.wait_held)
    proxy.cut()
    proxy.pass_through()
    with pytest.raises(EngineUnavailable) as caught:
        await asyncio.wait_for(sending, BOUND_S)
    assert caught.value.effect == "unknown"
    assert (await engine.get(sent.id)).state == "ready"


@pytest.mark.parametrize(("when", "again"), [("before", Settled.DONE), ("after", Settled.LEASE_LOST)])
async def test_a_settle_whose_answer_was_lost_ends_once_and_hands_on_once(engine: PostgresEngine, proxy: Proxy, when: str, again: Settled) -> None:
    await engine.send([message()])
    delivery = await take_one(engine)
    settlement = Settlement(delivery.receipt, Ack(then=(message(NEXT),)))
    await lost(proxy, when, engine.settle([settlement]))
    assert await engine.settle([settlement]) == [again]
    assert (await engine.counts(WORK)).done == 1
    assert (await engine.counts(NEXT)).ready == 1


async def test_a_delivery_whose_answer_was_lost_comes_again_with_a_new_epoch(engine: PostgresEngine, proxy: Proxy) -> None:
    [sent] = [message()]
    await engine.send([sent])
    await lost(proxy, "after", engine.receive([WORK], limit=1, lease_s=0.3))
    [delivery] = await asyncio.wait_for(engine.receive([WORK], limit=1, lease_s=LEASE_S, wait_s=BOUND_S), BOUND_S)
    assert (delivery.message.id, delivery.receipt.epoch, delivery.lost) == (sent.id, 2, 1)


async def test_every_other_verb_may_lose_its_answer_and_be_repeated(engine: PostgresEngine, proxy: Proxy) -> None:
    run, _ = await split_run(engine, 3)
    await engine.send([message(), message(delay_s=900.0), message()])
    held, dying = await engine.receive([WORK], limit=2, lease_s=LEASE_S)
    await engine.settle([Settlement(dying.receipt, DeadLetter(reason="no", failure=failure()))])
    await lost(proxy, "after", engine.renew([held.receipt], lease_s=LEASE_S))
    assert await engine.renew([held.receipt], lease_s=LEASE_S) == [Settled.DONE]
    await lost(proxy, "after", engine.cancel([held.message.id]))
    assert await engine.renew([held.receipt], lease_s=LEASE_S) == [Settled.CANCEL_ASKED]
    await lost(proxy, "after", engine.purge(WORK))
    assert await engine.purge(WORK) == 0
    await lost(proxy, "after", engine.cancel_run(run))
    assert (await engine.cancel_run(run)).state == "cancelled"
    await lost(proxy, "after", engine.pause(WORK))
    assert (await engine.counts(WORK)).paused
    for work in (engine.sweep, lambda: engine.retain(history_s=0.0), lambda: engine.counts(WORK), engine.queues, engine.now, engine.workers):
        await lost(proxy, "after", work())
        await work()


async def test_a_hundred_cuts_anywhere_lose_nothing(through: str, postgres_url: str, proxy: Proxy) -> None:
    """Cut at any byte of either direction, reset, at any request: what was acknowledged is there once, and drained."""
    dice = random.Random(7)
    async with opened(through.replace("pool=1", "pool=4&timeout=5")) as engine:
        async with traffic(engine) as going:
            cuts = 0
            while cuts < 120:
                match dice.randrange(4):
                    case 0:
                        await asyncio.to_thread(proxy.cut_after, dice.randrange(1, 4000), Way.TO_SERVER)
                    case 1:
                        await asyncio.to_thread(proxy.cut_after, dice.randrange(1, 2000), Way.TO_CLIENT)
                    case 2:
                        await asyncio.to_thread(lambda: proxy.cut_at_request(dice.randrange(1, 4), when=dice.choice(("before", "after"))))
                    case _:
                        await asyncio.to_thread(proxy.reset)
                cuts += 1
                await more(going, 2)
            await asyncio.to_thread(proxy.pass_through)
        assert len(going.unsure) >= 40
        assert going.repeats >= 1
        going.assert_nothing_lost(postgres_url)


async def test_what_is_no_outage_is_not_repeated_for_ever(engine: PostgresEngine, postgres_url: str) -> None:
    """A verb that the server refuses for good is refused at once, and the connection is good for the next."""
    with pytest.raises(BeltlineError):
        await engine.receive([WORK], limit=1, lease_s=-1.0)
    await insist(lambda: engine.send([message()]))
    assert_sound(postgres_url)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_step_of_a_schedule_whose_answer_was_lost_is_taken_once(engine: PostgresEngine, proxy: Proxy, when: str) -> None:
    """Nothing is remembered: the next look finds it moved, or due."""
    await engine.put_schedules([schedule("tick", message(), every=1)], origin="operator")
    view = await engine.schedule("tick")
    now = view.stood_at
    while now <= view.stood_at:  # each look takes its time
        now = await engine.now()
    asked = Step(name="tick", revision=1, stood_at=view.stood_at, stands_at=now, next_at=now + 1.0, messages=(message(), message()))
    await lost(proxy, when, engine.step_schedules([asked]))
    moved, _ = await insist(lambda: engine.schedule("tick"))
    assert moved.stood_at == (asked.stands_at if when == "after" else view.stood_at)
    assert await engine.step_schedules([asked]) == [Stepped.STALE if when == "after" else Stepped.DONE]
    assert (await engine.counts(WORK)).ready == len(asked.messages)
