"""What an engine hands over when its queues move to another store: the same values whatever the store, in the order they were written.

    seal     a mark on a store that takes part in a move; with it every verb but those of `Seal.level` is refused (EngineMoved)
    section  a kind of thing, copied one after the other: queues first, because all else names them; runs before the messages that count in them
    page     some things of one section; put into the target in one transaction, together with the place where the next one begins

Numbers are whole milliseconds since 1970, as both engines store them; ids are 32 hex digits. A thing is put once: one whose id is there already is left as it is.
Values that one store cannot tell apart (an empty text and none, how long a lease that is over was) have one form here, so that `digest` is equal on both sides.
"""

from collections.abc import Iterable
from enum import IntEnum, StrEnum
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct, structs

from beltline.core.errors import EngineMoved
from beltline.core.lifecycle import State

MASK = (1 << 64) - 1


class Level(IntEnum):
    """How far a store is closed. The numbers are stored."""

    OPEN = 0
    SEALED = 1  # a source: what is leased may be renewed and settled, nothing else is taken
    CLOSED = 2  # a source: nothing changes any more
    MOVED = 3  # a source whose move is complete
    FILLING = 4  # a target that is not complete


class Section(StrEnum):
    QUEUES = "queues"
    RUNS = "runs"
    GATHERS = "gathers"
    MESSAGES = "messages"
    KEYS = "keys"
    KNOWN = "known"
    SCHEDULES = "schedules"
    LIMITS = "limits"
    END = "end"

    @property
    def next(self) -> "Section":
        order = list(Section)
        return order[order.index(self) + 1]


class Seal(Struct, frozen=True, kw_only=True):
    """`move`: the id that source and target of one move share. `other`: the other store's URL, without password. Of a target, `section` and `after` say what comes next."""

    move: str
    level: Level
    other: str
    section: Section = Section.QUEUES
    after: str = ""

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()

    def at(self, level: Level) -> "Seal":
        return structs.replace(self, level=level)


def read_seal(text: str | None) -> Seal | None:
    return None if text is None else msgspec.json.decode(text, type=Seal)


def refusal(seal: Seal | None, shown: str) -> EngineMoved:
    """What whoever uses a sealed store is told. `shown`: the store's own name, without password."""
    to = seal.other if seal is not None else "another store"
    if seal is not None and seal.level is Level.FILLING:
        return EngineMoved(
            f"{shown} is being filled from {to}.",
            to=shown,
            why="Nothing was stored.",
            help="Finish the move first: run beltline engine move once more.",
        )
    done = seal is not None and seal.level is Level.MOVED
    return EngineMoved(
        f"The queues of {shown} {'have moved' if done else 'are moving'} to {to}.",
        to=to,
        why="Nothing was stored here.",
        help=f"Give this process the new URL and start it again: {to}",
    )


class MovedSwitch(Struct, frozen=True, array_like=True, gc=False):
    """A kill switch that has something to remember. `tripped`: until when; `trying`: a few may show that things are well again, `succeeded` of them did.

    `span`: the half window that `ended` and `failed` count; the other two are of the one before.
    """

    tripped: int
    trying: bool
    succeeded: int
    pauses: int
    span: int
    ended: int
    failed: int
    ended_before: int
    failed_before: int


class MovedQueue(Struct, frozen=True, array_like=True, gc=False):
    """`spec`: MessagePack of the QueueSpec. `done`: how many have ended in it since it exists. `snoozed`: until when, 0 = never. `switch`: None = nothing has ended by its rule."""

    name: str
    spec: bytes
    paused: bool
    done: int
    snoozed: int = 0
    switch: MovedSwitch | None = None


class MovedRun(Struct, frozen=True, array_like=True, gc=False):
    """`state`: 0 running, 1 done, 2 dead, 3 failed, 4 cancelled."""

    id: str
    chain: str
    state: int
    open: int
    dead: int
    entered: int
    ended: int
    result: bytes | None
    result_until: int | None
    why: str
    failure: bytes | None


class MovedGather(Struct, frozen=True, array_like=True, gc=False):
    """`data`: MessagePack of the Gather. `parts`: those that answered or are dead: (index, dead, value)."""

    id: str
    run: str
    missing: int
    dead: int
    fired: bool
    data: bytes
    parts: tuple[tuple[int, bool, bytes | None], ...]


