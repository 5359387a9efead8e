"""The rows of flow control as they are remembered: shares, lanes, and the shape of a queue. What is done with them: shaping.py."""

from typing import Any

from beltline.core.flow import WORK_WINDOW_MS
from beltline.engines.sqlite import switch
from beltline.engines.sqlite.limits import BucketKey


class Work:
    """Worker time in whole milliseconds, of this window and the one before."""

    __slots__ = ("before", "now", "span")

    def __init__(self, span: int, now: int, before: int) -> None:
        self.span, self.now, self.before = span, now, before

    def add(self, spent: int, now: int) -> None:
        self.turn(now)
        self.now += spent

    def turn(self, now: int) -> None:
        span = now // WORK_WINDOW_MS
        if span != self.span:
            self.before = self.now if span == self.span + 1 else 0
            self.span, self.now = span, 0

    def recent(self, now: int) -> int:
        self.turn(now)
        return self.now + self.before


class Share:
    """`tag`: turns it has been given. `standing`: it had something to give at the last refresh; `place` is drawn from the tag and from the `priority` of that."""

    __slots__ = (
        "changed",
        "has_lane",
        "lanes",
        "leased",
        "n",
        "noisy",
        "owner",
        "place",
        "priority",
        "queue",
        "standing",
        "tag",
        "tenant",
        "weight",
        "work",
    )

    def __init__(self, row: tuple[Any, ...]) -> None:
        self.n, self.queue, self.tenant, self.owner, self.tag, self.weight, marked, standing, self.place, self.priority, self.lanes, self.leased = (
            row[:12]
        )
        self.noisy, self.standing = bool(marked), bool(standing)
        self.work = Work(*row[12:])
        self.changed = 0
        self.has_lane = True  # False: at the last look none of its lanes stood

    @property
    def nobody(self) -> bool:
        return not self.tenant and not self.owner


class Lane:
    """`closed_by`: the number of a bucket, None = open. `closed_until`: milliseconds, None = until a place is given back. `stale`: its head must be looked up."""

    __slots__ = (
        "_keys",
        "changed",
        "closed_at",
        "closed_by",
        "closed_until",
        "code",
        "head",
        "leased",
        "n",
        "other",
        "priority",
        "queue",
        "ready",
        "share",
        "stale",
        "sticky",
        "tenant",
        "touched",
        "waiting",
    )

    def __init__(self, row: tuple[Any, ...], share: Share) -> None:
        self.n, self.queue, self.tenant, self.sticky, self.code, self.priority, _, self.ready, self.leased, self.other = row[:10]
        rank, seq, self.closed_by, self.closed_until, self.closed_at = row[10:]
        self.head: tuple[int, int] | None = None if seq is None else (rank, seq)
        self.share = share
        self.waiting: tuple[int, int] | None = (
            None if self.closed_by is None else (self.closed_by, self.ready)
        )  # as it is counted in bucket and shape
        self.changed = 0
        self.stale = self.touched = False
        self._keys: list[BucketKey] | None = None

    @property
    def keys(self) -> list[BucketKey]:
        if self._keys is None:
            self._keys = decode(self.code)
        return self._keys


class Shape:
    """`opens`, `marked`: when (ms) the next lane opens at a time, and the shares that are marked as noisy; None: not looked up yet."""

    __slots__ = ("changed", "held", "lent", "marked", "members", "opens", "queue", "shaped", "snoozed", "sticky", "switch", "turn", "work")

    def __init__(self, queue: int, row: tuple[Any, ...]) -> None:
        self.queue = queue
        shaped, sticky, self.snoozed, data, self.turn, members, self.held, self.lent = row[:8]
        self.shaped, self.sticky = bool(shaped), bool(sticky)
        self.switch = switch.decode(data)
        self.members: tuple[str, ...] = tuple(members.split("\n")) if members else ()
        self.work = Work(*row[8:])
        self.opens: float | None = None
        self.marked: set[Share] | None = None
        self.changed = 0

    @property
    def shut_until(self) -> int:
        """Nothing at all is handed out before, though somebody may undo it."""
        return max(int(self.snoozed), self.switch.tripped)


def encode(keys: list[BucketKey]) -> bytes:
    """Buckets as bytes that sort as they do: no name and no key holds a NUL."""
    return b"".join(b"%b\0%b\0" % (name.encode(), key.encode()) for name, key in keys)


def decode(code: bytes) -> list[BucketKey]:
    parts = code.decode().split("\0")
    return list(zip(parts[0:-1:2], parts[1::2], strict=True))
