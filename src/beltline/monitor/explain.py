"""Why is it not running? Facts of the store (Standing, Counts, heartbeats) become the exact rule, who holds it, when it opens, and the one change that helps.

The rules are asked in the order in which they stop a message; the first that holds is the answer, because lifting a later one would change nothing:

    ended      done, expired, dead                             its worker   leased, cancel asked
    time       delayed, parked (no worker knows its task)      the queue    paused, snoozed, stopped by its kill switch
    its group  another message is before it                    workers      none serves the queue, is heard of, knows the task
    downstream the next queue is full                          limits       a bucket, a limit of the whole queue, the kill switch tries
    a worker   another one keeps its key                       its turn     its tenant has more than its part, all slots are busy, nothing: it is next

An engine that cannot tell where a message stands (no Explain) is asked for what every engine knows.
"""

import math
from collections.abc import Sequence
from difflib import get_close_matches

from msgspec import Struct, structs

from beltline.core.errors import Unsupported
from beltline.core.flow import MEMBER_S, Claim
from beltline.core.names import MessageId, QueueName
from beltline.core.policy import PARKED
from beltline.core.queues import Counts
from beltline.core.views import LimitView, MessageView, Standing, WorkerView
from beltline.core.words import rate, span, things
from beltline.engines.protocol import Browse, Engine, Explain, Fleet, Limits

LOST_S = 30.0  # a worker without a heartbeat for this long counts as lost
AHEAD_MOST = 1000  # engines count no further


class Why(Struct, frozen=True, kw_only=True):
    """`rule`: the word for programs. `opens_at`: 0.0 = no time, inf = nobody knows when. `limit`, `key`: the closed bucket, `holders`: ids of messages that hold it.

    `help`: the one change that helps, a command where there is one; "" = none is needed. `more_workers`: whether further workers would help.
    """

    rule: str
    why: str
    opens_at: float = 0.0
    limit: str = ""
    key: str = ""
    holders: tuple[str, ...] = ()
    help: str = ""
    more_workers: bool = False


class Scene(Struct, frozen=True, kw_only=True):
    """What is the same for all messages of a queue. `serving`: workers that are up and serve it; `up`: how many are up at all.

    `ages`: seconds since the last heartbeat of every worker the store knows. `queue_limits`: those the whole queue is subject to.
    """

    now: float
    queue: QueueName
    counts: Counts
    fleet: bool = False
    up: int = 0
    serving: tuple[WorkerView, ...] = ()
    limits: dict[str, LimitView] = {}
    ages: dict[str, float] = {}
    queue_limits: tuple[str, ...] = ()

    def silent_s(self, worker: str) -> float:
        """How long nothing has been heard of it; 0.0 while its heartbeats come, or when there are none to go by."""
        age_s = self.ages.get(worker, 0.0)
        return age_s if age_s > MEMBER_S else 0.0

    @property
    def slots(self) -> int:
        return sum(worker.queues[self.queue] for worker in self.serving)


async def scene(engine: Engine, queue: QueueName) -> Scene:
    """Raises QueueNotDeclared."""
    counts, now = await engine.counts(queue), await engine.now()
    workers = await engine.workers() if isinstance(engine, Fleet) else []
    alive = [worker for worker in workers if worker.age_s <= LOST_S and worker.state == "up"]
    found = await engine.limits() if isinstance(engine, Limits) else []
    return Scene(
        now=now,
        queue=queue,
        counts=counts,
        fleet=isinstance(engine, Fleet),
        up=len(alive),
        serving=tuple(worker for worker in alive if queue in worker.queues),
        limits={view.name: view for view in found},
        ages={worker.id: worker.age_s for worker in workers},
        queue_limits=next((spec.limits for spec in await engine.queues() if spec.name == queue), ()) if found and isinstance(engine, Browse) else (),
    )


async def standing(engine: Engine, id: MessageId) -> Standing:
    """Raises NotFound, Unsupported."""
    if isinstance(engine, Explain):
        return await engine.standing(id)
    if not isinstance(engine, Browse):
        raise Unsupported(feature="browse", need=1, have=0, engine=engine.name)
    view = await engine.get(id)
    counts = await engine.counts(view.message.queue)
    return Standing(message=view, paused=counts.paused, snoozed_until=counts.snoozed_until, tripped_until=counts.tripped_until, trying=counts.trying)


