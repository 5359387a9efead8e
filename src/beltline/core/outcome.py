"""How a delivery ends: four outcomes, one write, an answer per receipt."""

from enum import IntEnum, StrEnum

from msgspec import Struct

from beltline.core.message import Gather, Message, Receipt
from beltline.core.names import MessageId


class Ended(StrEnum):
    """How a message that is *done* ended."""

    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Cause(StrEnum):
    """Why a delivery did not succeed; also the label `cause` of the metrics."""

    ERROR = "error"
    TIMEOUT = "timeout"
    CRASH = "crash"
    MEMORY = "memory"
    LEASE_LOST = "lease_lost"
    INVALID = "invalid_arguments"
    REJECTED = "rejected"
    UNKNOWN_TASK = "unknown_task"


class Failure(Struct, frozen=True, array_like=True, gc=False):
    """A failure as text: exceptions never travel as objects. `type` is the qualified class name, `traceback` is without locals."""

    cause: Cause
    type: str = ""
    text: str = ""
    traceback: str = ""


class Ack(Struct, frozen=True, kw_only=True, array_like=True, tag=0, gc=False):
    """Ended for good: result, next messages, gathers opened, answer to the innermost gather, all in this one write.

    `result` (MessagePack of one value) is stored under the message's id, or, when the message ends its run, under the run's id.
    `part` (MessagePack of one value) answers the innermost gather of the message's place.
    """

    result: bytes | None = None
    result_ttl_s: float = 86400.0
    then: tuple[Message, ...] = ()
    gathers: tuple[Gather, ...] = ()
    part: bytes | None = None
    ended: Ended = Ended.SUCCEEDED
    note: str = ""
    ran_s: float = 0.0


class RetryAfter(Struct, frozen=True, kw_only=True, array_like=True, tag=1, gc=False):
    """Receivable again `delay_s` seconds from now. Counts as a failed attempt, or, with `lost`, as a delivery that never answered (its runner died)."""

    delay_s: float
    failure: Failure
    lost: bool = False
    ran_s: float = 0.0


class Release(Struct, frozen=True, kw_only=True, array_like=True, tag=2, gc=False):
    """Back without an attempt: drained, snoozed, an innocent neighbour of a crash, or a task nobody here knows.

    `queue_s`: the whole queue is snoozed for so long in the same write (an API said "too many requests"); 0 = it is not.
    """

    delay_s: float = 0.0
    why: str = ""
    queue_s: float = 0.0


class DeadLetter(Struct, frozen=True, kw_only=True, array_like=True, tag=3, gc=False):
    """Given up, kept with its reason. `lost` counts this delivery as one that never answered instead of a failed attempt."""

    reason: str
    failure: Failure
    lost: bool = False
    ran_s: float = 0.0


Outcome = Ack | RetryAfter | Release | DeadLetter


class Settlement(Struct, frozen=True, array_like=True, gc=False):
    receipt: Receipt
    outcome: Outcome


class Settled(IntEnum):
    """The answer per receipt. LEASE_LOST: another worker may hold the message already; nothing was written.

    CANCEL_ASKED is an answer of `renew` only: the lease is renewed, and somebody asked for the cancellation of the message.
    """

    DONE = 0
    LEASE_LOST = 1
    CANCEL_ASKED = 2


class Admission(IntEnum):
    """What became of one message of a send that returned: it is durable in every case."""

    STORED = 0
    SAME_ID = 1  # this id was sent before
    DEDUPLICATED = 2  # another message with this dedup key, or unique key, stands for it
    REPLACED = 3  # one with this unique key that has not begun has taken over what this one says


class Sent(Struct, frozen=True, array_like=True, gc=False):
    """One per message, in the order given. `id` is that of the message that stands for it (another than the one sent if DEDUPLICATED or REPLACED)."""

    id: MessageId
    admission: Admission = Admission.STORED

    @property
    def new(self) -> bool:
        return self.admission is Admission.STORED
