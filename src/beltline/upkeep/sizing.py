"""One round about the size of fleets: look at the queues and their workers, decide (core/scaling.py), record. Any number of them may run.

Turns      the size of a queue is a row with a turn. Whoever finds it older than a round decides; of several who do so at once the store hears one, and the
           others read what it said. So the number is the same for all workers, for the command line, and for another program that asks for it.
Workers    are known by their heartbeats: `queues` (slots now), and of their details `ranges` (queue -> least, most), `service` (queue -> number of ended
           deliveries, sum and sum of squares of their seconds, since the worker's start) and `refusal` (why its host starts no more runners).
Standing   what deciders remember, in the row itself: trend, service times, and what has been counted of which worker. It outlives every worker.
Arrivals   what has ever become ready: done + dead + ready + leased. A delayed message arrives when it is due.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import msgspec
from msgspec import Struct, structs

from beltline.core.chain import ChainPlan
from beltline.core.errors import Unsupported
from beltline.core.names import QueueName, WorkerId
from beltline.core.queues import Counts, QueueSpec
from beltline.core.scaling import RULES, TARGET_S, Belt, Decision, Rules, Sample, Service, Size, Trend, decide
from beltline.core.shares import workers_for
from beltline.core.views import WorkerView
from beltline.core.within import targets
from beltline.engines.protocol import Browse, Engine, Fleet, Sizes

ROUND_S = 2.0
LIVE_S = 10.0  # a worker whose last heartbeat is older counts for nothing: five heartbeats
SLOTS_EACH = 4  # what one worker is taken to have, where none was ever seen

Tally = tuple[int, float, float]  # ended deliveries, sum and sum of squares of their seconds


class Standing(Struct, frozen=True, kw_only=True, array_like=True):
    """What is remembered of one queue. `each`: slots of one worker at most. `late`: age of the oldest by the target; above 1 it is missed.

    `desired`, `reason`: of the last decision. `counted`: what was taken in of each worker. `answered`: deliveries that ended, as workers told it.
    """

    trend: Trend = Trend()
    service: Service = Service()
    counted: dict[str, Tally] = {}
    answered: int = 0
    each: int = SLOTS_EACH
    desired: int = 0
    target_s: float = 0.0
    late: float = 0.0
    reason: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Standing)


def standing(size: Size) -> Standing:
    """What is remembered with a size; one written by a version that remembered otherwise counts as nothing."""
    try:
        return _decoder.decode(size.state) if size.state else Standing()
    except msgspec.DecodeError:
        return Standing()


class Desired(Struct, frozen=True, kw_only=True):
    """What a fleet should be, for a program that starts and stops workers: so many slots, or so many workers of `slots_each`."""

    queue: QueueName
    slots: int
    workers: int
    slots_each: int
    reason: str


def desired(size: Size) -> Desired:
    known = standing(size)
    return Desired(queue=size.queue, slots=known.desired, workers=workers_for(known.desired, known.each), slots_each=known.each, reason=known.reason)


# ---------------------------------------------------------------------------------------------------------------- workers
def live(views: Iterable[WorkerView]) -> list[WorkerView]:
    return [view for view in views if view.state == "up" and view.age_s <= LIVE_S]


def offer(view: WorkerView, queue: QueueName) -> tuple[int, int] | None:
    """The (least, most) slots of this worker for a queue; equal where its number is fixed; None: it does not serve it."""
    ranges = cast("Mapping[str, Sequence[int]]", view.detail.get("ranges") or {})
    if queue in ranges:
        least, most = ranges[queue]
        return least, most
    return (view.queues[queue], view.queues[queue]) if queue in view.queues else None


def offers(views: Iterable[WorkerView], queue: QueueName) -> dict[WorkerId, tuple[int, int]]:
    found = {WorkerId(view.id): offer(view, queue) for view in views}
    return {worker: each for worker, each in found.items() if each is not None}


def tally(view: WorkerView, queue: QueueName) -> Tally:
    told = cast("Mapping[str, Sequence[float]]", view.detail.get("service") or {})
    count, sum_s, squares = told.get(queue, (0, 0.0, 0.0))
    return int(count), sum_s, squares


# ------------------------------------------------------------------------------------------------------------------ round
class Sizing:
    """`by`: who decides, for the log. `plans`: the chains, for their targets; without them the target that was used last holds."""

    def __init__(self, *, by: str = "", plans: Callable[[], Iterable[ChainPlan]] = tuple, rules: Rules = RULES) -> None:
        self._by = by
        self._plans = plans
        self._rules = rules

    async def once(self, engine: Engine, queues: Iterable[QueueName], *, urgent: Iterable[QueueName] = ()) -> dict[QueueName, Size]:
        """The sizes that stand afterwards, of all queues. Decides about those of `queues` whose size is older than a round, and about the urgent ones.

        Raises Unsupported, QueueNotDeclared, EngineUnavailable.
        """
        if not (isinstance(engine, Sizes) and isinstance(engine, Fleet) and isinstance(engine, Browse)):
            raise Unsupported(feature="sizes", need=1, have=0, engine=engine.name)
        sizes = {size.queue: size for size in await engine.sizes()}
        now, hurried = await engine.now(), frozenset(urgent)
        due = [queue for queue in queues if queue in hurried or queue not in sizes or now - sizes[queue].decided_at >= 0.75 * ROUND_S]
        if not due:
            return sizes
        scene = await _look(engine, due, sizes)
        heard = True
        for queue in due:
            size = sizes.get(queue) or Size(queue=queue)
            decision, state = self._decide(scene, queue, size)
            log = decision if decision.news else None
            if await engine.set_size(queue, turn=size.turn, slots=decision.slots, state=_encode(state), log=log):
                sizes[queue] = structs.replace(size, turn=size.turn + 1, slots=decision.slots, decided_at=scene.now, state=_encode(state))
            else:
                heard = False
        return sizes if heard else {size.queue: size for size in await engine.sizes()}

    def _decide(self, scene: "_Scene", queue: QueueName, size: Size) -> tuple[Decision, Standing]:
        before, counts, views = standing(size), scene.counts[queue], scene.workers
        counted = {view.id: tally(view, queue) for view in views}
        service, ended = before.service, 0
        for worker, (count, sum_s, squares) in counted.items():
            old = before.counted.get(worker, (0, 0.0, 0.0))
            service = service.learn(count - old[0], sum_s - old[1], squares - old[2])
            ended += max(0, count - old[0])
        offered = offers(views, queue)
        ranged = any(least < most for least, most in offered.values())
        least, most = (sum(each[end] for each in offered.values()) for end in (0, 1))
        there = most
        if size.ordered is not None:
            least, top = size.ordered[0], float(size.ordered[1])
            there = size.ordered[1] if ranged else there
        else:
            least, top = (least, float(most)) if ranged else (0, math.inf)
        target_s, hopeless = self._target(scene, queue, before, service)
        sample = Sample(
            queue=queue,
            at=scene.now,
            came=counts.done + counts.dead + counts.ready + counts.leased,
            ended=counts.done + counts.dead + before.answered + ended,
            runnable=max(0, counts.ready - counts.held),
            held=counts.held,
            leased=counts.leased,
            oldest_s=counts.oldest_ready_s if counts.ready else 0.0,
            shut=_shut(counts),
            service=service,
            target_s=target_s,
            least=least,
            most=top,
            ordered=size.ordered is not None,
            offered=there,
            standing=sum(view.queues.get(queue, 0) for view in views),
            belts=scene.belts(queue),
            refusal=_refusal(views, queue) if ranged else "",
            hopeless=hopeless,
            served=before.answered + ended,
        )
        trend = structs.replace(before.trend, slots=size.slots)
        decision, after = decide(sample, trend, self._rules)
        decision = structs.replace(decision, by=self._by)
        known = Standing(
            trend=after,
            service=service,
            counted=counted,
            answered=before.answered + ended,
            each=max((each[1] for each in offered.values()), default=before.each),
            desired=decision.desired,
            target_s=target_s,
            late=sample.oldest_s / target_s,
            reason=decision.reason,
        )
        return decision, known

    def _target(self, scene: "_Scene", queue: QueueName, before: Standing, service: Service) -> tuple[float, str]:
        """The shortest wait that the queue's own target and those of its chains ask for, and why it cannot be kept."""
        plans = [plan for plan in self._plans() if plan.within_s < math.inf and any(stage.queue == queue for stage in plan.stages)]
        own = scene.specs[queue].target_s if queue in scene.specs else math.inf
        if not plans and own == math.inf:
            return before.target_s or TARGET_S, ""
        services = {**scene.services, queue: service}
        split = [targets(plan, services) for plan in plans]
        hopeless = "; ".join(each.hopeless for each in split if each.hopeless)
        return min([own, *(each.wait_s[queue] for each in split)]), hopeless


