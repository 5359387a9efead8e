"""What browsing shows: snapshots for people and JSON, never used to decide anything about a delivery."""

from typing import Literal

from msgspec import Struct

from beltline.core.message import Message
from beltline.core.outcome import Failure
from beltline.core.schedule import Schedule


class AttemptView(Struct, frozen=True, kw_only=True):
    """One ended delivery of a message. `outcome`: retry, release, lost, dead_letter, succeeded, cancelled, expired, redrive, edited."""

    epoch: int
    outcome: str
    worker: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    ran_s: float = 0.0
    note: str = ""
    failure: Failure | None = None


class MessageView(Struct, frozen=True, kw_only=True):
    """One message with its state. Instants are seconds since 1970 on the engine's clock; 0.0 = not yet.

    `state`: delayed, ready, leased, done, dead. `outcome` of a done one: succeeded, cancelled, expired. `due_at`: ready at (delayed) or lease until (leased).
    `blocked`: behind the head of its FIFO group. `why`: the note of the last change (reason of a dead letter, "no worker knows this task", "snoozed").
    """

    message: Message
    state: str
    epoch: int
    failed: int
    lost: int
    sent_at: float
    due_at: float = 0.0
    ended_at: float = 0.0
    outcome: str = ""
    why: str = ""
    worker: str = ""
    blocked: bool = False
    cancel_asked: bool = False
    progress: bytes | None = None
    attempts: tuple[AttemptView, ...] = ()


class MessageFilter(Struct, frozen=True, kw_only=True):
    """Which messages. Empty fields do not filter; `ids` is exact. Times are sent_at bounds in seconds since 1970. `error` matches the last failure's type exactly."""

    ids: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    run: str = ""
    group: str = ""
    error: str = ""
    sent_after: float = 0.0
    sent_before: float = 0.0

    @property
    def empty(self) -> bool:
        return self == MessageFilter()


class Page(Struct, frozen=True, kw_only=True):
    """Up to `limit` messages, oldest sent first, and where to go on ("" = that was all)."""

    messages: tuple[MessageView, ...]
    cursor: str = ""


class ResultView(Struct, frozen=True, kw_only=True):
    """Where a message or run stands for its caller.

    `state`: delayed, ready, leased, running (a run), done, dead. `outcome` when done: succeeded, cancelled, expired. `result`: MessagePack of the value,
    None = none stored; `expired`: there was one, its time is over. `failure`, `why`: of a dead one.
    """

    id: str
    state: str
    outcome: str = ""
    result: bytes | None = None
    expired: bool = False
    progress: bytes | None = None
    failure: Failure | None = None
    why: str = ""


class RunView(Struct, frozen=True, kw_only=True):
    """One item's passage through a chain. `state`: running, done, dead (nothing runs and a part is dead), failed (a stage's policy ended it), cancelled."""

    id: str
    chain: str
    state: str
    open: int
    dead: int
    entered_at: float
    ended_at: float = 0.0


class RunCounts(Struct, frozen=True, kw_only=True):
    """How many runs of a chain stand where; `entered` is their sum."""

    running: int = 0
    done: int = 0
    dead: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def entered(self) -> int:
        return self.running + self.done + self.dead + self.failed + self.cancelled


class GatherView(Struct, frozen=True, kw_only=True):
    """A gather row: how many parts are still missing and whether it has fired."""

    id: str
    run: str
    stage: str
    expected: int
    missing: int
    dead: int
    fired: bool


class WorkerView(Struct, frozen=True, kw_only=True):
    """A worker's last heartbeat. `age_s` on the engine's clock; `queues`: queue -> slots; `detail`: JSON object of runners, versions, memory."""

    id: str
    host: str
    pid: int
    started_at: float
    age_s: float
    state: str
    queues: dict[str, int]
    tasks: tuple[str, ...] = ()
    detail: dict[str, object] = {}