async def explain(engine: Engine, id: MessageId) -> tuple[MessageView, Why]:
    """Where one message stands, and why. Raises NotFound, Unsupported."""
    facts = await standing(engine, id)
    return facts.message, why(facts, await scene(engine, facts.message.message.queue))


def why(facts: Standing, around: Scene) -> Why:
    """The first rule that holds. Pure."""
    view = facts.message
    match view.state:
        case "done" | "dead":
            return _ended(view)
        case "leased":
            return _leased(view, around)
        case "delayed":
            return _delayed(view, around, _queue(facts, around))
        case _:
            return _queue(facts, around) or _group(facts) or _workers(view, around) or _closed(facts, around) or _turn(facts, around)


# ------------------------------------------------------------------------------------------------------------ not ready
def _ended(view: MessageView) -> Why:
    id = view.message.id
    if view.state == "dead":
        failure = next((attempt.failure for attempt in reversed(view.attempts) if attempt.failure is not None), None)
        cause = ": ".join(part for part in (failure.type, failure.text) if part) if failure else ""
        text = (view.why or "it was given up") + (f" ({cause})" if cause else "")
        return Why(rule="dead", why=text, help=f"when the cause is mended: beltline dead redrive {id}")
    if view.outcome == "expired":
        return Why(rule="expired", why="it ended as expired: no worker had begun it in time", help="send it again, with a longer expires or none")
    return Why(rule="done", why=f"it ended as {view.outcome or 'succeeded'}" + (f": {view.why}" if view.why else ""))


def _leased(view: MessageView, around: Scene) -> Why:
    asked = "; its cancellation was asked for" if view.cancel_asked else ""
    left_s = view.due_at - around.now
    if left_s <= 0:
        return Why(rule="lease_over", why=f"its lease by {view.worker} is over: the next receive hands it out again", more_workers=not around.serving)
    silent_s = around.silent_s(view.worker)
    if silent_s:
        text = f"{view.worker} has it, and has not been heard of for {span(silent_s)}: unless it comes back, the message is ready again in {span(left_s)}"
        return Why(rule="silent", why=text + asked, opens_at=view.due_at, more_workers=all(around.silent_s(worker.id) for worker in around.serving))
    return Why(rule="running", why=f"it is running at {view.worker}, lease left {span(left_s)}{asked}", opens_at=view.due_at)


def _delayed(view: MessageView, around: Scene, whole: Why | None) -> Why:
    """`whole`: what stops its whole queue. It is told too where it would still do so when the message is ready."""
    in_s = f"in {span(view.due_at - around.now)}"
    if view.why == PARKED:
        text, help = _unknown(view, around)
        return Why(rule="unknown_task", why=f"{text}; it is offered again {in_s}", opens_at=view.due_at, help=help, more_workers=True)
    text, ready = f"it is ready {in_s}" + (f", after {view.why}" if view.why else ""), f"beltline message ready {view.message.id}"
    if whole is None or whole.opens_at < view.due_at:
        return Why(rule="delayed", why=text, opens_at=view.due_at, help=ready)
    help = f"beltline queue resume {around.queue}, and: {ready}"
    return Why(rule="delayed", why=f"{text}, and then {whole.why}", opens_at=whole.opens_at, help=help)


def _unknown(view: MessageView, around: Scene) -> tuple[str, str]:
    task, queue = view.message.task, around.queue
    known = {name.rpartition(".")[2]: name for worker in around.serving for name in sorted(worker.tasks)}
    near = get_close_matches(task.rpartition(".")[2], known, n=1)  # modules are alike; the last part is what people mistype
    means = f" (did they mean {known[near[0]]}?)" if near else ""
    return f"no worker of queue {queue} knows task {task}{means}", f"start a worker whose app has {task}"


# ------------------------------------------------------------------------------------------------------- the whole queue
def stops(around: Scene) -> Why | None:
    """What lets nobody receive from the queue, whatever is in it."""
    return _stopped(around.counts, around)


def _queue(facts: Standing, around: Scene) -> Why | None:
    found = _stopped(facts, around)
    if found is not None and found.rule == "tripped" and facts.message.failed and facts.message.why:
        return structs.replace(found, why=f"{found.why}; last here: {facts.message.why}")
    return found