class _Scene(Struct, frozen=True, kw_only=True):
    """What a round looks at, once for all its queues."""

    now: float
    specs: dict[QueueName, QueueSpec]
    counts: dict[QueueName, Counts]
    workers: list[WorkerView]
    services: dict[QueueName, Service]

    def belts(self, queue: QueueName) -> tuple[Belt, ...]:
        spec = self.specs.get(queue)
        return tuple(
            Belt(feed.queue, self._load(feed.queue), self.specs[feed.queue].high_water, max(1, feed.fan_out))
            for feed in (spec.feeds if spec is not None else ())
            if feed.queue in self.counts
        )

    def _load(self, queue: QueueName) -> float:
        """Ready there, and on the way from every queue that feeds it."""
        on_the_way = sum(
            self.counts[spec.name].leased * max(1, feed.fan_out) for spec in self.specs.values() for feed in spec.feeds if feed.queue == queue
        )
        return self.counts[queue].ready + on_the_way


async def _look(engine: Engine, queues: Iterable[QueueName], sizes: Mapping[QueueName, Size]) -> _Scene:
    assert isinstance(engine, Browse)
    assert isinstance(engine, Fleet)
    specs = {spec.name: spec for spec in await engine.queues()}
    wanted = dict.fromkeys(queues)
    belts = {feed.queue for queue in wanted if queue in specs for feed in specs[queue].feeds if feed.queue in specs}
    wanted |= dict.fromkeys(belts)
    wanted |= dict.fromkeys(spec.name for spec in specs.values() if any(feed.queue in belts for feed in spec.feeds))
    counts = {queue: await engine.counts(queue) for queue in wanted}
    workers = live(await engine.workers())
    services = {}
    for name in specs:
        known = standing(sizes[name]).service if name in sizes else Service()
        for view in workers if not known.known else ():
            known = known.learn(*tally(view, name))
        services[name] = known
    return _Scene(now=await engine.now(), specs=specs, counts=counts, workers=workers, services=services)


def _shut(counts: Counts) -> str:
    if counts.paused:
        return "paused"
    return "snoozed" if counts.snoozed_until else "stopped by its kill switch" if counts.tripped_until else ""


def _refusal(views: Iterable[WorkerView], queue: QueueName) -> str:
    for view in views:
        why = view.detail.get("refusal")
        if why and offer(view, queue) is not None:
            return f"{view.host}: {why}"
    return ""