class ScheduleView(Struct, frozen=True, kw_only=True):
    """A schedule and where it stands. Instants are seconds since 1970 on the engine's clock; 0.0 = not yet.

    `state`: active, paused (by somebody), left (no app declares it any more: it is not fired). `origin`: code (`owner`: of which app) or operator.
    `stood_at`: all up to here is decided. `next_at`: nothing is due before it; inf = never again, 0.0 = nobody has worked it out since it was changed.
    `last_due_at`, `last_sent_at`, `last_id`: the newest occurrence that was sent. `sent`, `skipped`: occurrences so far. `error`: why nothing is sent at the moment.
    """

    schedule: Schedule
    revision: int
    state: str
    origin: str
    owner: str
    stood_at: float
    next_at: float = 0.0
    last_due_at: float = 0.0
    last_sent_at: float = 0.0
    last_id: str = ""
    sent: int = 0
    skipped: int = 0
    error: str = ""


class DueSchedules(Struct, frozen=True, kw_only=True):
    """Active schedules whose `next_at` has come, at the engine's `now`. `next_at`: when the next of the others has to be looked at; inf = there is none."""

    now: float
    schedules: tuple[ScheduleView, ...]
    next_at: float


class SchemaView(Struct, frozen=True, kw_only=True):
    """The tables of a store. `have`: number of the last migration taken, 0 = there is nothing yet. `newest`, `oldest`: what this process brings a store to, and the
    oldest it can work with. `min_reader`: the lowest `newest` of a process that the store lets work. `missing`: names of the steps not taken yet."""

    have: int
    newest: int
    oldest: int
    min_reader: int
    missing: tuple[str, ...] = ()


class Remark(Struct, frozen=True, kw_only=True):
    """One thing `beltline doctor` has looked at. `verdict`: ok, note (worth knowing), problem (mend it). `help`: what to do."""

    check: str
    verdict: Literal["ok", "note", "problem"]
    found: str
    help: str = ""


class LimitView(Struct, frozen=True, kw_only=True):
    """A limit as it is in force. `origin`: code, or operator (set over what the code says). `running`: leases that hold a place of any of its buckets;
    `waiting`: ready messages behind its closed buckets. inf = not limited in this way."""

    name: str
    rate: float
    per_s: float
    burst: float
    concurrency: float
    origin: str
    running: int = 0
    waiting: int = 0


class BucketView(Struct, frozen=True, kw_only=True):
    """One key of a limit ("" = of the limit itself). `opens_at`: when a start of cost 1 is allowed again; 0.0 = now, inf = when a place is given back."""

    limit: str
    key: str
    running: int
    waiting: int
    opens_at: float = 0.0


class Standing(Struct, frozen=True, kw_only=True):
    """Where a message stands in its queue, and everything the store holds against handing it out. Facts only; monitor/explain.py turns them into words.

    `ahead`: how many ready messages of its own lane (same tenant, sticky key, limits and priority; or, of those that have none of them, the others) stand before it,
    counted up to 1000. `head`: the id of the message its group waits for, and its state.
    `limit`, `key`: the bucket that closes its lane, until `opens_at`; `holders`: at most 10 ids of messages that hold its places. `queue_limit`: a limit of the
    whole queue that allows no start before `queue_opens_at`. `feeds`: queues above their high water that this one feeds. `keeper`: the worker that keeps its key,
    "" = none. `noisy`: its tenant uses more than its part. Instants 0.0 = does not apply, inf = no time is known.
    """

    message: MessageView
    paused: bool = False
    snoozed_until: float = 0.0
    tripped_until: float = 0.0
    trying: bool = False
    head: str = ""
    head_state: str = ""
    limit: str = ""
    key: str = ""
    opens_at: float = 0.0
    holders: tuple[str, ...] = ()
    queue_limit: str = ""
    queue_opens_at: float = 0.0
    feeds: tuple[str, ...] = ()
    keeper: str = ""
    tenant: str = ""
    noisy: bool = False
    ahead: int = 0