def _stopped(facts: Standing | Counts, around: Scene) -> Why | None:
    queue, resume = around.queue, f"beltline queue resume {around.queue}"
    if facts.paused:
        return Why(rule="paused", why=f"queue {queue} is paused", opens_at=math.inf, help=resume)
    if facts.snoozed_until > around.now:
        text = f"queue {queue} is snoozed for {span(facts.snoozed_until - around.now)} more"
        return Why(rule="snoozed", why=text, opens_at=facts.snoozed_until, help=f"to go on at once: {resume}")
    if facts.tripped_until > around.now:
        text = f"queue {queue} has stopped by its kill switch, too much of it failed; in {span(facts.tripped_until - around.now)} it tries a few"
        return Why(rule="tripped", why=text, opens_at=facts.tripped_until, help=f"mend what fails (beltline message ls -q {queue}), then: {resume}")
    return None


def _group(facts: Standing) -> Why | None:
    view, head = facts.message, facts.head
    if not head and not view.blocked:
        return None
    group = f"of its group {view.message.group!r} is before it"
    if not head:
        return Why(rule="group", why=f"another message {group}", opens_at=math.inf)
    help = {
        "dead": f"beltline dead redrive {head}, or give it up: beltline dead delete {head}",
        "delayed": f"beltline message ready {head}",
        "ready": f"beltline message why {head}",
    }
    return Why(
        rule="group",
        why=f"message {head} {group}, and is {facts.head_state}",
        opens_at=math.inf,
        holders=(head,),
        help=help.get(facts.head_state, ""),
    )


def _workers(view: MessageView, around: Scene) -> Why | None:
    if not around.fleet:
        return None
    queue = around.queue
    if not around.serving:
        others = f"({things(around.up, 'worker')} up, for other queues)" if around.up else "(no worker is up)"
        help = f"beltline worker APP -q {queue}"
        return Why(rule="no_worker", why=f"no worker serves queue {queue} {others}", opens_at=math.inf, help=help, more_workers=True)
    if all(around.silent_s(worker.id) for worker in around.serving):
        newest = min(around.serving, key=lambda worker: worker.age_s)
        who = newest.id if len(around.serving) == 1 else f"none of {things(len(around.serving), 'worker')}"
        text = f"{who} that serves queue {queue} has {'not ' if len(around.serving) == 1 else ''}been heard of for {span(newest.age_s)}: gone, or cut off"
        return Why(
            rule="silent", why=text, opens_at=math.inf, help=f"beltline fleet ls; if it is gone: beltline worker APP -q {queue}", more_workers=True
        )
    if not any(view.message.task in worker.tasks for worker in around.serving):
        text, help = _unknown(view, around)
        return Why(rule="unknown_task", why=text, opens_at=math.inf, help=help, more_workers=True)
    return None


# ---------------------------------------------------------------------------------------------------------------- closed
def _closed(facts: Standing, around: Scene) -> Why | None:
    if facts.feeds:
        names = " and ".join(facts.feeds)
        return Why(
            rule="downstream",
            why=f"{names} is full: {around.queue}, which feeds it, is not received from until it has sunk",
            opens_at=math.inf,
            help=f"more workers for {facts.feeds[0]}, not for {around.queue}: beltline queue why {facts.feeds[0]}",
        )
    if facts.limit:
        return _limit(facts.limit, facts.key, facts.opens_at, facts.holders, around)
    if facts.queue_limit:
        return _limit(facts.queue_limit, "", facts.queue_opens_at, facts.holders, around)
    if facts.trying and around.counts.leased:
        text = f"queue {around.queue} was stopped by its kill switch and lets only a few through: {things(around.counts.leased, 'delivery', 'deliveries')} out"
        return Why(rule="trying", why=text, opens_at=math.inf, help=f"if all is well: beltline queue resume {around.queue}")
    return None


def _limit(name: str, key: str, opens_at: float, holders: Sequence[str], around: Scene) -> Why:
    view = around.limits.get(name)
    most, number, per_s = (view.concurrency, view.rate, view.per_s) if view is not None else (math.inf, math.inf, 1.0)
    of = f" of key {key!r}" if key else ""
    when = f"in {span(opens_at - around.now)}" if 0.0 < opens_at < math.inf else ""
    if _full(view, holders):
        ends = "it opens when one of them ends" + (f", at the latest {when}" if when else "")
        text = f"limit {name!r}{of} allows {most:g} at a time, and these run: {', '.join(holders)}; {ends}"
        if most < 1:
            text = f"limit {name!r} allows none to run"
        help = f"beltline limit set {name} --concurrency {int(most) + 1 if most < math.inf else 2}"
        return Why(rule="concurrency", why=text, opens_at=opens_at or math.inf, limit=name, key=key, holders=tuple(holders), help=help)
    allows = f"allows {rate(number, per_s)}" if number < math.inf else "is used up"
    text = f"limit {name!r}{of} {allows}, and opens {when or 'when a place is given back'}"
    help = f"beltline limit set {name} --rate {rate(2 * number, per_s) if number < math.inf else 'none'}"
    return Why(rule="rate", why=text, opens_at=opens_at, limit=name, key=key, help=help)


