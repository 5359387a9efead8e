"""The JSON of everything the command line shows, schema version 1. A field never changes its meaning or type; new ones may come.

Instants are ISO 8601 in UTC, durations seconds, absent values null ("no bound" is null too). `arguments` is an object (by name) or an array (by position),
or {"positional": […], "named": {…}} when a sender used both.
"""

import math
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, structs

from beltline.cli.output import SCHEMA_VERSION
from beltline.core.chain import Choose, End, Next, Split, StagePlan, To
from beltline.core.codec import unpack
from beltline.core.errors import MessageInvalid
from beltline.core.flow import Flow
from beltline.core.outcome import Failure
from beltline.core.queues import Counts, QueueSpec
from beltline.core.views import AttemptView, MessageView, RunView, WorkerView
from beltline.monitor.explain import LOST_S


def instant(seconds: float) -> datetime | None:
    """Seconds since 1970 as an aware datetime; 0.0 = not yet."""
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def bound(number: float | None) -> float | None:
    return None if number is None or math.isinf(number) else number


class QueueItem(Struct, frozen=True, kw_only=True):
    version: int = SCHEMA_VERSION
    name: str
    ready: int
    delayed: int
    leased: int
    dead: int
    done: int
    parked: int
    oldest_ready_s: float
    paused: bool
    max_backlog: float | None
    high_water: float | None
    max_deliveries: int
    feeds: list[str]
    held: int = 0
    snoozed_until: datetime | None = None
    tripped_until: datetime | None = None
    trying: bool = False
    limits: list[str] = []
    kill_switch: dict[str, float] | None = None
    state: str = "running"


def queue_state(counts: Counts) -> str:
    """running; or what keeps it from being received from, the strongest first. `trying`: its kill switch lets a few through."""
    if counts.paused:
        return "paused"
    if counts.tripped_until:
        return "tripped"
    if counts.snoozed_until:
        return "snoozed"
    return "trying" if counts.trying else "running"


def queue_item(spec: QueueSpec, counts: Counts) -> QueueItem:
    return QueueItem(
        name=spec.name,
        ready=counts.ready,
        delayed=counts.delayed,
        leased=counts.leased,
        dead=counts.dead,
        done=counts.done,
        parked=counts.parked,
        oldest_ready_s=round(counts.oldest_ready_s, 3),
        paused=counts.paused,
        max_backlog=bound(spec.max_backlog),
        high_water=bound(spec.high_water),
        max_deliveries=spec.max_deliveries,
        feeds=[feed.queue for feed in spec.feeds],
        held=counts.held,
        snoozed_until=instant(counts.snoozed_until),
        tripped_until=instant(counts.tripped_until),
        trying=counts.trying,
        limits=list(spec.limits),
        kill_switch=None if spec.kill_switch is None else structs.asdict(spec.kill_switch),
        state=queue_state(counts),
    )


class ErrorItem(Struct, frozen=True, kw_only=True):
    cause: str
    type: str
    text: str
    traceback: str = ""


def error_item(failure: Failure | None, *, traceback: bool = False) -> ErrorItem | None:
    if failure is None:
        return None
    return ErrorItem(cause=str(failure.cause), type=failure.type, text=failure.text, traceback=failure.traceback if traceback else "")


class AttemptItem(Struct, frozen=True, kw_only=True):
    epoch: int
    outcome: str
    worker: str
    started_at: datetime | None
    ended_at: datetime | None
    ran_s: float
    note: str
    error: ErrorItem | None


class ClaimItem(Struct, frozen=True, kw_only=True):
    limit: str
    key: str
    cost: float


class MessageItem(Struct, frozen=True, kw_only=True):
    """`due_at`: ready at (delayed) or lease until (leased). `attempts`, `headers`, `arguments`: only from `show`."""

    version: int = SCHEMA_VERSION
    id: str
    queue: str
    task: str
    state: str
    outcome: str
    attempt: int
    failed: int
    lost: int
    priority: int
    group: str | None
    run: str | None
    chain: str | None
    stage: str | None
    item: str | None
    sent_at: datetime | None
    due_at: datetime | None
    ended_at: datetime | None
    worker: str
    blocked: bool
    cancel_asked: bool
    why: str
    error: ErrorItem | None
    size_bytes: int
    arguments: Any = None
    headers: dict[str, str] | None = None
    progress: Any = None
    attempts: list[AttemptItem] | None = None
    tenant: str = ""
    sticky: str = ""
    unique_key: str = ""
    limits: list[ClaimItem] = []


