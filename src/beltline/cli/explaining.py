"""Why is it not running? The first reason that holds, from what the engine knows: the message's own note, its queue, and the workers' heartbeats."""

from beltline.cli.shapes import LOST_S, last_failure
from beltline.cli.text import span, things
from beltline.core.views import MessageView
from beltline.engines.protocol import Engine, Fleet


async def why_not(engine: Engine, view: MessageView) -> str:
    now = await engine.now()
    match view.state:
        case "done":
            return f"it ended as {view.outcome or 'succeeded'}" + (f": {view.why}" if view.why else "")
        case "dead":
            failure = last_failure(view)
            cause = ": ".join(part for part in (failure.type, failure.text) if part) if failure else ""
            return (view.why or "it was given up") + (f" ({cause})" if cause else "")
        case "leased":
            asked = "; its cancellation was asked for" if view.cancel_asked else ""
            left_s = view.due_at - now
            if left_s <= 0:
                return f"its lease by {view.worker} is over: the next receive hands it out again"
            return f"it is running at {view.worker}, lease left {span(left_s)}{asked}"
        case "delayed":
            note = f", after {view.why}" if view.why else ""
            return f"it is ready in {span(view.due_at - now)}{note}"
        case _:
            return await _waiting(engine, view)


async def _waiting(engine: Engine, view: MessageView) -> str:
    queue, task = view.message.queue, view.message.task
    counts = await engine.counts(queue)
    if counts.paused:
        return f"queue {queue} is paused: beltline queue resume {queue}"
    if view.blocked:
        return f"another message of its group {view.message.group!r} is before it"
    if isinstance(engine, Fleet):
        alive = [worker for worker in await engine.workers() if worker.age_s <= LOST_S]
        serving = [worker for worker in alive if queue in worker.queues]
        if not serving:
            return f"no worker serves queue {queue}" + (f" ({things(len(alive), 'worker')} up, for other queues)" if alive else " (no worker is up)")
        if not any(task in worker.tasks for worker in serving):
            return f"no worker of queue {queue} knows task {task}"
    if view.why:
        return view.why
    return f"it waits for a free slot: {things(counts.ready, 'message')} ready in {queue}, {things(counts.leased, 'message')} running"
