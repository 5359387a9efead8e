"""Why is it not running? Every rule, from the store's facts to the sentence, on the memory engine with a clock moved by hand."""

import math
from typing import Any

import pytest
from msgspec import structs

from beltline.core.errors import NotFound, QueueNotDeclared
from beltline.core.flow import Claim, Flow, KillSwitch, Limit
from beltline.core.message import Delivery, Message
from beltline.core.names import MessageId, QueueName, TaskName, WorkerId
from beltline.core.outcome import Ack, Cause, DeadLetter, Failure, Outcome, Release, RetryAfter, Settlement
from beltline.core.policy import PARKED
from beltline.core.queues import Feed, QueueSpec
from beltline.core.views import WorkerView
from beltline.engines.memory import MemoryEngine
from beltline.monitor.explain import Why, explain
from beltline.monitor.queues import QueueWhy, explain_queue, summary
from beltline.sending import new_id
from beltline.testing import ManualClock

WORK, NEXT = QueueName("work"), QueueName("next")
TASK = TaskName("tasks.work")
FAILURE = Failure(Cause.ERROR, "ValueError", "no good")


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = MemoryEngine(clock=self.clock)

    async def begin(self, **numbers: Any) -> "Bench":
        await self.engine.open()
        await self.engine.declare([QueueSpec(name=WORK, **numbers), QueueSpec(name=NEXT)])
        return self

    async def worker(self, id: str = "w1", *, slots: int = 4, tasks: tuple[str, ...] = (TASK,), queue: str = WORK, state: str = "up") -> None:
        await self.engine.beat(WorkerView(id=id, host="h", pid=1, started_at=0.0, age_s=0.0, state=state, queues={queue: slots}, tasks=tasks))

    async def send(self, count: int = 1, queue: QueueName = WORK, **more: Any) -> list[MessageId]:
        messages = [Message(id=new_id(), queue=queue, task=TASK, body=b"\x80", **more) for _ in range(count)]
        return [sent.id for sent in await self.engine.send(messages)]

    async def lease(self, limit: int = 1, *, worker: str = "w1", lease_s: float = 30.0) -> list[Delivery]:
        return await self.engine.receive([WORK], limit=limit, lease_s=lease_s, worker=WorkerId(worker))

    async def end(self, delivery: Delivery, outcome: Outcome) -> None:
        await self.engine.settle([Settlement(delivery.receipt, outcome)])

    async def why(self, id: MessageId) -> Why:
        return (await explain(self.engine, id))[1]

    async def queue(self) -> QueueWhy:
        return await explain_queue(self.engine, WORK)


async def test_an_id_that_was_never_sent_and_a_queue_nobody_declared_are_not_found() -> None:
    bench = await Bench().begin()
    with pytest.raises(NotFound):
        await explain(bench.engine, new_id())
    with pytest.raises((NotFound, QueueNotDeclared)):
        await explain_queue(bench.engine, QueueName("nowhere"))


async def test_how_it_ended() -> None:
    bench = await Bench().begin()
    [done] = await bench.send()
    await bench.end((await bench.lease())[0], Ack())
    assert await bench.why(done) == Why(rule="done", why="it ended as succeeded")
    [dead] = await bench.send()
    await bench.end((await bench.lease())[0], DeadLetter(reason="failed after 1 attempt", failure=FAILURE))
    found = await bench.why(dead)
    assert (found.rule, found.why) == ("dead", "failed after 1 attempt (ValueError: no good)")
    assert f"beltline dead redrive {dead}" in found.help
    [late] = await bench.send(expires_s=5.0)
    bench.clock.advance(6)
    await bench.engine.sweep()
    found = await bench.why(late)
    assert (found.rule, "no worker had begun it" in found.why) == ("expired", True)


async def test_it_runs_or_its_lease_is_over() -> None:
    bench = await Bench().begin()
    [id] = await bench.send()
    await bench.lease()
    found = await bench.why(id)
    assert (found.rule, found.why, found.opens_at) == ("running", "it is running at w1, lease left 30 s", bench.clock.now() + 30)
    await bench.engine.cancel([id])
    assert "cancellation was asked for" in (await bench.why(id)).why


