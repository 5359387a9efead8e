"""Outages of the store: what runs goes on, nothing is lost, and a store that says nothing at all ends the worker."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from beltline.core.errors import BodyTooLarge, EngineUnavailable
from beltline.core.message import Delivery, Receipt
from beltline.core.names import QueueName
from beltline.core.outcome import Ack, Settled, Settlement
from beltline.engines.memory import MemoryEngine
from beltline.events import Events, MessageSettled
from beltline.worker import settler as settling
from beltline.worker.settler import Settler
from beltline.worker.store import Store, StoreStuck
from tests.worker import lines
from tests.worker.kit import counts, new_engine, result, run, send, until, worker


class FailingEngine(MemoryEngine):
    """The memory engine behind a line that can be cut. `lost_answers`: the next so many settles happen, but their answers do not arrive."""

    cut = False
    silent = False
    lost_answers = 0
    refusals = 0

    async def _pass(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.cut:
            self.refusals += 1
            raise EngineUnavailable("The line is cut.", effect="none")

    async def receive(self, *given: Any, **options: Any) -> list[Delivery]:
        await self._pass()
        return await super().receive(*given, **options)

    async def renew(self, receipts: Sequence[Receipt], *, lease_s: float) -> list[Settled]:
        await self._pass()
        return await super().renew(receipts, lease_s=lease_s)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        await self._pass()
        answers = await super().settle(settlements)
        if self.lost_answers:
            self.lost_answers -= 1
            raise EngineUnavailable("The answer was lost.", effect="unknown")
        return answers


async def failing() -> FailingEngine:
    engine = FailingEngine()
    await engine.open()
    await engine.declare(lines.app.specs())
    return engine


async def test_a_worker_receives_again_when_the_store_is_back() -> None:
    """Row 10 of the pains: the worker lives but receives nothing after the store blinked."""
    engine = await failing()
    async with worker(engine, "work"):
        assert await run(engine, lines.double.call(1)) == 2
        engine.cut = True
        [id] = await send(engine, lines.double.call(2))
        await until(lambda: engine.refusals > 2)
        engine.cut = False
        assert await result(engine, id) == 4


async def test_outcomes_wait_for_the_store_and_are_settled_once() -> None:
    engine = await failing()
    async with worker(engine, "work") as supervisor:
        [id] = await send(engine, lines.pause_then.call(5, 0.05))
        await until(lambda: supervisor.crew.children[0].busy)
        engine.cut = True
        await until(lambda: supervisor.settler.waiting and engine.refusals > 2)
        engine.cut = False
        assert await result(engine, id) == 5
    view = await engine.get(id)
    assert [attempt.outcome for attempt in view.attempts] == ["succeeded"]


async def test_a_settle_whose_answer_was_lost_is_repeated_and_changes_nothing() -> None:
    """F14."""
    engine = await failing()
    async with worker(engine, "work"):
        engine.lost_answers = 2
        ids = await send(engine, *(lines.double.call(n) for n in range(20)))
        assert [await result(engine, id) for id in ids] == [2 * n for n in range(20)]
    assert (await counts(engine, "work")).done == 20


async def test_leases_that_cannot_be_renewed_stop_their_tasks(tmp_path: Any) -> None:
    """Later than half a lease beyond its time, a delivery may be somebody else's: it is stopped, and one settle is still tried."""
    engine = await failing()
    async with worker(engine, "gate", lease_s=0.6):
        [id] = await send(engine, lines.gate.call(str(tmp_path)))
        await until((tmp_path / f"started-{id}-1").exists)
        engine.cut = True
        await until((tmp_path / f"stopped-{id}").exists)
        (tmp_path / "go").touch()
        engine.cut = False
        assert await result(engine, id)


async def test_a_store_that_says_nothing_is_built_anew_and_then_given_up() -> None:
    engine = await failing()
    engine.silent = True
    built: list[MemoryEngine] = []

    def again() -> MemoryEngine:
        built.append(engine)
        return engine

    store = Store(engine, again, patience_s=0.01)
    with pytest.raises(StoreStuck):
        await _ask_for_ever(store)
    assert len(built) == 3


async def _ask_for_ever(store: Store) -> None:
    while True:
        with contextlib.suppress(EngineUnavailable):
            await store.ask("receive", lambda engine: engine.receive([QueueName("work")], limit=1, lease_s=1.0))


async def leased(engine: MemoryEngine, number: int) -> list[Delivery]:
    await send(engine, *(lines.double.call(n) for n in range(number)))
    return await engine.receive([QueueName("work")], limit=number, lease_s=30.0)


async def test_slots_wait_while_the_settler_is_full_and_go_on_when_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills up while a batch is in flight: exactly then nobody else would wake the slots."""
    monkeypatch.setattr(settling, "FULL", 10)
    monkeypatch.setattr(settling, "BATCH", 5)
    engine = await failing()
    deliveries = await leased(engine, 12)
    woken: list[int] = []
    settler = Settler(Store(engine, None), Events(), {}, on_room=lambda: woken.append(settler.waiting))
    settlements = [Settlement(delivery.receipt, Ack()) for delivery in deliveries]
    engine.cut = True
    async with asyncio.TaskGroup() as group:
        running = group.create_task(settler.run())
        settler.add(deliveries[:6], settlements[:6])
        await until(lambda: engine.refusals)
        assert not settler.full
        settler.add(deliveries[6:], settlements[6:])
        assert settler.full
        engine.cut = False
        await settler.flush()
        running.cancel()
    assert woken == [7]
    assert settler.settled == 12


async def test_one_settlement_that_cannot_be_written_becomes_a_dead_letter_and_the_others_are_settled() -> None:
    class Narrow(FailingEngine):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
            if any(isinstance(each.outcome, Ack) and each.outcome.result == b"large" for each in settlements):
                raise BodyTooLarge(size_bytes=5, limit_bytes=4)
            return await super().settle(settlements)

    engine = Narrow()
    await engine.open()
    await engine.declare(lines.app.specs())
    deliveries = await leased(engine, 3)
    events = Events()
    seen: list[MessageSettled] = []
    events.listen(seen.extend)
    settler = Settler(Store(engine, None), events, {}, on_room=lambda: None)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(settler.run())
        settler.add(deliveries, [Settlement(d.receipt, Ack(result=b"large" if n == 1 else b"\x01")) for n, d in enumerate(deliveries)])
        await settler.flush()
        running.cancel()
    seen_counts = await counts(engine, "work")
    assert (seen_counts.done, seen_counts.dead) == (2, 1)
    assert "limit is 4" in (await engine.get(deliveries[1].message.id)).why


async def test_facts_are_told_only_of_what_the_store_has_taken() -> None:
    engine = await new_engine()
    deliveries = await leased(engine, 2)
    await engine.settle([Settlement(deliveries[0].receipt, Ack())])
    events = Events()
    seen: list[MessageSettled] = []
    events.listen(seen.extend)
    settler = Settler(Store(engine, None), events, {}, on_room=lambda: None)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(settler.run())
        for delivery in deliveries:
            settler.end(delivery, Ack())
        await settler.flush()
        running.cancel()
    assert [event.message_id for event in seen] == [deliveries[1].message.id]
    assert (settler.settled, settler.lost) == (1, 1)
