"""All queues of one store into another, in steps that can be killed at any point and begun again by the same command.

    1  the target is sealed: FILLING. It must hold no message.         4  the source is CLOSED: nothing changes in it any more
    2  the source is SEALED: what is leased may be settled, no more    5  copy, page by page; the target's seal says where it stands
    3  wait until nothing is leased                                    6  compare; the source is MOVED, then the target is opened

At every instant at most one of the two takes sends: the target is opened only after the source has been closed for good, and a move may be taken back
only before that. A seal is changed by compare and set, so of two movers of one move each step is done by one. A page holds ids, and is put together with the
place of the next one, so nothing is put twice.
"""

import asyncio
import time
from collections.abc import Callable

from msgspec import Struct, structs

from beltline.core.errors import BeltlineError, Refused
from beltline.engines.moving import Level, MovedMessage, MovedPage, Seal, Section, Sums
from beltline.engines.protocol import Movable, Sizes

FIRST_PAGE = 100
MOST_THINGS, MOST_BYTES = 2000, 4_000_000  # of a page: one transaction of the target, and twice as much memory here
GRACE_S = 2.0  # for a transaction that just happens to be open: anybody's look, a hint
LOOK_S = 0.1  # between two looks at what is waited for
TELL_S = 1.0  # between two lines of progress


class MoveReport(Struct, frozen=True, kw_only=True):
    """`state`: moved, waiting (for `waits_for`), different (nothing was opened). Counts by queue and state, runs by chain and state, as they are in the target."""

    move: str
    state: str
    waits_for: str = ""
    messages: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, int]] = {}
    things: dict[str, int] = {}
    digest: str = ""
    copied: int = 0
    took_s: float = 0.0


class Mover:
    """`tell` gets a line of progress. `wait_s`: how long step 3 may last. `new_id`: 32 hex digits."""

    def __init__(self, source: Movable, target: Movable, *, new_id: str, tell: Callable[[str], None], wait_s: float) -> None:
        self._source, self._target = source, target
        self._new_id, self._tell, self._wait_s = new_id, tell, wait_s
        self._copied = 0
        self._began = time.monotonic()

    async def run(self) -> MoveReport:
        """Begin the move, or go on with it. Raises Refused, EngineError."""
        source, target = await self._source.seal(), await self._target.seal()
        if source is not None and source.level is Level.MOVED:
            return await self._open_target(source, target)
        if source is None or target is None:
            source, target = await self._begin(source, target)
        if source.move != target.move or source.level is Level.FILLING or target.level is not Level.FILLING:
            raise _other_move(self._source, self._target, source, target)
        if source.level is Level.SEALED:
            deadline = time.monotonic() + self._wait_s
            waits_for = await self._ended(self._source, deadline) or await self._settled(deadline)
            if waits_for:
                return self._report(source, "waiting", waits_for=waits_for)
            source = await self._set(self._source, source, source.at(Level.CLOSED))
        waits_for = await self._ended(self._source, time.monotonic() + self._wait_s)
        if waits_for:
            return self._report(source, "waiting", waits_for=waits_for)
        sums, target = await self._copy(source, target)
        return await self._finish(source, target, sums)

    # ------------------------------------------------------------------------------------------------ steps 1 to 4
    async def _begin(self, source: Seal | None, target: Seal | None) -> tuple[Seal, Seal]:
        if source is not None:
            raise Refused(
                f"{self._source.shown} is sealed: it moves to {source.other}, and that is not {self._target.shown}.",
                why="Nothing was changed.",
                help="Give the target of that move, or take it back: beltline engine move --abort --from …",
            )
        if target is None:
            target = Seal(move=self._new_id, level=Level.FILLING, other=self._source.shown)
            target = await self._set(self._target, None, target)
            waits_for = await self._ended(self._target, time.monotonic() + self._wait_s)
            free = not waits_for and await self._target.empty()
            if not free:
                await self._target.set_seal(target, None)
                raise Refused(
                    f"{self._target.shown} is not empty." if not waits_for else f"{self._target.shown} is in use: {waits_for}.",
                    why="A move needs a target that holds no message, no run, no schedule and no id of an ended message. Nothing was changed.",
                    help="Use another schema (?schema=…), another database or another file.",
                )
        elif target.level is not Level.FILLING or (target.section, target.after) != (Section.QUEUES, ""):
            raise Refused(
                f"{self._target.shown} holds a part of another move, from {target.other}.",
                why="Nothing was changed.",
                help="If that move was taken back, drop this target (its schema, or its file) and begin again.",
            )
        source = Seal(move=target.move, level=Level.SEALED, other=self._target.shown)
        source = await self._set(self._source, None, source)
        self._tell(f"sealed {self._source.shown}: it takes no sends and hands nothing out any more")
        return source, target

    async def _ended(self, store: Movable, deadline: float) -> str:
        """Wait for the transactions that began before a seal. Returns what is still there at the deadline."""
        before = await store.underway()
        deadline = max(deadline, time.monotonic() + GRACE_S)
        while left := before & await store.underway():
            if time.monotonic() >= deadline:
                return f"{len(left)} open transactions, among them {min(left)}"
            await asyncio.sleep(LOOK_S)
        return ""

    async def _settled(self, deadline: float) -> str:
        told = 0.0
        while count := await self._source.leased():
            now = time.monotonic()
            if now >= deadline:
                return f"{count} leased messages"
            if now - told >= TELL_S:
                told = now
                self._tell(f"waiting for {count:,} leased messages (at most {deadline - now:.0f} s more)")
            await asyncio.sleep(LOOK_S)
        return ""

    # ------------------------------------------------------------------------------------------------ steps 5 and 6
    async def _copy(self, source: Seal, target: Seal) -> tuple[Sums | None, Seal]:
        """Returns the sums of the source, if all of it went by here."""
        sums = Sums() if (target.section, target.after) == (Section.QUEUES, "") else None
        if sums is None:
            self._tell(f"going on with {target.section}")
        limit, told = FIRST_PAGE, time.monotonic()
        while target.section is not Section.END:
            if await self._source.seal() != source:
                raise _taken_back(self._source)
            page = await self._source.take(target.section, target.after, limit)
            after = structs.replace(target, after=page.after) if page.after else structs.replace(target, section=target.section.next, after="")
            if not await self._target.put(page, target, after):
                raise _taken_back(self._target)
            target = after
            if sums is not None:
                _add(sums, page)
            self._copied += sum(isinstance(thing, MovedMessage) for thing in page.things)
            limit = _next_limit(page)
            if time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                self._tell(f"copied {self._copied:,} messages ({self._copied / (told - self._began):,.0f}/s)")
        return sums, target

    async def _finish(self, source: Seal, target: Seal, sums: Sums | None) -> MoveReport:
        self._tell("comparing")
        ours = sums or await _sums(self._source)
        theirs = await _sums(self._target)
        if ours != theirs:
            told = [f"{section}: {count} there, {theirs.things.get(section, 0)} here" for section, count in ours.things.items()]
            return self._report(source, "different", waits_for="; ".join(told), sums=theirs)
        source = await self._set(self._source, source, source.at(Level.MOVED))
        await self._set(self._target, target, None)
        await self._carry_orders()
        return self._report(source, "moved", sums=theirs)

    async def _open_target(self, source: Seal, target: Seal | None) -> MoveReport:
        """The source was closed for good; a target still sealed is complete."""
        if target is not None:
            if target.move != source.move or target.section is not Section.END:
                raise _other_move(self._source, self._target, source, target)
            await self._set(self._target, target, None)
        elif source.other != self._target.shown:
            raise Refused(f"The queues of {self._source.shown} have moved to {source.other} already.", why="Nothing was changed.")
        await self._carry_orders()
        return self._report(source, "moved")

    async def _carry_orders(self) -> None:
        """What operators have said about the size of fleets. The sizes themselves are decided anew."""
        if isinstance(self._source, Sizes) and isinstance(self._target, Sizes):
            said = {size.queue for size in await self._target.sizes() if size.ordered is not None}
            for size in await self._source.sizes():
                if size.ordered is not None and size.queue not in said:
                    await self._target.set_range(size.queue, *size.ordered)

    async def _set(self, store: Movable, before: Seal | None, after: Seal | None) -> Seal:
        if not await store.set_seal(before, after):
            raise _taken_back(store)
        assert after is not None or before is not None
        return after or before  # type: ignore[return-value]  # one of them is there

    def _report(self, seal: Seal, state: str, *, waits_for: str = "", sums: Sums | None = None) -> MoveReport:
        sums = sums or Sums()
        return MoveReport(
            move=seal.move,
            state=state,
            waits_for=waits_for,
            messages=sums.messages,
            runs=sums.runs,
            things=sums.things,
            digest=f"{sums.digest:016x}" if sums.things else "",
            copied=self._copied,
            took_s=time.monotonic() - self._began,
        )