async def test_a_worker_that_is_not_heard_of_is_told_before_it_counts_as_lost() -> None:
    bench = await Bench().begin()
    await bench.worker()
    leased, ready = await bench.send(2)
    await bench.lease()
    bench.clock.advance(9)
    assert [(await bench.why(id)).rule for id in (leased, ready)] == ["running", "next"]
    bench.clock.advance(3)
    found = await bench.why(leased)
    assert (found.rule, found.opens_at, found.more_workers) == ("silent", bench.clock.now() + 18, True)
    assert found.why == "w1 has it, and has not been heard of for 12 s: unless it comes back, the message is ready again in 18 s"
    found = await bench.why(ready)
    assert (found.rule, found.more_workers) == ("silent", True)
    assert found.why == "w1 that serves queue work has not been heard of for 12 s: gone, or cut off"
    [reason] = (await bench.queue()).reasons
    assert (reason.why.rule, reason.messages, reason.sampled) == ("silent", 1, False)
    await bench.worker("w2")
    assert (await bench.why(leased)).more_workers is False
    assert (await bench.why(ready)).rule == "next"


async def test_a_delayed_message_of_a_queue_that_stands_still_is_told_both() -> None:
    bench = await Bench().begin()
    [id] = await bench.send(delay_s=60.0)
    await bench.engine.snooze(WORK, seconds=30)
    assert (await bench.why(id)).why == "it is ready in 60 s"  # over by then
    await bench.engine.snooze(WORK, seconds=90)
    found = await bench.why(id)
    assert (found.rule, found.why, found.opens_at) == (
        "delayed",
        "it is ready in 60 s, and then queue work is snoozed for 90 s more",
        bench.clock.now() + 90,
    )
    assert found.help == f"beltline queue resume work, and: beltline message ready {id}"


async def test_a_queue_that_stands_still_says_so_though_nothing_is_ready() -> None:
    bench = await Bench().begin()
    assert (await bench.queue()).reasons == ()
    await bench.engine.pause(WORK)
    [reason] = (await bench.queue()).reasons
    assert (reason.messages, reason.sampled, reason.why.rule, reason.example) == (0, False, "paused", "")
    await bench.send()
    [reason] = (await bench.queue()).reasons
    assert (reason.messages, reason.why.rule) == (1, "paused")


async def test_a_stopped_queue_names_the_error_of_the_message_that_is_asked_about() -> None:
    bench = await Bench().begin(kill_switch=KillSwitch(least=1, pause_s=60.0, tries=1))
    await bench.worker()
    [failed] = await bench.send()
    await bench.end((await bench.lease())[0], RetryAfter(delay_s=0.0, failure=FAILURE))
    [other] = await bench.send()
    found = await bench.why(failed)
    assert (found.rule, found.why.endswith("; last here: ValueError: no good")) == ("tripped", True)
    assert "beltline message ls -q work" in found.help  # nothing need be dead for it
    assert "last here" not in (await bench.why(other)).why


async def test_it_is_delayed_or_parked() -> None:
    bench = await Bench().begin()
    await bench.worker(tasks=("tasks.works",))
    [id] = await bench.send(delay_s=60.0)
    found = await bench.why(id)
    assert (found.rule, found.why, found.help) == ("delayed", "it is ready in 60 s", f"beltline message ready {id}")
    [retried] = await bench.send()
    await bench.end((await bench.lease())[0], RetryAfter(delay_s=8.0, failure=FAILURE))
    assert (await bench.why(retried)).why == "it is ready in 8.0 s, after ValueError: no good"
    [parked] = await bench.send()
    await bench.end((await bench.lease())[0], Release(delay_s=5.0, why=PARKED))
    found = await bench.why(parked)
    assert found.rule == "unknown_task"
    assert found.why == "no worker of queue work knows task tasks.work (did they mean tasks.works?); it is offered again in 5.0 s"
    [reason] = [reason for reason in (await bench.queue()).reasons if reason.why.rule == "unknown_task"]
    assert (reason.messages, reason.sampled, reason.example) == (1, False, parked)


async def test_no_worker_serves_it_or_knows_the_task() -> None:
    bench = await Bench().begin()
    [id] = await bench.send()
    assert (await bench.why(id)).why == "no worker serves queue work (no worker is up)"
    await bench.worker("other", queue=NEXT)
    await bench.worker("leaving", state="draining")
    found = await bench.why(id)
    assert (found.rule, found.why) == ("no_worker", "no worker serves queue work (1 worker up, for other queues)")
    assert (found.help, found.more_workers) == ("beltline worker APP -q work", True)
    await bench.worker("w1", tasks=("tasks.other",))
    assert (await bench.why(id)).why == "no worker of queue work knows task tasks.work"
    bench.clock.advance(31)
    assert (await bench.why(id)).rule == "no_worker"  # a worker that has not been heard of for so long counts for nobody


