"""Why does a queue not move? What stops the whole of it, else what its oldest ready messages wait for, each by the rules of explain.py."""

from msgspec import Struct, structs

from beltline.core.names import QueueName
from beltline.core.policy import PARKED
from beltline.core.views import MessageFilter, Standing
from beltline.core.words import count, things
from beltline.engines.protocol import Browse, Engine
from beltline.monitor.explain import Scene, Why, scene, standing, stops, why

SAMPLE = 20
WHOLE = ("paused", "snoozed", "tripped", "no_worker", "silent", "trying", "downstream")  # rules that hold for every ready message


class Reason(Struct, frozen=True, kw_only=True):
    """`messages`: how many; with `sampled`, of the oldest that were looked at. `example`: the id of one."""

    messages: int
    sampled: bool
    why: Why
    example: str = ""


class QueueWhy(Struct, frozen=True, kw_only=True):
    """`reasons`: the one that concerns most messages first; empty when nothing is ready. `looked_at`: how many of the oldest ready messages were asked."""

    around: Scene
    reasons: tuple[Reason, ...] = ()
    looked_at: int = 0


async def explain_queue(engine: Engine, queue: QueueName) -> QueueWhy:
    """Raises QueueNotDeclared, Unsupported."""
    around = await scene(engine, queue)
    counts = around.counts
    reasons: list[Reason] = []
    if counts.parked:
        text = f"no worker of queue {queue} knows their task; they are offered again every few seconds"
        lost = Why(rule="unknown_task", why=text, help="start a worker whose app has it", more_workers=True)
        reasons.append(Reason(messages=counts.parked, sampled=False, why=lost, example=await _parked(engine, queue)))
    stopped = stops(around)
    if stopped is not None and not counts.ready:  # nothing waits for it yet, and still it is what an operator asks for
        reasons.append(Reason(messages=0, sampled=False, why=stopped))
    facts = await _oldest(engine, queue) if counts.ready else []
    found: dict[tuple[str, str], Reason] = {}
    for each in facts:
        one = why(each, around)
        key = (one.rule, one.limit)
        known = found.get(key)
        if known is None:
            found[key] = Reason(messages=1, sampled=True, why=one, example=each.message.message.id)
        else:
            found[key] = structs.replace(known, messages=known.messages + 1)
    reasons += [_counted(reason, around, len(facts)) for reason in found.values()]
    return QueueWhy(around=around, reasons=tuple(sorted(reasons, key=lambda reason: -reason.messages)), looked_at=len(facts))


def _counted(reason: Reason, around: Scene, looked_at: int) -> Reason:
    """With the exact number, where the counts of the queue say it."""
    if reason.why.rule in WHOLE or looked_at >= around.counts.ready:
        exact = around.counts.ready if reason.why.rule in WHOLE else reason.messages
        return structs.replace(reason, messages=exact, sampled=False)
    return reason


async def _oldest(engine: Engine, queue: QueueName) -> list[Standing]:
    if not isinstance(engine, Browse):
        return []
    page = await engine.browse(MessageFilter(queues=(queue,), states=("ready",)), limit=SAMPLE)
    return [await standing(engine, view.message.id) for view in page.messages]


async def _parked(engine: Engine, queue: QueueName) -> str:
    """One of them, if it is among the oldest delayed."""
    if not isinstance(engine, Browse):
        return ""
    page = await engine.browse(MessageFilter(queues=(queue,), states=("delayed",)), limit=SAMPLE)
    return next((view.message.id for view in page.messages if view.why == PARKED), "")


def summary(found: QueueWhy) -> str:
    """One line: what is in the queue and who works at it."""
    counts, around = found.around.counts, found.around
    held = f", {count(counts.held)} of them held back" if counts.held else ""
    workers = f"; {things(around.slots, 'slot')} of {things(len(around.serving), 'worker')}" if around.fleet else ""
    return f"{things(counts.ready, 'message')} ready{held}, {count(counts.delayed)} delayed, {count(counts.leased)} running{workers}"