async def take_back(source: Movable) -> Seal:
    """Open the source again, as long as the target was never opened. Raises Refused."""
    seal = await source.seal()
    if seal is None or seal.level is Level.FILLING:
        raise Refused(f"{source.shown} is not the source of a move.", why="Nothing was changed.")
    if seal.level is Level.MOVED:
        raise Refused(
            f"The move of {source.shown} to {seal.other} is complete.",
            why="The target may have been used. Nothing was changed.",
            help="Move back: beltline engine move, with --from and --to exchanged and an empty target.",
        )
    if not await source.set_seal(seal, None):
        raise _taken_back(source)
    return seal


def _next_limit(page: MovedPage) -> int:
    size = sum(len(thing.body) + len(thing.result or b"") + 500 if isinstance(thing, MovedMessage) else 2000 for thing in page.things)
    return max(1, min(MOST_THINGS, MOST_BYTES * max(1, len(page.things)) // max(1, size)))


def _add(sums: Sums, page: MovedPage) -> None:
    if page.section is not Section.KNOWN:  # those whose 24 h are over meanwhile may be left behind
        sums.add(page)


async def _sums(store: Movable) -> Sums:
    sums = Sums()
    for section in Section:
        if section in (Section.KNOWN, Section.END):
            continue
        after, limit = "", FIRST_PAGE
        while True:
            page = await store.take(section, after, limit)
            sums.add(page)
            limit, after = _next_limit(page), page.after
            if not after:
                break
    return sums


def _taken_back(store: Movable) -> BeltlineError:
    return Refused(
        f"The seal of {store.shown} was changed by somebody else.",
        why="Another process moves these queues, or the move was taken back.",
        help="Look who, then run the same command again: it goes on where this one stopped.",
    )


def _other_move(source: Movable, target: Movable, one: Seal, other: Seal) -> BeltlineError:
    return Refused(
        f"{source.shown} and {target.shown} take part in two different moves (to {one.other}, from {other.other}).",
        why="Nothing was changed.",
        help="Give both URLs of one move, or take one back: beltline engine move --abort --from …",
    )
