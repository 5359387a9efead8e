"""The words the laws are written in: messages, receipts, outcomes, and what is looked at afterwards."""

import asyncio
import itertools
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from beltline.core.codec import pack
from beltline.core.flow import Claim, Flow, Limit, Unique
from beltline.core.message import Delivery, Gather, Message, Part, Place, Receipt
from beltline.core.names import ChainName, GatherId, MessageId, QueueName, RunId, StageName, TaskName, WorkerId
from beltline.core.outcome import Ack, Cause, DeadLetter, Ended, Failure, Outcome, Release, RetryAfter, Settled, Settlement
from beltline.core.queues import QueueSpec
from beltline.core.views import MessageFilter, MessageView
from beltline.testing.conformance.harness import Full

WORK, NEXT, LAST, OTHER = (QueueName(name) for name in ("work", "next", "last", "other"))
QUEUES = (WORK, NEXT, LAST, OTHER)
STATES: tuple[str, ...] = ("ready", "delayed", "leased", "dead", "done")
LEASE_S = 30.0
LINE = ChainName("line")
ONE, TWO = WorkerId("worker-1"), WorkerId("worker-2")
NEVER_SENT = MessageId("0" * 31 + "1")

_numbers = itertools.count(1)


def fresh_id() -> MessageId:
    """An id nobody has used in this process; like real ones it grows with time."""
    number = next(_numbers)
    return MessageId(f"{0x019000000000 + number:012x}70008{number:015x}")


def number_from(start: int) -> None:
    """Count ids from `start` again: for a caller that makes a new store and wants the same ids in it as last time."""
    global _numbers  # noqa: PLW0603 - the one counter of this kit
    _numbers = itertools.count(start)


def specs(name: QueueName, **numbers: Any) -> QueueSpec:
    return QueueSpec(name=name, **numbers)


def message(queue: QueueName = WORK, **fields: Any) -> Message:
    made: dict[str, Any] = {"id": fresh_id(), "queue": queue, "task": TaskName("resize"), "body": pack({"photo": "a.jpg"}), **fields}
    return Message(**made)


def messages(number: int, queue: QueueName = WORK, **fields: Any) -> list[Message]:
    return [message(queue, **fields) for _ in range(number)]


def ids(deliveries: Sequence[Delivery]) -> list[MessageId]:
    return [delivery.message.id for delivery in deliveries]


def failure(type: str = "builtins.ValueError", text: str = "not a photo", cause: Cause = Cause.ERROR) -> Failure:
    return Failure(cause, type, text, 'Traceback (most recent call last):\n  File "resize.py", line 1\n')


async def send(engine: Full, *given: Message) -> list[Message]:
    """Send in one batch; every one of them must be new."""
    assert all(sent.new for sent in await engine.send(given))
    return list(given)


async def send_one(engine: Full, queue: QueueName = WORK, **fields: Any) -> Message:
    [sent] = await send(engine, message(queue, **fields))
    return sent


async def take(engine: Full, queue: QueueName = WORK, *, limit: int = 100, lease_s: float = LEASE_S, worker: WorkerId = ONE) -> list[Delivery]:
    return await engine.receive([queue], limit=limit, lease_s=lease_s, worker=worker)


async def take_one(engine: Full, queue: QueueName = WORK, *, lease_s: float = LEASE_S, worker: WorkerId = ONE) -> Delivery:
    """Exactly one delivery; a queue that gives none fails the test here."""
    deliveries = await take(engine, queue, limit=1, lease_s=lease_s, worker=worker)
    assert len(deliveries) == 1, f"{queue} gave nothing"
    return deliveries[0]


async def settle(engine: Full, receipt: Receipt | Delivery, outcome: Outcome | None = None) -> Settled:
    """Settle one delivery, by default with a plain ack."""
    receipt = receipt.receipt if isinstance(receipt, Delivery) else receipt
    [answer] = await engine.settle([Settlement(receipt, outcome or Ack())])
    return answer


