"""What an engine carries, as numbers that can be compared: a need is met when have >= need; 0 = not at all, inf = any."""

import math
from enum import IntEnum

from msgspec import Struct

from beltline.core.errors import Unsupported


class HandOff(IntEnum):
    AT_LEAST_ONCE = 0
    DEDUP_WINDOW = 1
    TRANSACTION = 2
    ATOMIC = 3


class Fence(IntEnum):
    NONE = 0
    CONNECTION = 1
    EPOCH = 2


class Order(IntEnum):
    NONE = 0
    PARTITION = 1
    GROUP = 2


class Counting(IntEnum):
    NONE = 0
    APPROXIMATE = 1
    EXACT = 2


class Durability(IntEnum):
    """MEMORY: dies with the process. OS: survives a killed process, not a power cut. DISK: survives both (fsync before the answer)."""

    MEMORY = 0
    OS = 1
    DISK = 2


class Wakeup(IntEnum):
    POLL = 0
    LONG_POLL = 1
    PUSH = 2


class Capabilities(Struct, frozen=True, kw_only=True):
    send_batch: float
    send_atomic: float
    receive_batch: float
    settle_atomic: float
    max_body: float
    max_delay_s: float = math.inf
    max_retry_delay_s: float = math.inf
    max_lease_s: float = math.inf
    max_renewed_s: float = math.inf
    dedup_window_s: float = math.inf
    priorities: float = math.inf
    order: Order = Order.GROUP
    hand_off: HandOff = HandOff.ATOMIC
    fence: Fence = Fence.EPOCH
    counts: Counting = Counting.EXACT
    durability: Durability = Durability.DISK
    wakeup: Wakeup = Wakeup.LONG_POLL


def require(engine: str, have: Capabilities, **needs: float) -> None:
    """Raise Unsupported for the first need above what `engine` has. Called where queues and chains are declared."""
    for feature, need in needs.items():
        number = getattr(have, feature)
        if number < need:
            raise Unsupported(feature=feature, need=need, have=number, engine=engine)
