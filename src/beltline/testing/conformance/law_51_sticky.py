"""Messages with one sticky key go to one worker while it lives; when a worker comes or goes, only the keys it keeps move, and without workers everybody may have them."""

from beltline.core.flow import MEMBER_S, Claim, keeper
from beltline.core.message import Message
from beltline.core.names import QueueName, WorkerId
from beltline.core.views import WorkerView
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness, Time
from beltline.testing.conformance.kit import NEXT, WORK

POWERS = ("Limits", "Fleet", "Control")

NAMES = ("w1", "w2", "w3")
KEYS = tuple(f"model-{number}" for number in range(24))


async def _beat(engine: Full, *names: str, state: str = "up", queues: tuple[QueueName, ...] = (WORK,)) -> None:
    for name in names:
        view = WorkerView(id=name, host="h", pid=1, started_at=0.0, age_s=0.0, state=state, queues={str(queue): 4 for queue in queues})
        await engine.beat(view)


async def _send(engine: Full, *keys: str, **options: object) -> list[Message]:
    return await kit.send(engine, *(kit.shaped(sticky=key, **options) for key in keys))  # type: ignore[arg-type]


async def _keys(engine: Full, worker: str, *, queue: QueueName = WORK) -> set[str]:
    """The sticky keys of all that this worker is given; released at once."""
    deliveries = await kit.take(engine, queue, worker=WorkerId(worker))
    for delivery in deliveries:
        await kit.release(engine, delivery)
    return {delivery.message.flow.sticky for delivery in deliveries if delivery.message.flow}


def _kept(worker: str, *members: str) -> set[str]:
    return {key for key in KEYS if keeper(key, sorted(members)) == worker}


async def each_worker_is_given_the_keys_it_keeps(engine: Full) -> None:
    await _beat(engine, *NAMES)
    await _send(engine, *KEYS)
    for name in NAMES:
        assert await _keys(engine, name) == _kept(name, *NAMES)


async def every_key_has_one_keeper_and_every_worker_some(engine: Full) -> None:
    await _beat(engine, *NAMES)
    await _send(engine, *KEYS)
    kept = [await _keys(engine, name) for name in NAMES]
    assert all(kept)
    assert sorted(key for keys in kept for key in keys) == sorted(KEYS)


async def a_stranger_is_given_none_of_them(engine: Full) -> None:
    await _beat(engine, *NAMES)
    await _send(engine, *KEYS)
    free = await kit.send_one(engine)
    assert kit.ids(await kit.take(engine, worker=WorkerId("stranger"))) == [free.id]


async def without_workers_everybody_may_have_them(engine: Full) -> None:
    sent = await _send(engine, *KEYS[:5])
    assert kit.ids(await kit.take(engine)) == [message.id for message in sent]


async def when_a_worker_goes_only_its_keys_move(engine: Full) -> None:
    await _beat(engine, *NAMES)
    await _send(engine, *KEYS)
    before = {name: await _keys(engine, name) for name in NAMES}
    await engine.forget(WorkerId("w2"))
    after = {name: await _keys(engine, name) for name in ("w1", "w3")}
    assert all(before[name] <= after[name] for name in after)
    assert after["w1"] | after["w3"] == set(KEYS)
    assert await _keys(engine, "w2") == set()


async def when_a_worker_comes_it_takes_only_what_it_keeps(engine: Full) -> None:
    await _beat(engine, "w1", "w2")
    await _send(engine, *KEYS)
    before = {name: await _keys(engine, name) for name in ("w1", "w2")}
    await _beat(engine, "w3")
    new = await _keys(engine, "w3")
    assert new == _kept("w3", *NAMES)
    for name in ("w1", "w2"):
        assert await _keys(engine, name) == before[name] - new


async def a_worker_without_a_heartbeat_loses_its_keys_in_time(engine: Full, time: Time) -> None:
    await _beat(engine, "w1", "w2")
    await _send(engine, *KEYS)
    time.advance(MEMBER_S)
    await _beat(engine, "w1")
    assert await _keys(engine, "w1") == _kept("w1", "w1", "w2")
    time.advance(0.25)
    assert await _keys(engine, "w1") == set(KEYS)


async def workers_that_are_not_up_or_serve_other_queues_keep_none(engine: Full) -> None:
    await _beat(engine, "w1")
    await _beat(engine, "w2", state="draining")
    await _beat(engine, "w3", queues=(NEXT,))
    await _send(engine, *KEYS)
    assert await _keys(engine, "w1") == set(KEYS)


