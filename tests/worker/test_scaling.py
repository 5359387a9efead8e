"""A worker follows the size of its fleet: its share, in the right order, within what its host has room for."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from beltline.core.names import QueueName
from beltline.core.queues import QueueSpec
from beltline.core.scaling import Rules
from beltline.core.views import WorkerView
from beltline.engines.memory import MemoryEngine
from beltline.engines.protocol import Engine
from beltline.testing import ManualClock
from beltline.testing.conformance.kit import messages
from beltline.worker.scaling import Scaling
from beltline.worker.store import Store

WORK, NEXT = QueueName("work"), QueueName("next")
RULES = Rules(start_s=0.0)


class Slots:
    """A worker's slots without the worker: `room` is what its host allows all queues together."""

    def __init__(self, name: str, ranges: Mapping[QueueName, tuple[int, int]], *, room: int = 100) -> None:
        self.name = name
        self.room = room
        self.asked: list[tuple[QueueName, int, bool]] = []
        self.reasons: list[str] = []
        self._ranges = ranges
        self._slots = {queue: least for queue, (least, _) in ranges.items()}
        self._refusal = ""

    def ranges(self) -> Mapping[QueueName, tuple[int, int]]:
        return self._ranges

    def size(self, queue: QueueName) -> int:
        return self._slots[queue]

    def resize(self, queue: QueueName, slots: int, *, listen: bool = True, why: str = "") -> int:
        if slots != self._slots[queue]:
            self.asked.append((queue, slots, listen))
            self.reasons.append(why)
        others = sum(each for name, each in self._slots.items() if name != queue)
        self._slots[queue] = min(slots, max(self._slots[queue], self.room - others))
        self._refusal = "" if self._slots[queue] == slots else "no free memory: 12 of the 2000 MiB"
        return self._slots[queue]

    def refusal(self) -> str:
        return self._refusal

    def view(self, **service: tuple[int, float, float]) -> WorkerView:
        detail: dict[str, object] = {"ranges": self._ranges, "service": service, "refusal": self._refusal}
        return WorkerView(id=self.name, host="photo-1", pid=1, started_at=0.0, age_s=0.0, state="up", queues=dict(self._slots), detail=detail)