class MovedAttempt(Struct, frozen=True, array_like=True, gc=False):
    epoch: int
    outcome: str
    worker: str
    started: int | None
    ended: int
    ran: float
    note: str
    failure: bytes | None


class MovedMessage(Struct, frozen=True, array_like=True, gc=False):
    """`due`: delayed, ready: since; leased: lease until; done, dead: ended. `ran`: seconds, of a done one that was acknowledged. `outcome` of done: 1 succeeded, 2 cancelled, 3 expired. `head`: rows.encode_head, None = plain."""

    id: str
    seq: int
    state: int
    blocked: bool
    queue: str
    task: str
    group: str | None
    run: str | None
    head: bytes | None
    body: bytes
    sent: int
    epoch: int
    failed: int
    lost: int
    rank: int
    since: int
    due: int
    expires: int | None
    started: int | None
    worker: str
    ran: float | None
    outcome: int | None
    result: bytes | None
    result_until: int | None
    why: str
    error: str
    asked: str | None
    progress: bytes | None
    attempts: tuple[MovedAttempt, ...]


class MovedKey(Struct, frozen=True, array_like=True, gc=False):
    """A dedup key and the message that stands for it."""

    queue: str
    key: str
    id: str
    until: int


class MovedId(Struct, frozen=True, array_like=True, gc=False):
    """An id that is still known though its history is over."""

    id: str
    ended: int


class MovedSchedule(Struct, frozen=True, array_like=True, gc=False):
    """`spec`: MessagePack of the Schedule. `left`: no code names it any more. When it is due next is worked out anew."""

    name: str
    spec: bytes
    origin: str
    owner: str
    paused: bool
    left: bool
    named: int
    stood: int
    last_due: int | None
    last_sent: int | None
    last_id: str
    sent: int
    skipped: int
    error: str


class MovedLimit(Struct, frozen=True, array_like=True, gc=False):
    """MessagePack of what the code says of a limit, and of what an operator has set over it. How full its buckets are stays behind."""

    name: str
    declared: bytes | None
    given: bytes | None


Moved = MovedQueue | MovedRun | MovedGather | MovedMessage | MovedKey | MovedId | MovedSchedule | MovedLimit


class MovedPage(Struct, frozen=True, kw_only=True):
    """`after`: where the next page of the section begins, "" = it is over. With the queues: the last group epoch and the next place among the sends."""

    section: Section
    things: list[Moved]
    after: str = ""
    hand_outs: int = 0
    next_seq: int = 0


class Sums(Struct, frozen=False, kw_only=True):
    """What a store holds, to be compared: how many of what, by state, and a sum of hashes of all of it, whatever the order."""

    messages: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, int]] = {}
    things: dict[str, int] = {}
    digest: int = 0

    def add(self, page: MovedPage) -> None:
        self.things[page.section] = self.things.get(page.section, 0) + len(page.things)
        for thing in page.things:
            if isinstance(thing, MovedMessage):
                counts = self.messages.setdefault(thing.queue, {})
                word = State(thing.state).word
                counts[word] = counts.get(word, 0) + 1
            elif isinstance(thing, MovedRun):
                counts = self.runs.setdefault(thing.chain, {})
                counts[RUN_WORDS[thing.state]] = counts.get(RUN_WORDS[thing.state], 0) + 1
        self.digest = (self.digest + digest(page.things)) & MASK


RUN_WORDS = ("running", "done", "dead", "failed", "cancelled")
_encode = msgspec.msgpack.Encoder().encode


def digest(things: Iterable[Moved]) -> int:
    """The sum of the hashes of the things. Not in it: how long a delivery ran (one store keeps six digits of it), and what no text column can hold."""
    total = 0
    for thing in things:
        if isinstance(thing, MovedMessage):
            thing = structs.replace(
                thing, ran=None if thing.ran is None else 0.0, attempts=tuple(structs.replace(each, ran=0.0) for each in thing.attempts)
            )
        total += int.from_bytes(blake2b(_encode(_storable(structs.astuple(thing))), digest_size=8).digest(), "big")
    return total & MASK


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isprintable() else value.replace("\x00", "\u2400").encode("utf-8", "replace").decode()
    if isinstance(value, Struct):
        value = structs.astuple(value)
    return [_storable(each) for each in value] if isinstance(value, tuple) else value