async def test_the_whole_queue_stands_still() -> None:
    bench = await Bench().begin(kill_switch=KillSwitch(least=2, pause_s=60.0, tries=1))
    await bench.worker()
    for _ in range(2):
        await bench.send()
        await bench.end((await bench.lease())[0], DeadLetter(reason="x", failure=FAILURE))
    ids = await bench.send(3)
    found = await bench.why(ids[0])
    assert (found.rule, found.opens_at, found.more_workers) == ("tripped", bench.clock.now() + 60, False)
    bench.clock.advance(60)
    await bench.worker()
    [_] = await bench.lease(10)
    found = await bench.why(ids[1])
    assert (found.rule, "1 delivery out" in found.why) == ("trying", True)
    await bench.engine.snooze(WORK, seconds=90)
    found = await bench.why(ids[1])
    assert (found.rule, found.why) == ("snoozed", "queue work is snoozed for 90 s more")
    await bench.engine.pause(WORK)
    found = await bench.why(ids[1])
    assert (found.rule, found.why, found.help) == ("paused", "queue work is paused", "beltline queue resume work")
    [reason] = (await bench.queue()).reasons
    assert (reason.messages, reason.sampled, reason.why.rule) == (2, False, "paused")


async def test_another_message_of_its_group_is_before_it() -> None:
    bench = await Bench().begin()
    await bench.worker()
    head, second = await bench.send(2, group="a")
    found = await bench.why(second)
    assert (found.rule, found.holders, found.more_workers) == ("group", (head,), False)
    assert found.why == f"message {head} of its group 'a' is before it, and is ready"
    assert found.help == f"beltline message why {head}"
    [delivery] = await bench.lease()
    assert (await bench.why(second)).why.endswith("and is leased")
    await bench.end(delivery, DeadLetter(reason="x", failure=FAILURE))
    assert f"beltline dead redrive {head}" in (await bench.why(second)).help


async def test_the_next_queue_is_full() -> None:
    bench = Bench()
    await bench.engine.open()
    await bench.engine.declare([QueueSpec(name=WORK, feeds=(Feed(NEXT),)), QueueSpec(name=NEXT, high_water=2)])
    await bench.worker()
    [id] = await bench.send()
    await bench.send(3, queue=NEXT)
    assert await bench.lease() == []
    found = await bench.why(id)
    assert (found.rule, found.more_workers) == ("downstream", False)
    assert found.help == "more workers for next, not for work: beltline queue why next"


async def test_a_limit_of_concurrency_names_who_holds_it() -> None:
    bench = await Bench().begin()
    await bench.worker()
    await bench.engine.declare_limits([Limit(name="api", concurrency=2)])
    ids = await bench.send(3, flow=Flow(claims=(Claim("api", "acme"),)))
    assert len(await bench.lease(10)) == 2
    found = await bench.why(ids[2])
    assert (found.rule, found.limit, found.key, set(found.holders)) == ("concurrency", "api", "acme", set(ids[:2]))
    assert found.why.startswith("limit 'api' of key 'acme' allows 2 at a time, and these run: ")
    assert found.why.endswith("; it opens when one of them ends, at the latest in 30 s")
    assert (found.opens_at, found.help, found.more_workers) == (bench.clock.now() + 30, "beltline limit set api --concurrency 3", False)
    whole = await bench.queue()
    [reason] = whole.reasons
    assert (reason.messages, reason.example, reason.why) == (1, ids[2], found)
    assert summary(whole) == "1 message ready, 1 of them held back, 0 delayed, 2 running; 4 slots of 1 worker"
    await bench.engine.set_limit(Limit(name="api", concurrency=0))
    assert (await bench.why(ids[2])).why == "limit 'api' allows none to run"


async def test_a_limit_of_rate_says_when_it_opens_even_while_some_run() -> None:
    bench = await Bench().begin()
    await bench.worker()
    await bench.engine.declare_limits([Limit(name="api", rate=2, per_s=60.0, burst=1, concurrency=9)])
    ids = await bench.send(2, flow=Flow(claims=(Claim("api"),)))
    assert len(await bench.lease(10)) == 1
    found = await bench.why(ids[1])
    assert (found.rule, found.why) == ("rate", "limit 'api' allows 2/m, and opens in 30 s")
    assert (found.opens_at, found.help, found.holders) == (bench.clock.now() + 30, "beltline limit set api --rate 4/m", ())