def _used_up_before(facts: Standing, around: Scene) -> Why | None:
    """A bucket that is open at this instant, and that the messages before this one will use up first."""
    flow = facts.message.message.flow
    found: tuple[float, Claim, LimitView] | None = None
    for claim in (*(flow.claims if flow is not None else ()), *(Claim(name) for name in around.queue_limits)):
        view = around.limits.get(claim.limit)
        if view is None or view.rate == math.inf or facts.ahead * claim.cost < view.burst:
            continue
        wait_s = facts.ahead * claim.cost * view.per_s / view.rate
        if found is None or wait_s > found[0]:
            found = (wait_s, claim, view)
    if found is None:
        return None
    wait_s, claim, view = found
    of = f" of key {claim.key!r}" if claim.key else ""
    least = "more than " if facts.ahead >= AHEAD_MOST else ""
    before = f"with {least}{things(facts.ahead, 'message')} of its kind before it that lasts {least or 'about '}{span(wait_s)}"
    return Why(
        rule="rate",
        why=f"limit {view.name!r}{of} allows {rate(view.rate, view.per_s)}, and {before}",
        opens_at=around.now + wait_s,
        limit=view.name,
        key=claim.key,
        help=f"beltline limit set {view.name} --rate {rate(2 * view.rate, view.per_s)}",
    )


def _full(view: LimitView | None, holders: Sequence[str]) -> bool:
    """Whether places are what is missing. Engines name at most 10 holders, and also where it is the rate that is used up."""
    if view is None:
        return bool(holders)
    return len(holders) >= min(view.concurrency, 10) and view.running >= view.concurrency


# -------------------------------------------------------------------------------------------------------------- its turn
def _turn(facts: Standing, around: Scene) -> Why:
    counts, slots = around.counts, around.slots
    before = "" if not facts.ahead else f", {'more than ' if facts.ahead >= AHEAD_MOST else ''}{things(facts.ahead, 'message')} of its kind before it"
    more = f"beltline worker APP -q {around.queue}:{max(1, 2 * slots)}"
    if facts.keeper:
        mine = next((worker for worker in around.serving if worker.id == facts.keeper), None)
        sticky = facts.message.message.flow.sticky if facts.message.message.flow is not None else ""
        at = "" if mine is None else f" ({things(mine.queues.get(around.queue, 0), 'slot')})"
        text = f"worker {facts.keeper}{at} keeps its key {sticky!r}, and only that one may have it{before}"
        return Why(rule="sticky", why=text, opens_at=math.inf, help=f"more slots for {facts.keeper}; a further worker takes over other keys")
    if facts.noisy:
        text = f"its tenant {facts.tenant!r} has more than its part just now, so the others go first{before}"
        return Why(rule="tenant", why=text, opens_at=math.inf, help=more, more_workers=True)
    turn = f"; tenant {facts.tenant!r} takes its turn" if facts.tenant else ""
    if around.fleet and counts.leased < slots:
        behind = _used_up_before(facts, around)
        if behind is not None:
            return behind
        free = f"{things(slots - counts.leased, 'slot')} of {slots} free"
        note = f"; last: {facts.message.why}" if facts.message.why else ""
        return Why(rule="next", why=f"nothing holds it: {free}{before}{turn}{note}")
    all_busy = f"all {things(slots, 'slot')} of {things(len(around.serving), 'worker')} are busy" if slots > 1 else "the only slot is busy"
    busy = all_busy if around.fleet else "it waits for a free slot"
    ready = f"{things(counts.ready, 'message')} ready in {around.queue}, {things(counts.leased, 'message')} running"
    return Why(rule="slots", why=f"{busy}: {ready}{before}{turn}", opens_at=math.inf, help=more, more_workers=True)
