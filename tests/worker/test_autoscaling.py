"""A worker whose slots are a range, from zero, under load, and by an operator's word."""

from pathlib import Path

from beltline.core.names import QueueName
from tests.worker import lines
from tests.worker.kit import counts, ended, new_engine, send, until, worker

GATE, WORK = QueueName("gate"), QueueName("work")


async def test_a_fleet_of_nothing_wakes_at_the_first_message_and_grows_while_messages_wait() -> None:
    engine = await new_engine()
    async with worker(engine, queues={"work": (0, 6)}) as supervisor:
        assert supervisor.resizing.size(WORK) == 0
        ids = await send(engine, *(lines.pause_then.call(n, 0.5) for n in range(80)))
        await until(lambda: supervisor.resizing.size(WORK) == 6)
        for id in ids:
            assert (await ended(engine, id, within_s=40.0)).outcome == "succeeded"
        assert [(await engine.get(id)).epoch for id in ids] == [1] * 80
    made = await engine.decisions(WORK)
    sizes = [made[-1].before, *(decision.slots for decision in reversed(made))]
    assert (sizes[0], sizes[-1]) == (0, 6)
    assert sizes == sorted(sizes)
    assert {decision.by for decision in made} == {supervisor.id}
    assert made[0].service_s >= 0.5


async def test_an_order_to_shrink_stops_nothing_that_runs(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, queues={"gate": (4, 8)}) as supervisor:
        ids = await send(engine, *(lines.gate.call(str(tmp_path)) for _ in range(4)))
        await until(lambda: supervisor.resizing.busy(GATE) == 4)
        await engine.set_range(GATE, 1, 1)
        await until(lambda: supervisor.resizing.size(GATE) == 1)
        assert supervisor.resizing.busy(GATE) == 4
        (tmp_path / "go").touch()
        for id in ids:
            assert (await ended(engine, id)).outcome == "succeeded"
            assert (await engine.get(id)).epoch == 1
        await until(lambda: supervisor.resizing.busy(GATE) == 0)


async def test_two_workers_hold_together_what_was_decided() -> None:
    engine = await new_engine()
    async with worker(engine, queues={"work": (0, 6)}) as one, worker(engine, queues={"work": (0, 6)}) as two:
        await engine.set_range(WORK, 7, 7)
        await until(lambda: one.resizing.size(WORK) + two.resizing.size(WORK) == 7)
        assert {one.resizing.size(WORK), two.resizing.size(WORK)} == {3, 4}


async def test_a_message_that_is_through_at_once_leaves_its_decision() -> None:
    engine = await new_engine()
    async with worker(engine, queues={"work": (0, 2)}) as supervisor:
        [id] = await send(engine, lines.double.call(4))
        assert (await ended(engine, id)).outcome == "succeeded"

        async def told() -> bool:
            return bool(await engine.decisions(WORK))

        await until(told)
        await until(lambda: supervisor.resizing.size(WORK) == 1)
    decision = (await engine.decisions(WORK))[-1]
    assert (decision.before, decision.slots, decision.term) == (0, 1, "first message")


async def test_a_dry_run_is_not_woken() -> None:
    engine = await new_engine()
    async with worker(engine, queues={"work": (0, 2)}, dry_run=True) as supervisor:
        [id] = await send(engine, lines.double.call(4))

        async def told() -> bool:
            return any(each.slots == 1 and each.by.endswith("(dry run)") for each in await engine.decisions(WORK))

        await until(told)
        view = await engine.get(id)
        assert (view.state, view.epoch, supervisor.resizing.size(WORK)) == ("ready", 0, 0)


async def test_many_messages_of_one_group_do_not_make_a_fleet_grow(tmp_path: Path) -> None:
    engine = await new_engine()
    async with worker(engine, queues={"gate": (1, 8)}) as supervisor:
        ids = await send(engine, *(lines.gate.call(str(tmp_path)) for _ in range(30)), group="g")

        async def looked_at() -> bool:
            sizes = await engine.sizes()
            return bool(sizes) and sizes[0].turn >= 3 and (await counts(engine, "gate")).leased == 1

        await until(looked_at)
        assert [decision.limit for decision in await engine.decisions(GATE) if decision.slots > 1] == []
        assert supervisor.resizing.size(GATE) == 1
        (tmp_path / "go").touch()
        assert (await ended(engine, ids[0])).outcome == "succeeded"


async def test_a_dry_run_leaves_the_slots_as_they_are() -> None:
    engine = await new_engine()
    async with worker(engine, queues={"work": (1, 6)}, dry_run=True) as supervisor:
        ids = await send(engine, *(lines.pause_then.call(n, 0.1) for n in range(40)))
        await engine.set_range(WORK, 5, 5)

        async def told() -> bool:
            return any(each.slots == 5 for each in await engine.decisions(WORK))

        await until(told)
        for id in ids:
            await ended(engine, id)
        assert supervisor.resizing.size(WORK) == 1
