"""The contract between Beltline and a store: few verbs, all in batches, an answer per item, and small optional powers beside them.

Laws every engine keeps (each is a file of beltline.testing.conformance):
  durable     `send` returns only when the level in `capabilities.durability` is reached. The same id again stores nothing and says SAME_ID, for at least 24 h after the end.
  hand-out    `receive` is one atomic step: it turns due delayed messages ready, hands expired leases out again (epoch + 1, lost + 1) before anything else,
              dead-letters poison, ends expired messages, and takes the lowest rank first. A FIFO group has at most one lease, and its head blocks only its group.
              `ready_at` is the instant a message became ready: the send, its due time, now for hurry and redrive; a release without delay keeps it, and so its place. The rank is
              drawn from it, ties go by send order (`seq`, kept for life). A queue that is paused is left alone altogether. One that is stalled still hands out leases that are over.
  groups      the head is the first sent that is delayed, ready or leased (or dead, under on_dead "hold"); delayed or retrying it blocks too. `group_epoch` only grows within a group.
  two counts  `failed` and `lost`. lost + 1 = max_deliveries makes a message poison: at the receive or sweep after its lease ran out, or at the settle that says lost.
  fence       `settle` and `renew` compare the epoch. A stale receipt writes nothing and answers LEASE_LOST; a late one that nobody overtook is DONE. Of two receipts of one
              delivery in a batch the first has an effect. A settle whose `then` names an undeclared queue is refused whole, before it writes (QueueNotDeclared).
  one write   everything a settlement says (outcome, result, `then`, gathers, part, counters, history) is written together or not at all.
  time        is the store's, with a ratchet: it never runs backwards, and goes on at the clock's pace after the clock was set back. Time never decides safety.
              Due at `ready_at`, over at `lease_until`, expired at sent + expires_s (exactly then, and only if never handed out).
              A delayed message that is due and a lease that is over read as ready in counts and views; purge takes both. Looking moves nothing.
  answers     ok; fail (an exception of core.errors: certainly no effect); unknown (EngineUnavailable(effect="unknown"): repeating is safe).
  capacity    `then` messages are never refused for a full queue: backpressure stalls the receive of the stage before (QueueSpec.feeds), never a settle.
              load(f) = ready(f) + leased(x) * fan_out(x) over all x that feed f. A receive takes at most floor((high_water - load) / fan_out); below 1 it takes nothing until
              load <= low_water (inf: half of high_water), but with load 0 always one. `max_backlog` counts what a send would really store; redrive is not refused either.
  identity    redrive, retry and edit keep id, history and first-send time. Epochs only grow, also over a redrive. Purged, deleted, cancelled messages are done, their ids known.
  dedup       (queue, key) answers with the first message's id for that one's window from its send, also after its end. Hand-offs ignore it: their ids are derived.
  cancel      a leased message is asked. If its delivery then ends as a retry or release, or its lease runs out, it ends cancelled; an ack or dead letter stands.

  runs        every message with a place counts in its run: +1 when stored, -1 when it ends, `dead` while it is dead. A run whose `open` and `dead` are both 0 is done
              (cancelled, if its last message ended cancelled or expired and no gather is left to fire). `open` 0 with dead > 0: the run is dead, until a redrive.
              The result of a message with a place is stored under the run's id. When a run is failed or cancelled, what a settle would hand on is dropped, its live
              messages are cancelled (leased ones asked), and its gathers never fire; its dead stay dead and are left out of redrives. A new message sent into an ended run opens it again.
              A dead part whose gather skips it does not count as `dead`: the run goes on without it. An id that is a run's and a message's is answered as the run.
  gathers     a part answers once (by index; repeats change nothing). Answered: Ack.part; or, by `on_dead`, its death ("hold": waits; "skip": an absent value; "fail": the run
              is failed). Cancelled, expired, deleted and purged parts count as absent unless "fail". A gather of 0 parts fires at once. Firing is part of the settle.
              Absent values are left out of the list. A part that is acknowledged without an answer, and without followers that carry it on, is absent. Only the innermost
              gather hears of a message.
  flow        a message with a tenant, claims or a sticky key stands in a lane: (tenant, sticky key, buckets of its claims, priority). Lanes of one tenant (and, sticky, of one
              keeper) are a share; messages without any of these are the share of nobody, and lanes without tenant and sticky key belong to it. Nothing of this costs a queue
              that has no lane. Who is next: of the shares that have something to give to this worker, those that are not noisy first, then the lowest tag - head_start(priority
              of what it would give, ageing_s), then by name (UTF-8); in a share the lowest (rank, send order) over its open lanes. A hand-out lifts the queue's turn to the share's
              tag and the tag by turn_cost(weight) (the tenant's last sent weight). A share that begins to have something to give starts at the queue's turn at least.
              What a share is ahead of the queue's turn is one hand-out's cost at most, so an engine may forget it of a tenant who has been away for 7 days.
              A lease that is over and handed out again costs no turn. Noisy: core.flow.noisy over leases (those that are over too) and worker time (ran_s of settlements) of this and the last window,
              looked at when a share is about to be served, and, for those marked, at each receive.
  limits      a start (hand-out, also of a lease that is over) needs room in each bucket of the message's claims, in their order, and in each limit of its queue. A bucket without a
              limit of that name is open. Places are held by leases that are not over (for key "" also by every lease of the queues that name the limit). A claim on the very bucket that
              its queue's limit stands for is charged beside the queue's start (its lease holds one place all the same); an app refuses to say so. The first bucket that
              refuses a head closes its lane: until its rate allows the start (rounded up to ms), or until the first of the leases that hold its places would be over. It opens at that
              time (at most 200 lanes a receive, by (closed_until, closed_at, name)), when it is empty, when the limit is set, reset or declared with other numbers, and one lane of each queue for each
              place that is given back (any end of a lease, by limits with a concurrency; by (closed_at, name); after empty ones are open). A closed lane is not looked at, and blocks nobody. A receive that has closed about 1,000 lanes gives what it has; who waits asks again at once.
              A lane whose delayed message is due is not empty.
              A lease that is over and may not start again stays as it is. A late `renew` takes the places again: where one is no longer free it answers LEASE_LOST and writes nothing. What code declares gives way to what was set at run time until that is reset.
  unique      of the messages of a queue with one unique key only the last stored one is remembered; core.flow.Unique says when it stands for a new one (DEDUPLICATED, or REPLACED:
              body, headers, timeout_s and retry are the new one's, a delayed one is put off, the history says "replaced"). A send looks at it after id and dedup key. Hand-offs ignore it.
  switch      a queue that is snoozed, or tripped by its kill switch, is left alone like a paused one until that instant. core.flow.KillSwitch is judged once after each settle, over all it ended
              (releases do not count; failed: retries and dead letters), in two half windows. While it tries, at most `tries` less those that succeeded and the leases that live are
              handed out. Resume ends snooze and switch.
  sticky      the keeper of a key is core.flow.keeper over the members: workers whose heartbeat is at most MEMBER_S old, up, and serve the queue. Members are looked at by each receive that has room,
              as all lanes are. Without members everybody may have the lane. A lease that is over goes to whoever comes.
  schedules   `stood_at` says up to which instant all is decided: put and resumed at now, moved by steps, never beyond now. A step compares it, the revision of the spec and
              that the schedule is active, and sends (as `send` does, all of its messages or none), in one write; of any number of schedulers one wins. Who wins twice, by a
              restored store, sends the same ids again. A put keeps pause and position unless the timing changed (cron, interval, zone): then it stands at now. Of two with
              one name in a put the second changes the first. Code takes a schedule over from an operator, never the other way round; one that an owner's code no longer
              names, and nobody has named for LEFT_S, is left: kept as it is and not fired.
  sizes       the size of a queue's fleet is one row with a turn. A decision names the turn it was made on: of any number made on one turn exactly one is written.
              The log keeps the newest 1,000 decisions of each queue. An order (set_range) keeps the turn, makes the next decision due, and stands until it is cleared.
  held        counts.held are those of `ready` that no further slot would let start now: ready - held is what a receive without bound would hand out. Not handed out are those behind
              their group's head or its lease, those in a closed lane, of the others what is beyond the room of the queue's limits and the tries of its kill switch, and all of
              a queue that is paused, snoozed or tripped. Neither backpressure nor the claims of open lanes and of leases that are over are looked at. The difference
              is exact up to COUNTED (10,000); where it is more, an engine may say less, but not less than that.
  use         from any thread and event loop of the process; before open, after close and after a fork: HandleMisused.

Optional powers are found with isinstance; a method that raises NotImplementedError is a design error.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from beltline.core.capabilities import Capabilities
from beltline.core.flow import Limit
from beltline.core.lifecycle import State
from beltline.core.message import Delivery, Gather, Message, Receipt
from beltline.core.names import MessageId, QueueName, RunId, WorkerId
from beltline.core.outcome import Sent, Settled, Settlement
from beltline.core.queues import Counts, QueueSpec
from beltline.core.scaling import Decision, Size
from beltline.core.schedule import Schedule, Step, Stepped
from beltline.core.views import (
    BucketView,
    DueSchedules,
    GatherView,
    LimitView,
    MessageFilter,
    MessageView,
    Page,
    Remark,
    ResultView,
    RunCounts,
    RunView,
    ScheduleView,
    SchemaView,
    Standing,
    WorkerView,
)
from beltline.engines.moving import MovedPage, Seal, Section


@runtime_checkable
class Engine(Protocol):
    """A store of queues. Times are seconds on the engine's clock. Raises EngineUnavailable when the store cannot be reached."""

    name: str
    capabilities: Capabilities

    async def open(self) -> None:
        """Connect, create or migrate the schema, check that the durability level can be held. Raises EngineForeign, EngineTooNew, EngineUnsafe."""
        ...

    async def close(self) -> None:
        """Idempotent; also while a receive waits (it returns [])."""
        ...

    async def now(self) -> float:
        """The engine's time."""
        ...

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        """Create the queues or change their numbers. Raises Unsupported here, never first at send time."""
        ...

    async def send(self, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        """All or none, in the order given. Raises QueueNotDeclared, QueueFull, BodyTooLarge (nothing stored)."""
        ...

    async def receive(
        self, queues: Sequence[QueueName], *, limit: int, lease_s: float, wait_s: float = 0.0, worker: WorkerId = WorkerId("")
    ) -> list[Delivery]:
        """At most `limit` deliveries, queues in the order given; waits up to `wait_s` for the first one. Lease 0 is allowed: receivable again at once."""
        ...

    async def renew(self, receipts: Sequence[Receipt], *, lease_s: float) -> list[Settled]:
        """Lengthen leases to `lease_s` seconds from now. One answer per receipt: DONE, LEASE_LOST, or CANCEL_ASKED (renewed, please stop)."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        """End deliveries, each in one write. One answer per settlement, in the order given: DONE or LEASE_LOST."""
        ...

    async def counts(self, queue: QueueName) -> Counts: ...

    async def purge(self, queue: QueueName) -> int:
        """Delete all messages of the queue that are not leased or done (dead ones too); parts of gathers count as cancelled. Returns how many."""
        ...


@runtime_checkable
class Browse(Protocol):
    async def queues(self) -> list[QueueSpec]: ...

    async def get(self, id: MessageId) -> MessageView:
        """With the attempts. Raises NotFound."""
        ...

    async def browse(self, where: MessageFilter, *, limit: int = 100, cursor: str = "") -> Page: ...


@runtime_checkable
class Results(Protocol):
    async def results(self, ids: Sequence[str]) -> list[ResultView | None]:
        """By message id or run id. None = never sent, or its history is over."""
        ...

    async def await_results(self, ids: Sequence[str], *, wait_s: float) -> list[ResultView | None]:
        """Like `results`, but waits until any of them has ended (done, dead, failed, cancelled), is not known, or `wait_s` is over. May return early: ask again."""
        ...

    async def progress(self, notes: Sequence[tuple[Receipt, bytes]]) -> list[Settled]:
        """Keep the newest progress (MessagePack of any value) of a leased message. A stale receipt writes nothing."""
        ...


@runtime_checkable
class Control(Protocol):
    async def pause(self, queue: QueueName) -> None: ...

    async def resume(self, queue: QueueName) -> None: ...

    async def cancel(self, ids: Sequence[MessageId], *, reason: str = "") -> list[State | None]:
        """The state each message is in now: DONE (cancelled, or ended before), LEASED (asked; its worker will stop it), None (never sent)."""
        ...

    async def cancel_asked(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Those of the given receipts whose cancellation was asked for. Cheap: workers ask every second."""
        ...

    async def hurry(self, ids: Sequence[MessageId]) -> int:
        """Make delayed messages ready now. Returns how many were."""
        ...

    async def redrive(self, where: MessageFilter, *, limit: int, queue: QueueName | None = None) -> list[MessageId]:
        """Dead -> ready, oldest first, both counters back to zero, identity kept; to another queue if given. `where` may not be empty."""
        ...

    async def edit(self, id: MessageId, *, body: bytes) -> None:
        """Replace the body of a dead or delayed message; the history says so and keeps the old one's size. Raises NotFound, Refused."""
        ...

    async def delete(self, where: MessageFilter, *, limit: int) -> int:
        """End dead messages for good (done, cancelled). `where` may not be empty."""
        ...


@runtime_checkable
class Runs(Protocol):
    async def run(self, id: RunId) -> RunView:
        """Raises NotFound."""
        ...

    async def runs(self, chain: str, *, state: str = "", limit: int = 100, cursor: str = "") -> list[RunView]:
        """Oldest first; `cursor` is the id of the last one seen."""
        ...

    async def run_counts(self, chain: str) -> RunCounts: ...

    async def gathers(self, run: RunId) -> list[GatherView]: ...

    async def cancel_run(self, id: RunId, *, reason: str = "") -> RunView:
        """Cancel all live messages of a run (leased ones are asked). Raises NotFound."""
        ...


@runtime_checkable
class Fleet(Protocol):
    async def beat(self, worker: WorkerView) -> None:
        """A worker's sign of life; `age_s` is ignored."""
        ...

    async def forget(self, worker: WorkerId) -> None: ...

    async def workers(self) -> list[WorkerView]: ...


@runtime_checkable
class Sizes(Protocol):
    async def sizes(self) -> list[Size]:
        """Of every queue that anybody has decided about, by name."""
        ...

    async def set_size(self, queue: QueueName, *, turn: int, slots: int, state: bytes, log: Decision | None = None) -> bool:
        """The size from now on, if `turn` is the one that stands. False: somebody else has decided meanwhile, nothing was written. Raises QueueNotDeclared."""
        ...

    async def set_range(self, queue: QueueName, least: int, most: int) -> None:
        """What an operator says; it wins over what the workers were started with. Raises QueueNotDeclared, ValueInvalid."""
        ...

    async def clear_range(self, queue: QueueName) -> None: ...

    async def decisions(self, queue: QueueName | None = None, *, limit: int = 100) -> list[Decision]:
        """Newest first; None: of all queues."""
        ...


@runtime_checkable
class Limits(Protocol):
    """Flow control that changes at run time. What messages say for themselves is in Message.flow."""

    async def declare_limits(self, given: Sequence[Limit]) -> None:
        """What the code says. Raises NameInvalid, ValueInvalid."""
        ...

    async def set_limit(self, limit: Limit) -> None:
        """What an operator says; stands over the code's until it is reset."""
        ...

    async def reset_limit(self, name: str) -> None:
        """Back to what the code says, or away. Raises NotFound."""
        ...

    async def limits(self) -> list[LimitView]:
        """By name."""
        ...

    async def buckets(self, name: str, *, limit: int = 100) -> list[BucketView]:
        """Those keys of a limit where something runs or waits, or that time will open, by key. Raises NotFound."""
        ...

    async def snooze(self, queue: QueueName, *, seconds: float) -> float:
        """Hand out nothing of the queue for so long; a snooze that ends later stays. Returns until when. `resume` ends it. Raises QueueNotDeclared."""
        ...


@runtime_checkable
class Explain(Protocol):
    async def standing(self, id: MessageId) -> Standing:
        """Why a message is not running. Facts only; changes nothing. Raises NotFound."""
        ...


@runtime_checkable
class Upkeep(Protocol):
    async def sweep(self) -> int:
        """Hurry what `receive` would do anyway: due -> ready, poison -> dead, expired -> done. Never touches a lease that can still be settled. Returns how many moved."""
        ...

    async def retain(self, *, history_s: float, limit: int = 5000) -> int:
        """Drop done messages that ended more than `history_s` ago, ended runs, expired results and dedup keys; at most `limit` of each. Returns how many.

        Ids of dropped messages are known (SAME_ID) until 24 h after the end.
        """
        ...


@runtime_checkable
class Migratable(Protocol):
    """The store has tables that change from version to version. Both verbs also before `open`."""

    async def schema(self) -> SchemaView:
        """Looks, changes nothing. Raises EngineForeign, EngineUnavailable."""
        ...

    async def migrate(self, *, wait_s: float = 60.0, tell: Callable[[str], None] = ...) -> list[str]:
        """Take the steps that are missing; any number of processes may ask at once. Returns the names of those taken here. `tell` gets a line for people."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """The store is somebody else's program, whose settings and neighbours can stand in the way."""

    async def inspect(self) -> list[Remark]: ...


@runtime_checkable
class Movable(Protocol):
    """All that is stored can move to another engine. Used by upkeep/moving.py, which says in what order; a seal refuses everybody else (EngineMoved)."""

    @property
    def shown(self) -> str:
        """The store's URL without password."""
        ...

    async def seal(self) -> Seal | None: ...

    async def set_seal(self, before: Seal | None, after: Seal | None) -> bool:
        """False: it is not `before`, nothing was changed. Whatever begins after the answer sees it."""
        ...

    async def underway(self) -> frozenset[str]:
        """Transactions that have begun, and may have looked at the seal before it changed: empty where none ever can. Each has a name that is never used again."""
        ...

    async def leased(self) -> int:
        """Leases that are not over."""
        ...

    async def empty(self) -> bool:
        """No message, run, dedup key, known id or schedule is there; queues may be declared."""
        ...

    async def take(self, section: Section, after: str, limit: int) -> MovedPage:
        """At most `limit` things of a section behind `after`, "" at first. Nothing changes there meanwhile."""
        ...

    async def put(self, page: MovedPage, before: Seal, after: Seal) -> bool:
        """In one transaction: the new seal, and what is not there yet. False: the seal is not `before`, nothing was written."""
        ...


class Transaction(Protocol):
    """One transaction on the engine's store, for the user's own writes and the settle of the delivery that makes them. Used by one thread.

    After `commit` or `rollback` every further `rollback` does nothing.
    """

    connection: Any
    """What the user writes with: the store's native connection, or the one that was given."""

    def settle(self, settlement: Settlement) -> Settled:
        """Write it here, to take effect with the commit. LEASE_LOST: nothing was written, roll back. Raises what Engine.settle raises (nothing was written)."""
        ...

    def commit(self) -> None:
        """An error leaves open whether it happened: `rollback`, then ask the store whether the lease still holds."""
        ...

    def rollback(self) -> None:
        """Never raises: what cannot be rolled back is closed, which has the same effect."""
        ...


class AsyncTransaction(Protocol):
    """The same for a coroutine. Used in one event loop."""

    connection: Any

    async def settle(self, settlement: Settlement) -> Settled: ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...


@runtime_checkable
class Transactional(Protocol):
    """Messages and settles in a transaction that also holds the user's own writes. What is written through it happens exactly once, and nothing else does.

    connection  of the caller's, to the very store of this engine; another one, or of a library the engine cannot speak through, is HandleMisused. It commits, or not,
                as its owner says; until then nobody sees what was written. No wakeup: the first look after the commit finds it.
    refusals    (QueueNotDeclared, QueueFull, …) are raised and leave the transaction as usable as before.
    renew       of a lease that an open transaction has settled waits for that transaction's end and then tells the truth: so the fate of a commit
                whose answer was lost can be asked.
    An engine whose store has no transaction that user data could share (memory: it holds nothing but messages) is not Transactional.
    """

    def send_with(self, connection: Any, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        """`send` through a synchronous connection, in the caller's thread."""
        ...

    async def asend_with(self, connection: Any, messages: Sequence[Message], *, gathers: Sequence[Gather] = ()) -> list[Sent]:
        """`send` through an asynchronous connection, in the caller's event loop."""
        ...

    def transaction(self, connection: Any = None) -> Transaction:
        """Begin one, on a connection of the engine's own or on the one given."""
        ...

    async def atransaction(self, connection: Any = None) -> AsyncTransaction:
        """`transaction` for a coroutine."""
        ...


@runtime_checkable
class Schedules(Protocol):
    """Recurring sends as rows. When one is due is worked out by whoever makes the steps (core/schedule.py); the engine keeps where each stands."""

    async def put_schedules(self, specs: Sequence[Schedule], *, origin: str, owner: str = "", replace: bool = True) -> list[bool]:
        """Create or change them. False: there is one of this name that may not be changed so (code's by an operator, or any other one without `replace`).

        `origin`: code or operator. With "code" and an `owner` these are all of that owner's: others of it that nobody has named for LEFT_S are left.
        """
        ...

    async def schedules(self, *, limit: int = 1000, after: str = "") -> list[ScheduleView]:
        """By name, those behind `after`."""
        ...

    async def schedule(self, name: str) -> ScheduleView:
        """Raises NotFound."""
        ...

    async def pause_schedule(self, name: str, paused: bool) -> ScheduleView:
        """Or resume: then it stands at now, and what was due meanwhile is not sent. Raises NotFound."""
        ...

    async def remove_schedule(self, name: str) -> None:
        """What it has sent stays. Raises NotFound."""
        ...

    async def due_schedules(self, *, limit: int = 100) -> DueSchedules:
        """Those that have to be looked at now, the longest due first. Changes nothing; cheap: schedulers ask every second."""
        ...

    async def step_schedules(self, steps: Sequence[Step]) -> list[Stepped]:
        """Each in one write, one answer per step in the order given. A message whose id was sent before is not sent again.

        Raises what `send` raises beside QueueFull and QueueNotDeclared (BodyTooLarge, ValueInvalid): the step with that message was not taken, others may have been.
        Of several reasons not to take a step any may be told. The steps of one schedule are looked at in the order given.
        """
        ...