@pytest.mark.parametrize("whole", [True, False], ids=["of the whole queue", "of its own"])
async def test_a_rate_that_is_open_just_now_is_used_up_by_those_before(whole: bool) -> None:
    bench = await Bench().begin(limits=("api",) if whole else ())
    await bench.worker()
    await bench.engine.declare_limits([Limit(name="api", rate=2, per_s=1.0, burst=1)])
    ids = await bench.send(5, flow=None if whole else Flow(claims=(Claim("api", "acme"),)))
    assert (await bench.why(ids[0])).rule == "next"
    found = await bench.why(ids[4])
    assert (found.rule, found.limit, found.key, found.more_workers) == ("rate", "api", "" if whole else "acme", False)
    of = "" if whole else " of key 'acme'"
    assert found.why == f"limit 'api'{of} allows 2/s, and with 4 messages of its kind before it that lasts about 2.0 s"
    assert (found.opens_at, found.help) == (bench.clock.now() + 2, "beltline limit set api --rate 4/s")
    assert sorted(reason.why.rule for reason in (await bench.queue()).reasons) == ["next", "rate"]


async def test_a_limit_of_the_whole_queue() -> None:
    bench = await Bench().begin(limits=("api",))
    await bench.worker()
    await bench.engine.declare_limits([Limit(name="api", concurrency=1)])
    ids = await bench.send(2)
    await bench.lease(10)
    found = await bench.why(ids[1])
    assert (found.rule, found.limit, found.key, found.holders) == ("concurrency", "api", "", (ids[0],))


async def test_a_worker_keeps_its_key() -> None:
    bench = await Bench().begin()
    await bench.worker("w1", slots=1)
    [id] = await bench.send(flow=Flow(sticky="model-a"))
    await bench.lease(worker="w2")
    found = await bench.why(id)
    assert (found.rule, found.more_workers) == ("sticky", False)
    assert found.why == "worker w1 (1 slot) keeps its key 'model-a', and only that one may have it"


async def test_all_slots_are_busy_or_nothing_holds_it() -> None:
    bench = await Bench().begin()
    await bench.worker(slots=2)
    ids = await bench.send(4, flow=Flow(tenant="acme"))
    found = await bench.why(ids[3])
    assert (found.rule, found.help, found.opens_at) == ("next", "", 0.0)
    assert found.why == "nothing holds it: 2 slots of 2 free, 3 messages of its kind before it; tenant 'acme' takes its turn"
    await bench.lease(2)
    found = await bench.why(ids[3])
    assert (found.rule, found.more_workers, found.help) == ("slots", True, "beltline worker APP -q work:4")
    assert found.why.startswith("all 2 slots of 1 worker are busy: 2 messages ready in work, 2 messages running, 1 message of its kind before it")


async def test_a_tenant_that_has_more_than_its_part_is_told() -> None:
    bench = await Bench().begin()
    await bench.worker(slots=100)
    ids = await bench.send(60, flow=Flow(tenant="big"))
    await bench.send(1, flow=Flow(tenant="small"))
    await bench.lease(40)
    found = await bench.why(ids[59])
    assert (found.rule, found.more_workers) == ("tenant", True)
    assert found.why.startswith("its tenant 'big' has more than its part just now, so the others go first, ")


async def test_a_queue_tells_apart_what_its_oldest_messages_wait_for() -> None:
    bench = await Bench().begin()
    await bench.worker(slots=1)
    await bench.engine.declare_limits([Limit(name="api", concurrency=1)])
    limited = await bench.send(30, flow=Flow(claims=(Claim("api"),)))
    assert len(await bench.lease()) == 1
    await bench.send(5)
    found = await bench.queue()
    assert found.looked_at == 20
    [reason] = found.reasons
    assert (reason.messages, reason.sampled, reason.why.rule, reason.example) == (20, True, "concurrency", limited[1])
    assert (await explain_queue(bench.engine, NEXT)).reasons == ()


async def test_an_engine_that_cannot_tell_where_a_message_stands_is_asked_for_what_every_engine_knows() -> None:
    class Plain:
        """Only what every engine that can browse has."""

        def __init__(self, engine: MemoryEngine) -> None:
            self.name, self.now, self.counts, self.get = "plain", engine.now, engine.counts, engine.get
            self.queues, self.browse = engine.queues, engine.browse

    bench = await Bench().begin()
    [id] = await bench.send()
    plain: Any = Plain(bench.engine)
    _, found = await explain(plain, id)
    assert (found.rule, found.why) == ("slots", "it waits for a free slot: 1 message ready in work, 0 messages running")
    await bench.engine.snooze(WORK, seconds=5)
    _, found = await explain(plain, id)
    assert found.rule == "snoozed"
    await bench.engine.pause(WORK)
    assert (await explain(plain, id))[1].rule == "paused"


async def test_times_nobody_knows_are_said_as_such() -> None:
    bench = await Bench().begin()
    [id] = await bench.send()
    assert (await bench.why(id)).opens_at == math.inf
    view, _ = await explain(bench.engine, id)
    assert structs.asdict(view.message)["id"] == id
