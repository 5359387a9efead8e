"""A store with something of everything in it, to be moved, and two ends of a move."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from beltline.core.capabilities import Durability
from beltline.core.codec import pack
from beltline.core.flow import Claim, Flow, KillSwitch, Limit, Unique
from beltline.core.message import Message
from beltline.core.names import MessageId, QueueName
from beltline.core.outcome import Ack, Settled, Settlement
from beltline.core.policy import PARKED
from beltline.core.queues import Feed, QueueSpec
from beltline.core.schedule import LEFT_S, schedule
from beltline.core.views import MessageFilter
from beltline.engines.postgres import PostgresEngine
from beltline.engines.sqlite import SqliteEngine
from beltline.sending import new_id
from beltline.testing.clock import ManualClock
from beltline.testing.conformance import kit
from beltline.testing.conformance.kit import LAST, NEXT, OTHER, WORK
from beltline.upkeep.moving import Mover, MoveReport
from beltline.upkeep.scheduler import Scheduler
from tests.engines.postgres_kit import shared_server

DONE = QueueName("ended")
LANE = QueueName("lane")
HELD = QueueName("held")
SHAPED = QueueName("shaped")
SPECS = [
    QueueSpec(name=WORK, feeds=(Feed(NEXT, 3),), ageing_s=10.0),
    QueueSpec(name=NEXT, high_water=1000.0),
    QueueSpec(name=LAST),
    QueueSpec(name=OTHER, max_backlog=500.0),
    QueueSpec(name=DONE),
    QueueSpec(name=LANE, on_dead="skip"),
    QueueSpec(name=HELD),
    QueueSpec(name=SHAPED, on_dead="skip", limits=("gpu",), kill_switch=KillSwitch()),
]
_schemas = itertools.count(1)
_database: list[str] = []


def store(kind: str, folder: Path, clock: ManualClock | None = None) -> Any:
    """A new one of this kind, not open."""
    if kind == "sqlite":
        return SqliteEngine(folder / f"{new_id()}.db", clock=clock, durability=Durability.OS)
    return PostgresEngine(f"{database()}?schema=s{next(_schemas)}", clock=clock)


def database() -> str:
    server = shared_server("wheel")
    if not _database:
        _database.append(server.url(server.create_database()))
    return _database[0]


async def move(source: Any, target: Any, *, wait_s: float = 5.0, tell: Callable[[str], None] = lambda _: None) -> MoveReport:
    return await Mover(source, target, new_id=new_id(), tell=tell, wait_s=wait_s).run()


LONG = pack({"photo": "x" * 5000})  # a body that SQLite keeps beside its row


async def fill(engine: Any, clock: ManualClock) -> None:
    """Everything a store can hold. Leaves two leases behind that are over."""
    await engine.declare(SPECS)
    await forgotten(engine, clock)
    await plain(engine)
    await engine.send([kit.message(WORK, priority=5, headers={"a": "ä\u2028"}), kit.message(WORK, body=LONG), kit.message(WORK, delay_s=3600.0)])
    await engine.send([kit.message(OTHER, expires_s=9000.0), kit.message(OTHER, ready_at=clock.now() + 50.0, timeout_s=3.0)])
    await engine.send([kit.message(OTHER, dedup_key="kéy", dedup_window_s=7000.0)])
    await ended(engine)
    await runs(engine, clock)
    await lanes(engine)
    await engine.pause(HELD)
    await engine.snooze(HELD, seconds=5000.0)
    await engine.send(kit.messages(3, HELD))
    await schedules(engine, clock)
    await shaped(engine)
    held = await kit.take(engine, NEXT, limit=2, lease_s=20.0)
    await engine.progress([(held[0].receipt, pack(0.5))])
    await engine.cancel([held[1].message.id], reason="not needed")
    assert len(held) == 2
    clock.advance(25.0)


async def shaped(engine: Any) -> None:
    """Limits, and messages with a tenant, claims, a sticky and a unique key, in every state."""
    await engine.declare_limits([Limit(name="api", rate=5.0), Limit(name="gpu", concurrency=1)])
    await engine.set_limit(Limit(name="gpu", concurrency=3))
    flows = [
        Flow(tenant="t", claims=(Claim("gpu", "k"), Claim("api", cost=0.5))),
        Flow(sticky="s"),
        Flow(tenant="\u00fc", unique=Unique(key="u", replace=True, states=("ready",))),
    ]
    await engine.send(
        [kit.message(SHAPED, flow=flow, group=group, delay_s=delay_s) for flow in flows for group in (None, "g") for delay_s in (0.0, 4000.0)]
    )
    held = await kit.take(engine, SHAPED, limit=4, lease_s=20.0)
    await kit.ok(engine, held[0])
    await kit.bury(engine, held[1])
    await kit.retry(engine, held[2], 0.0)


async def forgotten(engine: Any, clock: ManualClock) -> None:
    """Ids whose history is over."""
    await engine.send([kit.message(DONE), kit.message(DONE)])
    await kit.finish(engine, DONE)
    clock.advance(3600.0)
    await engine.retain(history_s=60.0)


async def plain(engine: Any) -> None:
    await engine.send(kit.messages(20))
    delivery = await kit.take_one(engine)
    await kit.retry(engine, delivery, 0.0)
    delivery = await kit.take_one(engine)
    await kit.retry(engine, delivery, 100.0, lost=True)
    delivery = await kit.take_one(engine)
    await kit.release(engine, delivery, 30.0, PARKED)


async def ended(engine: Any) -> None:
    sent = [kit.message(DONE), kit.message(DONE), kit.message(DONE), kit.message(DONE), kit.message(DONE, group="g")]
    await engine.send(sent)
    results = [pack("small"), pack("x" * 3000), None]
    for result in results:
        await kit.ok(engine, await kit.take_one(engine, DONE), Ack(result=result, result_ttl_s=50_000.0, ran_s=0.25, note="well"))
    await kit.bury(engine, await kit.take_one(engine, DONE))
    await kit.bury(engine, await kit.take_one(engine, DONE), "no \x00 good")
    await engine.redrive(MessageFilter(ids=(sent[3].id,)), limit=1, queue=OTHER)
    dead = await kit.dead_one(engine, DONE, body=LONG)
    await engine.edit(dead.id, body=pack({"edited": True}))
    [gone] = await kit.send(engine, kit.message(DONE))
    await engine.cancel([gone.id], reason="by hand")


async def runs(engine: Any, clock: ManualClock) -> None:
    """A gather of five that waits for three, one answer dead; a nested one; a run that is done; one that was cancelled."""
    await empty(engine, WORK)
    await kit.split_run(engine, 5)
    parts = await kit.take(engine, NEXT, limit=5)
    await kit.answer(engine, parts[1], "b")
    await kit.answer(engine, parts[0], {"a": 1})
    await kit.bury(engine, parts[2])
    for part in parts[3:]:
        await kit.release(engine, part)
    [first] = await kit.send(engine, kit.placed())
    await kit.ok(engine, await kit.take_one(engine), Ack(result=pack("whole"), then=()))
    await engine.send([first])  # known already
    [other] = await kit.send(engine, kit.placed(priority=3))
    await engine.cancel_run(kit.run_of(other), reason="stop")
    await kit.split_run(engine, 3, on_dead="skip", then=None)
    await plain_work(engine)


async def schedules(engine: Any, clock: ManualClock) -> None:
    """One that has sent and skipped, one that is paused, one that left its code, one that cannot be sent."""
    message = kit.message(DONE, id=MessageId("1" * 32), headers={"by": "ä"})
    specs = [schedule(name, message, every=5.0) for name in ("sent", "paused", "error")] + [
        schedule("night", message, cron="30 2 * * *", tz="Europe/Berlin")
    ]
    specs[2] = structs.replace(specs[2], message=structs.replace(message, queue=QueueName("nobody")))
    await engine.put_schedules(specs, origin="operator")
    await engine.put_schedules([schedule("left", message, every=3600.0)], origin="code", owner="a:app")
    await engine.pause_schedule("paused", True)
    clock.advance(LEFT_S)
    await engine.put_schedules([], origin="code", owner="a:app")
    assert await Scheduler(lambda: engine).once() == 1
    await kit.finish(engine, DONE)


async def plain_work(engine: Any) -> None:
    await engine.send(kit.messages(10))


async def empty(engine: Any, queue: QueueName) -> None:
    """Nothing of it in the way of the next step: what is ready there is delayed a little."""
    for delivery in await kit.take(engine, queue, limit=100):
        await kit.release(engine, delivery, 40.0)


async def lanes(engine: Any) -> None:
    """Groups: with a head that was retried, with a dead head that holds and one that does not, and one that is leased."""
    for queue in (LANE, OTHER):
        await engine.send([kit.message(queue, group=group) for group in ("a", "b", "c") for _ in range(4)])
    delivery = await kit.take_one(engine, LANE)
    await kit.retry(engine, delivery, 5.0)
    await kit.bury(engine, await kit.take_one(engine, LANE))
    await kit.take(engine, LANE, limit=1, lease_s=10.0)
    while True:
        delivery = await kit.take_one(engine, OTHER)
        if delivery.message.group is not None:
            break
        await kit.release(engine, delivery, 45.0)
    await kit.bury(engine, delivery)


async def drain(engine: Any, clock: ManualClock) -> list[Message]:
    """Work everything off, parts with an answer, and let time pass: all deliveries, in order."""
    await engine.resume(HELD)
    seen: list[Message] = []
    for _ in range(8):
        for queue in (WORK, NEXT, LAST, OTHER, DONE, LANE, HELD, SHAPED):
            while deliveries := await kit.take(engine, queue, limit=50, lease_s=600.0):
                ends = []
                for delivery in deliveries:
                    place = delivery.message.place
                    part = pack(len(seen)) if place is not None and place.parts else None
                    seen.append(delivery.message)
                    ends.append(Settlement(delivery.receipt, Ack(part=part)))
                assert set(await engine.settle(ends)) == {Settled.DONE}
        await engine.redrive(MessageFilter(states=("dead",)), limit=100)
        clock.advance(3700.0)
    return seen