class Hall:
    """Workers on one memory engine, whose time is moved by hand. `seconds`: what a delivery of each queue takes."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = MemoryEngine(clock=self.clock)
        self.workers: list[tuple[Slots, Scaling]] = []
        self.seconds = {"work": 1.0, "next": 1.0}

    async def open(self, *workers: Slots, **options: Any) -> None:
        await self.engine.open()
        await self.engine.declare([QueueSpec(name=WORK), QueueSpec(name=NEXT)])
        self.workers = [(slots, Scaling(Store(self.engine, None), slots, worker=slots.name, rules=RULES, **options)) for slots in workers]
        await self.round()

    async def round(self) -> None:
        for slots, _ in self.workers:
            await self.engine.beat(slots.view(**{queue: (10, 10 * each_s, 10 * each_s**2) for queue, each_s in self.seconds.items()}))
        self.clock.advance(2.0)
        for _, scaling in self.workers:
            await scaling.once()


@pytest.fixture
def hall() -> Iterator[Hall]:
    made = Hall()
    yield made
    asyncio.run(made.engine.close())


async def test_one_worker_takes_all_that_was_decided(hall: Hall) -> None:
    slots = Slots("w1", {WORK: (2, 8)})
    await hall.open(slots)
    assert slots.size(WORK) == 2
    await hall.engine.send(messages(500, WORK))
    await hall.round()
    assert slots.size(WORK) == 8


async def test_many_workers_share_what_was_decided_exactly(hall: Hall) -> None:
    workers = [Slots(f"w{number}", {WORK: (0, 8)}) for number in range(3)]
    await hall.open(*workers)
    await hall.engine.send(messages(100, WORK))
    await hall.round()
    [size] = await hall.engine.sizes()
    assert 8 < size.slots < 24
    assert sum(slots.size(WORK) for slots in workers) == size.slots
    assert max(slots.size(WORK) for slots in workers) - min(slots.size(WORK) for slots in workers) <= 1


async def test_those_that_stay_take_over_the_share_of_one_that_is_lost(hall: Hall) -> None:
    workers = [Slots(f"w{number}", {WORK: (0, 40)}) for number in range(3)]
    await hall.open(*workers)
    await hall.engine.send(messages(100, WORK))
    await hall.round()
    [before] = await hall.engine.sizes()
    hall.workers.pop()
    hall.clock.advance(11.0)
    await hall.round()
    [size] = await hall.engine.sizes()
    assert size.slots >= before.slots
    assert sum(slots.size(WORK) for slots in workers[:2]) == size.slots


async def test_an_operators_range_goes_beyond_what_workers_were_started_with(hall: Hall) -> None:
    slots = Slots("w1", {WORK: (2, 4)})
    await hall.open(slots)
    await hall.engine.set_range(WORK, 10, 10)
    await hall.round()
    assert slots.size(WORK) == 10
    await hall.engine.set_range(WORK, 0, 1)
    await hall.round()
    assert slots.size(WORK) == 1
    await hall.engine.clear_range(WORK)
    await hall.round()
    assert slots.size(WORK) == 2


async def test_only_a_fleet_that_is_at_zero_listens_for_its_first_message(hall: Hall) -> None:
    workers = [Slots(f"w{number}", {WORK: (0, 4)}) for number in range(2)]
    await hall.open(*workers)
    await hall.engine.send(messages(1, WORK))
    await hall.round()
    assert sorted(slots.size(WORK) for slots in workers) == [0, 1]
    listening: list[bool] = []
    for slots in workers:
        original = slots.resize

        def resize(queue: QueueName, number: int, *, listen: bool = True, why: str = "", original: Any = original) -> int:
            listening.append(listen)
            return int(original(queue, number, listen=listen))

        slots.resize = resize  # type: ignore[method-assign]
    await hall.round()
    assert listening == [False, False]


async def test_the_queue_that_misses_its_target_most_comes_first_when_the_host_is_full(hall: Hall) -> None:
    slots = Slots("w1", {WORK: (1, 20), NEXT: (1, 20)}, room=12)
    await hall.open(slots)
    await hall.engine.send(messages(80, NEXT))
    hall.clock.advance(20.0)
    await hall.engine.send(messages(400, WORK))
    await hall.round()
    assert [queue for queue, _, _ in slots.asked] == [NEXT, WORK]
    assert slots.size(NEXT) == 11
    assert slots.size(WORK) == 1


async def test_what_was_refused_is_asked_for_again(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    slots = Slots("w1", {WORK: (1, 20)}, room=3)
    await hall.open(slots)
    await hall.engine.send(messages(400, WORK))
    await hall.round()
    await hall.round()
    assert slots.size(WORK) == 3
    assert caplog.text.count("no free memory") == 1
    slots.room = 100
    await hall.round()
    assert slots.size(WORK) == 20
    [decision] = [each for each in await hall.engine.decisions(WORK) if "photo-1: no free memory" in each.reason]
    assert decision.slots == 20


async def test_the_reason_of_a_change_is_handed_on_and_told_by_who_makes_it(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "beltline")
    slots = Slots("w1", {WORK: (2, 8)})
    await hall.open(slots)
    await hall.engine.send(messages(500, WORK))
    await hall.round()
    [decision] = [each for each in await hall.engine.decisions(WORK) if each.slots == 8]
    assert slots.reasons == [f"8 in the fleet, {decision.reason}"]
    assert not [record for record in caplog.records if " slots" in record.getMessage()]


async def test_a_dry_run_decides_and_records_and_changes_nothing(hall: Hall) -> None:
    slots = Slots("w1", {WORK: (2, 8)})
    await hall.open(slots, dry_run=True)
    await hall.engine.send(messages(500, WORK))
    await hall.round()
    assert (slots.size(WORK), slots.asked) == (2, [])
    decision, _ = await hall.engine.decisions(WORK)
    assert (decision.slots, decision.by) == (8, "w1 (dry run)")


async def test_on_an_engine_that_keeps_no_sizes_a_range_is_its_upper_end(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beltline.worker.scaling.ROUND_S", 0.01)

    class Small:
        name = "small"

    engine: Engine = Small()  # type: ignore[assignment]
    slots = Slots("w1", {WORK: (2, 8)})
    async with asyncio.timeout(20):
        await Scaling(Store(engine, None), slots, worker="w1").run()
    assert slots.size(WORK) == 8
