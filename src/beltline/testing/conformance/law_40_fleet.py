"""Every worker's last heartbeat is known, with its age on the engine's clock."""

from beltline.core.names import WorkerId
from beltline.core.views import WorkerView
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Time

POWERS = ("Fleet",)


def _worker(name: str, **fields: object) -> WorkerView:
    return WorkerView(
        **{  # type: ignore[arg-type]
            "id": name,
            "host": "photo-1",
            "pid": 4711,
            "started_at": 1_800_000_000.0,
            "age_s": 0.0,
            "state": "running",
            "queues": {"work": 4, "next": 2},
            "tasks": ("resize", "thumb"),
            "detail": {"version": "0.1.0", "runners": [{"pid": 4712, "rss_bytes": 2**33}]},
            **fields,
        }
    )


async def a_heartbeat_is_shown_as_it_was_given(engine: Full) -> None:
    await engine.beat(_worker("w1"))
    assert await engine.workers() == [_worker("w1")]


async def its_age_is_counted_by_the_engine(engine: Full, time: Time) -> None:
    await engine.beat(_worker("w1", age_s=1e9))
    time.advance(12.0)
    await engine.beat(_worker("w2"))
    time.advance(3.0)
    assert {view.id: view.age_s for view in await engine.workers()} == {"w1": 15.0, "w2": 3.0}


async def a_new_heartbeat_replaces_the_old_one(engine: Full, time: Time) -> None:
    await engine.beat(_worker("w1"))
    time.advance(10.0)
    await engine.beat(_worker("w1", state="draining"))
    assert await engine.workers() == [_worker("w1", state="draining")]


async def a_worker_that_left_is_forgotten(engine: Full) -> None:
    await engine.beat(_worker("w1"))
    await engine.beat(_worker("w2"))
    await engine.forget(WorkerId("w1"))
    await engine.forget(WorkerId("never"))
    assert [view.id for view in await engine.workers()] == ["w2"]


async def workers_are_listed_in_a_steady_order(engine: Full) -> None:
    for name in ("c", "a", "b"):
        await engine.beat(_worker(name))
    first = [view.id for view in await engine.workers()]
    await engine.beat(_worker("a"))
    assert [view.id for view in await engine.workers()] == first
    assert sorted(first) == ["a", "b", "c"]


async def a_heartbeat_settles_and_renews_nothing(engine: Full, time: Time) -> None:
    await kit.send_one(engine)
    await kit.take_one(engine, worker=WorkerId("w1"))
    time.advance(kit.LEASE_S)
    await engine.beat(_worker("w1"))
    assert (await kit.take_one(engine)).lost == 1


async def heartbeats_from_many_threads_are_all_there(engine: Full) -> None:
    await kit.in_threads(*(lambda number=number: engine.beat(_worker(f"w{number}")) for number in range(8)))
    assert len(await engine.workers()) == 8