def message_item(view: MessageView, *, whole: bool = False) -> MessageItem:
    message, place, flow = view.message, view.message.place, view.message.flow or Flow()
    return MessageItem(
        id=message.id,
        queue=message.queue,
        task=message.task,
        state=view.state,
        outcome=view.outcome,
        attempt=view.failed + view.lost + (0 if view.state in ("done", "dead") and view.outcome != "succeeded" else 1),
        failed=view.failed,
        lost=view.lost,
        priority=message.priority,
        group=message.group,
        run=place.run if place else None,
        chain=place.chain if place else None,
        stage=place.stage if place else None,
        item=place.item if place else None,
        sent_at=instant(view.sent_at),
        due_at=instant(view.due_at),
        ended_at=instant(view.ended_at),
        worker=view.worker,
        blocked=view.blocked,
        cancel_asked=view.cancel_asked,
        why=view.why,
        error=error_item(last_failure(view), traceback=whole),
        size_bytes=len(message.body),
        arguments=arguments(message.body) if whole else None,
        headers=message.headers if whole else None,
        progress=None if view.progress is None else unpack(view.progress),
        attempts=[attempt_item(attempt) for attempt in view.attempts] if whole else None,
        tenant=flow.tenant,
        sticky=flow.sticky,
        unique_key=flow.unique.key if flow.unique is not None else "",
        limits=[ClaimItem(limit=claim.limit, key=claim.key, cost=claim.cost) for claim in flow.claims],
    )


def attempt_item(attempt: AttemptView) -> AttemptItem:
    return AttemptItem(
        epoch=attempt.epoch,
        outcome=attempt.outcome,
        worker=attempt.worker,
        started_at=instant(attempt.started_at),
        ended_at=instant(attempt.ended_at),
        ran_s=round(attempt.ran_s, 4),
        note=attempt.note,
        error=error_item(attempt.failure),
    )


def last_failure(view: MessageView) -> Failure | None:
    """The failure a person asks for: the newest one of the history."""
    return next((attempt.failure for attempt in reversed(view.attempts) if attempt.failure is not None), None)


def arguments(body: bytes) -> Any:
    """A body as its sender meant it; bytes that cannot be read are shown as such, never an error."""
    try:
        value = unpack(body)
    except MessageInvalid:
        return {"unreadable": body}
    match value:
        case [list() as positional, dict() as named]:
            return {"positional": positional, "named": named} if named and positional else named or positional
        case _:
            return value


class RunItem(Struct, frozen=True, kw_only=True):
    version: int = SCHEMA_VERSION
    id: str
    chain: str
    state: str
    open: int
    dead: int
    entered_at: datetime | None
    ended_at: datetime | None


def run_item(view: RunView) -> RunItem:
    return RunItem(
        id=view.id,
        chain=view.chain,
        state=view.state,
        open=view.open,
        dead=view.dead,
        entered_at=instant(view.entered_at),
        ended_at=instant(view.ended_at),
    )


class WorkerItem(Struct, frozen=True, kw_only=True):
    version: int = SCHEMA_VERSION
    id: str
    host: str
    pid: int
    state: str
    started_at: datetime | None
    heartbeat_age_s: float
    queues: dict[str, int]
    tasks: list[str]
    detail: dict[str, object]


def worker_item(view: WorkerView) -> WorkerItem:
    return WorkerItem(
        id=view.id,
        host=view.host,
        pid=view.pid,
        state="lost" if view.age_s > LOST_S else view.state,
        started_at=instant(view.started_at),
        heartbeat_age_s=round(view.age_s, 3),
        queues=view.queues,
        tasks=sorted(view.tasks),
        detail=view.detail,
    )


class StageItem(Struct, frozen=True, kw_only=True):
    """`kind`: one, split (receives parts) or gather (receives the list of all parts). `next`: the stages messages go to. `state`: of its queue."""

    name: str
    task: str
    queue: str
    kind: str
    split: str
    next: list[str]
    ready: int
    delayed: int
    leased: int
    dead: int
    done: int
    oldest_ready_s: float
    paused: bool
    held: int = 0
    state: str = "running"


class ChainItem(Struct, frozen=True, kw_only=True):
    """`within_s`: how soon an item should be through; null = nothing was said."""

    version: int = SCHEMA_VERSION
    name: str
    entered: int
    running: int
    done: int
    dead: int
    failed: int
    cancelled: int
    within_s: float | None
    stages: list[StageItem]


def followers(following: Next) -> list[str]:
    """Names of the stages a `next` leads to."""
    match following:
        case To(stage):
            return [stage]
        case Split(stage=stage):
            return [stage]
        case Choose(arms):
            return [name for arm in arms.values() for name in followers(arm)]
        case End() | _:
            return []


def splits(stages: tuple[StagePlan, ...]) -> list[Split]:
    """Every split of a chain, also those in branches."""
    nexts = [arm for stage in stages for arm in (stage.next.arms.values() if isinstance(stage.next, Choose) else (stage.next,))]
    return [following for following in nexts if isinstance(following, Split)]


def stage_item(stage: StagePlan, stages: tuple[StagePlan, ...], counts: Counts) -> StageItem:
    into = next((split for split in splits(stages) if split.stage == stage.name), None)
    gathers = [split.gather for split in splits(stages)]
    how = "" if into is None else ", ".join(f"{key} in {values}" for key, values in into.keys.items()) or "each element"
    return StageItem(
        name=stage.name,
        task=stage.task,
        queue=stage.queue,
        kind="gather" if stage.name in gathers else "split" if into else "one",
        split=how,
        next=followers(stage.next),
        ready=counts.ready,
        delayed=counts.delayed,
        leased=counts.leased,
        dead=counts.dead,
        done=counts.done,
        oldest_ready_s=round(counts.oldest_ready_s, 3),
        paused=counts.paused,
        held=counts.held,
        state=queue_state(counts),
    )