async def a_queue_has_keepers_of_its_own(engine: Full) -> None:
    await _beat(engine, "w1", queues=(WORK, NEXT))
    await _beat(engine, "w2", queues=(NEXT,))
    await kit.send(engine, *(kit.shaped(queue, sticky=key) for queue in (WORK, NEXT) for key in KEYS))
    assert await _keys(engine, "w1") == set(KEYS)
    assert await _keys(engine, "w2", queue=NEXT) == _kept("w2", "w1", "w2")


async def what_its_keeper_holds_is_its_own_until_it_ends(engine: Full) -> None:
    await _beat(engine, "w1")
    await _send(engine, KEYS[0])
    held = await kit.take_one(engine, worker=WorkerId("w1"))
    await engine.forget(WorkerId("w1"))
    await _beat(engine, "w2")
    assert await kit.take(engine, worker=WorkerId("w2")) == []
    await kit.ok(engine, held)


async def a_lease_that_is_over_goes_to_whoever_comes(engine: Full, time: Time) -> None:
    """Its keeper may be the one that has died; the safety of what is leased does not wait for heartbeats."""
    await _beat(engine, "w1")
    await _send(engine, KEYS[0])
    await kit.take_one(engine, worker=WorkerId("w1"), lease_s=5.0)
    time.advance(5.0)
    assert (await kit.take_one(engine, worker=WorkerId("w2"))).lost == 1


async def a_key_keeps_the_order_of_its_messages(engine: Full) -> None:
    await _beat(engine, "w1")
    sent = await _send(engine, "a", "b", "a", "b", "a")
    assert kit.ids(await kit.take(engine, worker=WorkerId("w1"))) == [message.id for message in sent]


async def a_tenants_part_is_one_for_each_keeper(engine: Full) -> None:
    await _beat(engine, *NAMES)
    keys = sorted(_kept("w1", *NAMES))
    await kit.send(engine, *(kit.shaped(tenant=tenant, sticky=keys[0]) for tenant in "tttuu"))
    await kit.send(engine, *(kit.shaped(tenant="u") for _ in range(2)))
    assert kit.tenants(await kit.take(engine, worker=WorkerId("w2"))) == "uu"
    assert kit.tenants(await kit.take(engine, worker=WorkerId("w1"))) == "tutut"


async def the_weight_of_a_tenant_is_one_whatever_its_keys(engine: Full) -> None:
    await _beat(engine, "w1")
    await kit.send(engine, *(kit.shaped(tenant=tenant, sticky="a") for tenant in "tu" for _ in range(6)))
    await kit.send(engine, kit.shaped(tenant="t", weight=0.5))
    assert kit.tenants(await kit.take(engine, limit=8, worker=WorkerId("w1"))) == "ttuutuut"


async def sticky_messages_of_nobody_take_turns_beside_the_others(engine: Full) -> None:
    await _beat(engine, "w1")
    await kit.send(engine, *kit.messages(2), *(kit.shaped(sticky="a") for _ in range(2)))
    deliveries = await kit.take(engine, worker=WorkerId("w1"))
    assert [delivery.message.flow is not None for delivery in deliveries] == [False, True, False, True]


async def a_sticky_message_waits_for_its_limits_too(engine: Full) -> None:
    await _beat(engine, "w1")
    await kit.set_limit(engine, concurrency=1)
    await _send(engine, "a", "a", claims=[Claim(kit.API)])
    assert len(await kit.take(engine, worker=WorkerId("w1"))) == 1
    assert await kit.take(engine, worker=WorkerId("w1")) == []


async def no_key_is_lost_among_workers_that_come_and_go(engine: Full, time: Time) -> None:
    dice, sent, done = kit.dice(51), 0, 0
    for _ in range(60):
        sent += len(await _send(engine, *dice.choices(KEYS, k=dice.randint(0, 3)), tenant=dice.choice(("", "t"))))
        name = dice.choice(NAMES)
        await (_beat(engine, name) if dice.random() < 0.6 else engine.forget(WorkerId(name)))
        for delivery in await kit.take(engine, limit=dice.randint(1, 5), worker=WorkerId(dice.choice(NAMES))):
            await kit.ok(engine, delivery)
            done += 1
        time.advance(dice.choice((0.0, 1.0, 6.0)))
    for name in NAMES:
        await engine.forget(WorkerId(name))
    assert done + len(await kit.finish(engine)) == sent
    assert done > 0


async def keepers_are_the_same_after_a_restart(engine: Full, harness: Harness) -> None:
    await _beat(engine, *NAMES)
    await _send(engine, *KEYS)
    before = await _keys(engine, "w1")
    again: Full = await harness.restart(engine)  # type: ignore[assignment]
    assert await _keys(again, "w1") == before
    await again.close()
