"""What browsing shows: snapshots for people and JSON, never used to decide anything about a delivery."""

from typing import Literal

from msgspec import Struct

from beltline.core.message import Message
from beltline.core.outcome import Failure


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