async def ok(engine: Full, receipt: Receipt | Delivery, outcome: Outcome | None = None) -> None:
    """Settle one delivery that must still be ours."""
    assert await settle(engine, receipt, outcome) is Settled.DONE


async def retry(engine: Full, delivery: Delivery, delay_s: float = 0.0, *, lost: bool = False, error: Failure | None = None) -> None:
    await ok(engine, delivery, RetryAfter(delay_s=delay_s, failure=error or failure(), lost=lost))


def retried(ran_s: float = 0.0, delay_s: float = 0.0) -> RetryAfter:
    return RetryAfter(delay_s=delay_s, failure=failure(), ran_s=ran_s)


async def release(engine: Full, delivery: Delivery, delay_s: float = 0.0, why: str = "") -> None:
    await ok(engine, delivery, Release(delay_s=delay_s, why=why))


async def bury(engine: Full, delivery: Delivery, reason: str = "failed after 5 attempts", error: Failure | None = None) -> None:
    await ok(engine, delivery, DeadLetter(reason=reason, failure=error or failure()))


async def dead_one(engine: Full, queue: QueueName = WORK, *, error: Failure | None = None, **fields: Any) -> Message:
    """A message that has been given up."""
    sent = await send_one(engine, queue, **fields)
    delivery = await take_one(engine, queue)
    assert delivery.message.id == sent.id, "the queue was not empty"
    await bury(engine, delivery, error=error)
    return sent


async def finish(engine: Full, queue: QueueName = WORK) -> list[MessageId]:
    """Receive and ack until nothing comes any more: the ids in the order they came."""
    seen: list[MessageId] = []
    while deliveries := await take(engine, queue):
        seen += ids(deliveries)
        assert await engine.settle([Settlement(delivery.receipt, Ack()) for delivery in deliveries]) == [Settled.DONE] * len(deliveries)
    return seen


async def ready(engine: Full, queue: QueueName = WORK) -> int:
    return (await engine.counts(queue)).ready


async def everything(engine: Full, *, page: int = 1000, **where: Any) -> list[MessageView]:
    """All pages of a browse."""
    found: list[MessageView] = []
    cursor = ""
    while True:
        answer = await engine.browse(MessageFilter(**where), limit=page, cursor=cursor)
        found += answer.messages
        cursor = answer.cursor
        if not cursor:
            return found


async def state_of(engine: Full, id: str) -> str:
    return (await engine.get(MessageId(id))).state


async def tally(engine: Full, queue: QueueName) -> dict[str, int]:
    """The counts of a queue as browsing sees them."""
    found: dict[str, int] = dict.fromkeys(STATES, 0)
    for view in await everything(engine, queues=(queue,)):
        found[view.state] += 1
    return found


async def assert_counts_agree(engine: Full) -> None:
    """The counts of every queue are exact: they equal what browsing finds. For engines that have dropped no history."""
    for queue in QUEUES:
        counts = await engine.counts(queue)
        assert {state: getattr(counts, state) for state in STATES} == await tally(engine, queue)


# ------------------------------------------------------------------------------------------------------------------ chains


def placed(
    run: RunId | None = None, queue: QueueName = WORK, *, stage: str = "first", item: str = "", parts: tuple[Part, ...] = (), **fields: Any
) -> Message:
    """A message of the chain "line"; without `run` it enters a run of its own."""
    made = message(queue, **fields)
    place = Place(run or RunId(made.id), LINE, StageName(stage), item, parts)
    return message(queue, **{**fields, "id": made.id, "place": place})


def run_of(message: Message) -> RunId:
    assert message.place is not None
    return message.place.run


def follower(before: Message, queue: QueueName = NEXT, *, stage: str = "second", **fields: Any) -> Message:
    """The message of the next stage, in the same run and the same gathers."""
    assert before.place is not None
    return placed(before.place.run, queue, stage=stage, item=before.place.item, parts=before.place.parts, **fields)


