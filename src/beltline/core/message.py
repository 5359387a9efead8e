"""What stands in a queue: the message, and where in its chain it stands. Data only; neither ever learns a method that does something.

These values cross process borders as MessagePack arrays (`array_like`): field order is the wire. Add fields at the end, with defaults, and never reuse a place.
"""

from msgspec import Struct

from beltline.core.flow import Flow
from beltline.core.names import ChainName, GatherId, MessageId, QueueName, RunId, StageName, TaskName
from beltline.core.retry import Retry


class Part(Struct, frozen=True, array_like=True, gc=False):
    """This message is part `index` (from 0) of gather `gather`."""

    gather: GatherId
    index: int


class Place(Struct, frozen=True, array_like=True, gc=False):
    """Where a message stands in its run. `item` is the path of part numbers from the root ("" at first, then "3", "3.0", …).

    `parts` is the stack of gathers this message belongs to, innermost last.
    """

    run: RunId
    chain: ChainName
    stage: StageName
    item: str = ""
    parts: tuple[Part, ...] = ()


class Message(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """The immutable durable envelope.

    `body` is MessagePack: a map from parameter name to value, or `[[positional…], {named…}]` from senders that do not know the signature.
    `priority` -100..100, larger first. `ready_at` (seconds since 1970 on the engine's clock) wins over `delay_s` when given.
    `expires_s` after the send the message ends as *expired* unless it has been handed out before.
    `timeout_s` and `retry` override the task's own; None = the task's. `flow`: tenant, limits, sticky and unique key; None = none of them.
    """

    id: MessageId
    queue: QueueName
    task: TaskName
    body: bytes
    headers: dict[str, str] = {}
    priority: int = 0
    delay_s: float = 0.0
    ready_at: float | None = None
    group: str | None = None
    dedup_key: str | None = None
    dedup_window_s: float = 300.0
    expires_s: float | None = None
    timeout_s: float | None = None
    retry: Retry | None = None
    place: Place | None = None
    flow: Flow | None = None


class Gather(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One row with a count, opened by the settle (or send) that writes its parts.

    Fires once, when `expected` parts have answered: `then` is sent with the list of their values, in part order, as parameter `param`; with
    `then` None the list becomes the result of the run, or, if `outer` is given, the answer of that part of the enclosing gather.
    `on_dead` says what a part that is dead-lettered, cancelled or expired does: "hold" waits for its redrive, "skip" goes on without it, "fail" ends the run.
    """

    id: GatherId
    run: RunId
    expected: int
    then: Message | None = None
    param: str = ""
    on_dead: str = "hold"
    outer: Part | None = None
    result_ttl_s: float = 86400.0


class Receipt(Struct, frozen=True, array_like=True, gc=False):
    """Opaque token of exactly one delivery: who settles must hold the current epoch."""

    id: MessageId
    epoch: int


class Delivery(Struct, frozen=True, array_like=True, gc=False):
    """One handing-out of one message. `failed` attempts answered with a failure, `lost` deliveries never answered.

    `sent_at`, `lease_until`: seconds on the engine's clock. `group_epoch` grows at every hand-out within the group (0 without a group): a fence for outside resources.
    """

    message: Message
    receipt: Receipt
    failed: int
    lost: int
    sent_at: float
    lease_until: float
    group_epoch: int = 0

    @property
    def attempt(self) -> int:
        """Which try this is, from 1."""
        return self.failed + self.lost + 1
