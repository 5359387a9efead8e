"""What `beltline fleet` shows of sizes: decisions, ranges, and the number for other autoscalers. The commands stand in fleet.py."""

from collections.abc import Iterable
from datetime import datetime

from msgspec import Struct

from beltline.cli.names import known
from beltline.cli.output import SCHEMA_VERSION
from beltline.cli.powers import browse_of, fleet_of, sizes_of
from beltline.cli.shapes import bound, instant
from beltline.core import config
from beltline.core.errors import ValueInvalid
from beltline.core.names import QueueName
from beltline.core.scaling import Decision, Size
from beltline.engines.protocol import Engine
from beltline.upkeep.sizing import Sizing, desired, live, offer, standing


class DecisionItem(Struct, frozen=True, kw_only=True):
    """Why a fleet was given its size. `slots_needed`: what the load called for; `slots_desired`: what should be there if more workers could be started.

    `term` called for it (steady, drain, first message, idle, least), `limit` held it (range, next belt, keys, host, patience, protect; null = nothing).
    """

    version: int = SCHEMA_VERSION
    at: datetime | None
    queue: str
    slots_before: int
    slots: int
    slots_needed: int
    slots_desired: int
    term: str
    limit: str | None
    reason: str
    arrivals_per_s: float
    service_s: float
    runnable: int
    held: int
    leased: int
    oldest_s: float
    target_s: float
    least: int
    most: float | None
    worker: str


def decision_item(decision: Decision) -> DecisionItem:
    return DecisionItem(
        at=instant(decision.at),
        queue=decision.queue,
        slots_before=decision.before,
        slots=decision.slots,
        slots_needed=decision.need,
        slots_desired=decision.desired,
        term=decision.term,
        limit=decision.limit or None,
        reason=decision.reason,
        arrivals_per_s=decision.arrivals_per_s,
        service_s=decision.service_s,
        runnable=decision.runnable,
        held=decision.held,
        leased=decision.leased,
        oldest_s=decision.oldest_s,
        target_s=decision.target_s,
        least=decision.least,
        most=bound(decision.most),
        worker=decision.by,
    )


class SizeItem(Struct, frozen=True, kw_only=True):
    """The size of one fleet. `ordered`: the range an operator has given ("2..8", null = each worker's own); `slots_now`: what its live workers have."""

    version: int = SCHEMA_VERSION
    queue: str
    slots: int
    slots_now: int
    workers: int
    ordered: str | None
    decided_at: datetime | None
    target_s: float | None
    reason: str


class DesiredItem(Struct, frozen=True, kw_only=True):
    """What the fleet of a queue should be: so many slots, or so many workers of `slots_each`."""

    version: int = SCHEMA_VERSION
    queue: str
    desired_slots: int
    desired_workers: int
    slots_each: int
    reason: str


async def decisions(engine: Engine, queue: str | None, limit: int) -> list[DecisionItem]:
    """Newest first. Raises NotFound."""
    name = None if queue is None else await _queue(engine, queue)
    return [decision_item(each) for each in await sizes_of(engine).decisions(name, limit=limit)]


async def show(engine: Engine, queue: str) -> tuple[SizeItem, bool]:
    """And whether any live worker has a range there, so that the number can change."""
    name = await _queue(engine, queue)
    size = next((each for each in await sizes_of(engine).sizes() if each.queue == name), Size(queue=name))
    views = [view for view in live(await fleet_of(engine).workers()) if name in view.queues]
    offered = [offer(view, name) for view in views]
    told = standing(size)
    item = SizeItem(
        queue=name,
        slots=size.slots,
        slots_now=sum(view.queues[name] for view in views),
        workers=len(views),
        ordered=None if size.ordered is None else str(config.Slots(*size.ordered)),
        decided_at=instant(size.decided_at),
        target_s=told.target_s or None,
        reason=told.reason,
    )
    return item, any(each is not None and each[0] < each[1] for each in offered)


async def order(engine: Engine, queue: str, said: str) -> None:
    """`said`: "2..8", "4" or "auto". Raises NotFound, ValueInvalid."""
    name = await _queue(engine, queue)
    if said == "auto":
        await sizes_of(engine).clear_range(name)
        return
    try:
        wanted = config.slots(said)
    except ValueError:
        wanted = config.Slots(0, 0)
    if not wanted.most:
        allowed = f"a number from 1, or a range, its smaller end first, such as 4 or 2..8, at most {config.MAX_SLOTS}; or auto"
        raise ValueInvalid(name="the range", value=said, allowed=allowed)
    await sizes_of(engine).set_range(name, wanted.least, wanted.most)


async def wanted(engine: Engine, queues: Iterable[str]) -> list[DesiredItem]:
    """Of these queues, or all. Decides where nobody has lately: with all workers stopped there is nobody else. Raises NotFound."""
    specs = {str(spec.name): spec for spec in await browse_of(engine).queues()}
    names = [known("queue", name, specs).name for name in queues] or [spec.name for spec in specs.values()]
    sizes_of(engine)
    sizes = await Sizing(by="asked for by the command line").once(engine, names)
    found = [desired(sizes[name]) for name in names]
    return [
        DesiredItem(queue=each.queue, desired_slots=each.slots, desired_workers=each.workers, slots_each=each.slots_each, reason=each.reason)
        for each in found
    ]


async def _queue(engine: Engine, name: str) -> QueueName:
    return known("queue", name, {str(spec.name): spec.name for spec in await browse_of(engine).queues()})