def fan(
    before: Message,
    number: int,
    *,
    queue: QueueName = NEXT,
    then: QueueName | None = LAST,
    on_dead: str = "hold",
    outer: Part | None = None,
    result_ttl_s: float = 86400.0,
) -> tuple[Ack, list[Message], Gather]:
    """The ack that splits `before` into `number` parts: itself, the parts and the gather. `then` None: the list is the result of the run, or answers `outer`."""
    assert before.place is not None
    place, gather_id = before.place, GatherId(fresh_id())
    parts = [
        placed(place.run, queue, stage="part", item=f"{place.item}.{index}".lstrip("."), parts=(*place.parts, Part(gather_id, index)))
        for index in range(number)
    ]
    template = placed(place.run, then, stage="gathered", item=place.item, parts=place.parts) if then else None
    gather = Gather(
        id=gather_id, run=place.run, expected=number, then=template, param="thumbs", on_dead=on_dead, outer=outer, result_ttl_s=result_ttl_s
    )
    return Ack(then=tuple(parts), gathers=(gather,)), parts, gather


async def split_run(engine: Full, number: int, **options: Any) -> tuple[RunId, Gather]:
    """A run whose first message has just been split into `number` parts in NEXT."""
    [first] = await send(engine, placed())
    ack, _, gather = fan(first, number, **options)
    await ok(engine, await take_one(engine), ack)
    return run_of(first), gather


async def answer(engine: Full, delivery: Delivery, value: object) -> None:
    """Ack a part with its value."""
    await ok(engine, delivery, Ack(part=pack(value)))


def cancelled(note: str = "") -> Ack:
    return Ack(ended=Ended.CANCELLED, note=note)


# -------------------------------------------------------------------------------------------------------------------- flow

API = "api"


def shaped(
    queue: QueueName = WORK,
    *,
    tenant: str = "",
    weight: float = 1.0,
    claims: Sequence[Claim] = (),
    sticky: str = "",
    unique: Unique | None = None,
    **fields: Any,
) -> Message:
    """A message that flow control looks at."""
    return message(queue, flow=Flow(tenant=tenant, weight=weight, claims=tuple(claims), sticky=sticky, unique=unique), **fields)


def limited(number: int = 1, queue: QueueName = WORK, *, key: str = "", limit: str = API, cost: float = 1.0, **fields: Any) -> list[Message]:
    """So many messages that each need a start of one bucket."""
    return [shaped(queue, claims=[Claim(limit, key, cost)], **fields) for _ in range(number)]


async def set_limit(engine: Full, name: str = API, **numbers: float) -> None:
    await engine.set_limit(Limit(name=name, **numbers))


async def wait_for_one(engine: Full, queue: QueueName = WORK, *, wait_s: float = 20.0) -> list[Delivery]:
    """Of an engine with a clock of its own. One that comes back early with nothing is asked again."""
    async with asyncio.timeout(wait_s):
        while not (deliveries := await engine.receive([queue], limit=1, lease_s=LEASE_S, wait_s=wait_s, worker=TWO)):
            pass
    return deliveries


def tenants(deliveries: Sequence[Delivery]) -> str:
    """Whose they are, in the order they came; "-" = nobody's."""
    return "".join((delivery.message.flow.tenant if delivery.message.flow is not None else "") or "-" for delivery in deliveries)


# ------------------------------------------------------------------------------------------------------------- concurrency


async def together(*work: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run all of them at once on this loop; their answers in order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_call(each)) for each in work]
    return [task.result() for task in tasks]


async def in_threads(*work: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run each in a thread of its own, on a loop of its own."""
    return await together(*(lambda each=each: asyncio.to_thread(asyncio.run, _call(each)) for each in work))


async def _call(function: Callable[[], Awaitable[Any]]) -> Any:
    return await function()


def dice(seed: int) -> random.Random:
    """Chance that is the same at every run."""
    return random.Random(seed)  # noqa: S311 - no secret


FAR_S = 3650 * 86400.0
ENDLESS = math.inf
