"""One round about the size of fleets: what is looked at, who is heard, what is remembered."""

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest

from beltline.core.chain import ChainPlan, End, StagePlan, To
from beltline.core.errors import Unsupported
from beltline.core.flow import Limit
from beltline.core.names import ChainName, QueueName, StageName, TaskName, WorkerId
from beltline.core.outcome import Ack, Settlement
from beltline.core.queues import Feed, QueueSpec
from beltline.core.scaling import Rules
from beltline.core.views import WorkerView
from beltline.engines.memory import MemoryEngine
from beltline.testing import ManualClock
from beltline.testing.conformance.kit import message, messages
from beltline.upkeep.sizing import Sizing, desired, live, offer, standing

WORK, NEXT = QueueName("work"), QueueName("next")
RULES = Rules(start_s=0.0)


def view(name: str = "w1", *, queues: Mapping[str, int] | None = None, age_s: float = 0.0, state: str = "up", **detail: Any) -> WorkerView:
    return WorkerView(
        id=name,
        host="photo-1",
        pid=1,
        started_at=0.0,
        age_s=age_s,
        state=state,
        queues=dict(queues or {"work": 2}),
        detail={"ranges": {"work": [2, 8]}, **detail},
    )


class Place:
    """An engine whose time is moved by hand, with the queues work and next."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = MemoryEngine(clock=self.clock)

    async def open(self, **numbers: Any) -> "Place":
        await self.engine.open()
        await self.engine.declare([QueueSpec(name=WORK, **numbers), QueueSpec(name=NEXT, high_water=10.0)])
        return self

    async def beat(self, *views: WorkerView) -> None:
        for each in views:
            await self.engine.beat(each)

    async def round(self, sizing: Sizing | None = None, queues: Iterable[QueueName] = (WORK,)) -> Any:
        self.clock.advance(2.0)
        return (await (sizing or Sizing(rules=RULES)).once(self.engine, queues))[WORK]


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    asyncio.run(made.engine.close())


async def test_a_fleet_starts_at_the_lower_ends_of_its_workers_and_ends_at_the_upper_ones(place: Place) -> None:
    await place.open()
    await place.beat(view("w1"), view("w2"))
    assert (await place.round()).slots == 4
    await place.engine.send(messages(1000, WORK))
    await place.beat(view("w1", service={"work": [10, 20.0, 40.0]}), view("w2"))
    size = await place.round()
    assert size.slots == 16
    [decision] = await place.engine.decisions(WORK, limit=1)
    assert (decision.before, decision.slots, decision.limit, decision.service_s, decision.runnable) == (4, 16, "range", 2.0, 1000)


async def test_a_worker_that_is_lost_or_drains_counts_for_nothing(place: Place) -> None:
    await place.open()
    await place.beat(view("w1"))
    place.clock.advance(11.0)
    await place.beat(view("w2"), view("w3", state="draining"))
    await place.engine.send(messages(1000, WORK))
    await place.beat(view("w2", service={"work": [1, 9.0, 81.0]}))
    assert (await place.round()).slots == 8


async def test_of_two_that_decide_on_one_turn_one_is_heard_and_both_follow(place: Place) -> None:
    await place.open()
    await place.beat(view())
    one, two = Sizing(by="w1", rules=RULES), Sizing(by="w2", rules=RULES)
    await place.engine.send(messages(100, WORK))
    place.clock.advance(2.0)
    first, second = await asyncio.gather(one.once(place.engine, [WORK]), two.once(place.engine, [WORK]))
    assert first == second
    assert (first[WORK].turn, standing(first[WORK]).trend.samples) == (1, 0)


async def test_nobody_decides_again_before_the_round_is_over(place: Place) -> None:
    await place.open()
    await place.beat(view())
    before = await place.round()
    place.clock.advance(1.0)
    assert (await Sizing().once(place.engine, [WORK]))[WORK] == before
    assert (await Sizing().once(place.engine, [WORK], urgent=[WORK]))[WORK].turn == before.turn + 1


async def test_an_operators_range_wins_and_is_followed_at_once(place: Place) -> None:
    await place.open()
    await place.beat(view())
    await place.round()
    await place.engine.set_range(WORK, 5, 6)
    size = (await Sizing(rules=RULES).once(place.engine, [WORK]))[WORK]
    assert size.slots == 5
    await place.engine.set_range(WORK, 0, 3)
    assert (await Sizing(rules=RULES).once(place.engine, [WORK]))[WORK].slots == 3


async def test_what_workers_have_told_is_counted_once(place: Place) -> None:
    await place.open()
    await place.beat(view("w1", service={"work": [2, 2.0, 2.0]}))
    await place.round()
    await place.round()
    await place.beat(view("w1", service={"work": [3, 5.0, 11.0]}), view("w2", service={"work": [1, 3.0, 9.0]}))
    known = standing(await place.round())
    assert known.service.count == 4
    assert known.service.mean_s == pytest.approx(8.0 / 4)
    assert known.answered == 4


async def test_delayed_messages_arrive_when_they_are_due(place: Place) -> None:
    await place.open()
    await place.beat(view())
    await place.round()
    await place.engine.send(messages(4, WORK, delay_s=5.0))
    assert standing(await place.round()).trend.per_s == 0.0
    place.clock.advance(5.0)
    assert standing(await place.round()).trend.per_s > 0.0


async def test_a_full_next_belt_lets_nothing_grow(place: Place) -> None:
    """One leased here brings two there: 8 ready and 2 on their way are the 10 of its high water."""
    await place.open(feeds=(Feed(NEXT, 2),))
    await place.beat(view(service={"work": [5, 50.0, 500.0]}))
    await place.round()
    await place.engine.send([*messages(200, WORK), *messages(8, NEXT)])
    await place.engine.receive([WORK], limit=1, lease_s=3600.0)
    size = await place.round()
    [decision] = await place.engine.decisions(WORK, limit=1)
    assert (size.slots, decision.limit) == (2, "next belt")
    for delivery in await place.engine.receive([NEXT], limit=8, lease_s=3600.0):
        await place.engine.settle([Settlement(delivery.receipt, Ack())])
    assert (await place.round()).slots == 5  # room for eight: four, beside the one that is leased


async def test_what_a_limit_of_the_queue_or_a_group_holds_back_asks_for_no_slots(place: Place) -> None:
    await place.open(limits=("api",))
    await place.engine.set_limit(Limit(name="api", rate=1.0, burst=1.0))
    service = {"work": [10, 50.0, 500.0], "next": [10, 50.0, 500.0]}
    await place.beat(view(queues={"work": 1, "next": 1}, ranges={"work": [1, 8], "next": [1, 8]}, service=service))
    await place.round(queues=(WORK, NEXT))
    await place.engine.send(messages(60, WORK))
    await place.engine.send(messages(60, NEXT, group="g"))
    await place.round(queues=(WORK, NEXT))
    assert {size.queue: size.slots for size in await place.engine.sizes()} == {WORK: 1, NEXT: 1}
    decisions = {each.queue: each for each in reversed(await place.engine.decisions())}
    for queue in (WORK, NEXT):
        assert (decisions[queue].runnable, decisions[queue].held, decisions[queue].limit) == (1, 59, "keys")
    assert "only 1 can run at once, 59 are held back by limits or by their groups" in decisions[NEXT].reason


async def test_a_queue_that_is_snoozed_or_tripped_asks_for_none_and_says_so(place: Place) -> None:
    await place.open()
    await place.beat(view(service={"work": [10, 50.0, 500.0]}))
    await place.engine.send(messages(60, WORK))
    await place.engine.snooze(WORK, seconds=600.0)
    size = await place.round()
    assert (size.slots, standing(size).reason.partition(";")[0]) == (2, "the queue is snoozed")


async def test_a_queues_target_says_how_soon(place: Place) -> None:
    await place.open(target_s=100.0)
    await place.beat(view(service={"work": [10, 10.0, 10.0]}))
    await place.engine.send(messages(400, WORK))
    assert (await place.round()).slots == 5  # 400 of a second within 100 - 2 s, and what arrives


async def test_a_line_target_is_split_over_the_stages(place: Place) -> None:
    await place.open()
    stages = [StagePlan(name=StageName(name), task=TaskName(name), queue=QueueName(name), param="x", next=what) for name, what in (("work", To(StageName("next"))), ("next", End()))]  # fmt: skip
    plan = ChainPlan(name=ChainName("album"), stages=tuple(stages), within_s=60.0)
    ranges = {"ranges": {"work": [1, 40], "next": [1, 40]}}
    await place.beat(view(queues={"work": 1, "next": 1}, **ranges, service={"work": [10, 10.0, 10.0], "next": [10, 90.0, 810.0]}))
    sizing = Sizing(plans=lambda: [plan], rules=RULES)
    await place.round(sizing, (WORK, NEXT))
    sizes = {size.queue: standing(size) for size in await place.engine.sizes()}
    assert sizes[WORK].target_s == pytest.approx(5.0)
    assert sizes[NEXT].target_s == pytest.approx(45.0)
    assert standing(await place.round(Sizing(rules=RULES))).target_s == pytest.approx(5.0)  # one without the app's plans goes on with it


async def test_a_line_target_that_nothing_can_keep_is_told(place: Place) -> None:
    await place.open()
    plan = ChainPlan(name=ChainName("album"), stages=(StagePlan(name=StageName("work"), task=TaskName("t"), queue=WORK, param="x", next=End()),), within_s=5.0)  # fmt: skip
    await place.beat(view(service={"work": [10, 100.0, 1000.0]}))
    await place.engine.send([message(WORK)])
    await place.round(Sizing(plans=lambda: [plan], rules=RULES))
    [decision] = await place.engine.decisions(WORK, limit=1)
    assert "chain album cannot be through within 5 s with any number of slots: its tasks alone take 10 s" in decision.reason


async def test_the_number_for_other_autoscalers_is_not_bound_by_what_lives(place: Place) -> None:
    await place.open()
    await place.beat(view(service={"work": [10, 10.0, 10.0]}))
    await place.round()
    await place.engine.send(messages(260, WORK))
    wanted = desired(await place.round())
    assert (wanted.slots, wanted.slots_each, wanted.workers) == (38, 8, 5)  # within the 8 s that are left, while 5 arrive each second


async def test_a_fleet_without_a_worker_is_sized_by_whoever_asks(place: Place) -> None:
    """Workers of 4 fixed slots, all stopped by another autoscaler; then a message comes."""
    await place.open()
    await place.beat(view("w1", ranges={}, queues={"work": 4}, service={"work": [10, 10.0, 10.0]}))
    await place.round()
    await place.engine.forget(WorkerId("w1"))
    assert desired(await place.round()).workers == 0
    await place.engine.send(messages(20, WORK))
    wanted = desired(await place.round())
    assert (wanted.slots, wanted.slots_each, wanted.workers) == (5, 4, 2)


async def test_a_host_without_memory_is_named_in_the_log(place: Place) -> None:
    await place.open()
    await place.beat(view(service={"work": [10, 10.0, 10.0]}, refusal="no free memory: 12 of the 2000 MiB"))
    await place.engine.send(messages(40, WORK))
    await place.round()
    [decision] = await place.engine.decisions(WORK, limit=1)
    assert "photo-1: no free memory: 12 of the 2000 MiB" in decision.reason


async def test_what_an_unknown_version_has_remembered_is_nothing(place: Place) -> None:
    await place.open()
    await place.beat(view())
    await place.engine.set_size(WORK, turn=0, slots=3, state=b"\xc1 not ours")
    assert (await place.round()).turn == 2


async def test_an_engine_that_keeps_no_sizes_is_refused() -> None:
    class Small:
        name = "small"

    with pytest.raises(Unsupported):
        await Sizing().once(Small(), [WORK])  # type: ignore[arg-type]


def test_offers_are_ranges_or_the_slots_that_are_fixed() -> None:
    assert offer(view(), WORK) == (2, 8)
    assert offer(view(ranges={}), WORK) == (2, 2)
    assert offer(view(), NEXT) is None
    assert live([view(age_s=math.inf), view("w2")]) == [view("w2")]
