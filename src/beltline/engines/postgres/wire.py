"""Batches as columns: every verb takes arrays, written as PostgreSQL's array literals, because one join of strings costs a tenth of adapting each value.

A column that holds nothing but defaults is NULL as a whole. Names that repeat (queues, tasks, chains) go as a list of the distinct ones and numbers into it.
"""

import math
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, LiteralString

import msgspec

from beltline.core import limits
from beltline.core.chain import gathered
from beltline.core.errors import NameInvalid, ValueInvalid
from beltline.core.flow import Flow, Unique, check_flow, turn_cost
from beltline.core.message import Gather, Message
from beltline.core.outcome import Ack, DeadLetter, Ended, Release, RetryAfter, Settlement
from beltline.engines.rows import PLAIN, encode_head, fields, key_of, pack

Column = str | None
FOREVER_S = 1e12  # a float of seconds beyond it is no date; whole milliseconds of it still fit 64 bits
ENDED = {Ended.SUCCEEDED: 1, Ended.CANCELLED: 2, Ended.EXPIRED: 3}
ON_DEAD = {"hold": 0, "skip": 1, "fail": 2}
NOTHING_SENT: tuple[Any, ...] = (None,) * 16
NOTHING_OPENED: tuple[Any, ...] = (None,) * 12
_MARK = b"\xc1beltline\xc1"  # 0xc1 is never used in MessagePack: it can only be the place of the list


def statement(text: str) -> LiteralString:
    """SQL put together from our own texts and the schema's checked name, as psycopg's types want it: never from a value."""
    return text  # pyright: ignore[reportReturnType]


def ceil_ms(seconds: float) -> int:
    """A delay is rounded up, so that nothing is early; a microsecond of float noise is not a millisecond more."""
    return math.ceil(seconds * 1000 - 0.001)


def numbers(values: Iterable[Any]) -> str:
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def ids(values: Iterable[str | None]) -> str:
    """Raises NameInvalid: what is no id would be read as something else, or as several."""
    given = list(values)
    some = [value for value in given if value]
    joined = "".join(some)
    try:  # all at once: one at a time is a tenth of the cost of a send
        sound = len(bytes.fromhex(joined)) * 2 == len(joined) and set(map(len, some)) <= {32}
    except ValueError:
        sound = False
    if not sound:
        raise NameInvalid(kind="id", name=next(value for value in some if key_of(value) is None))
    return "{" + ",".join([value or "NULL" for value in given]) + "}"


def known_ids(values: Iterable[str]) -> str:
    """The same for looking up: nobody has what is no id."""
    return ids([value if key_of(value) is not None else None for value in values])


def blobs(values: Iterable[bytes | None]) -> str:
    return "{" + ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """NUL, which a text cannot hold, becomes its picture U+2400; half a surrogate pair a question mark."""
    return "{" + ",".join(["NULL" if value is None else '"' + clean(value).replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]) + "}"


def clean(text: str) -> str:
    return text.replace("\x00", "\u2400").encode("utf-8", "replace").decode()


def some(values: Sequence[Any], write: Any = numbers) -> Column:
    """The column, or NULL if there is nothing in it."""
    for value in values:
        if value is not None:
            return str(write(values))
    return None


def key(text: str | None) -> bytes | None:
    """Keys of groups and dedup may hold anything a Python text can."""
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _index(names: Sequence[str]) -> tuple[str, Column]:
    """The distinct names, and for each of the given its number from 1 (NULL: all the first)."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names), 1)}
    return texts(places), None if len(places) < 2 else numbers([places[name] for name in names])


def check(message: Message) -> None:
    """What an array of milliseconds could not hold. Raises ValueInvalid."""
    if message.delay_s or message.ready_at is not None:
        limits.seconds("delay_s", message.delay_s, most=limits.MAX_DELAY_S)
        if message.ready_at is not None and not math.isfinite(message.ready_at):
            raise ValueInvalid(name="ready_at", value=message.ready_at, allowed="seconds since 1970")
    if message.dedup_key is not None:
        limits.seconds("dedup_window_s", message.dedup_window_s, most=limits.MAX_DEDUP_WINDOW_S)
    if message.expires_s is not None:
        limits.seconds("expires_s", message.expires_s)


def sent(messages: Sequence[Message], *, handed_on: bool = False) -> tuple[str, str, str, tuple[Any, ...]]:
    """Queues, tasks, chains, and the sixteen columns from p_id to p_body. `handed_on`: dedup keys mean nothing. Raises ValueInvalid."""
    rows = list(map(fields, messages))
    queues, queue = _index([row[1] for row in rows])
    tasks, task = _index([row[2] for row in rows])
    heads = [row[4:] for row in rows]
    known = ids([row[0] for row in rows])
    bodies = blobs([row[3] for row in rows])
    if all(head == PLAIN for head in heads):
        return queues, tasks, "{}", (known, queue, task, *NOTHING_SENT[3:15], bodies)
    for message in messages:
        check(message)
    places = [message.place for message in messages]
    chains, chain = _index([place.chain if place is not None else "" for place in places])
    inner = [place.parts[-1] if place is not None and place.parts else None for place in places]
    keyed = [None if handed_on or message.dedup_key is None else message for message in messages]
    columns = (
        known,
        queue,
        task,
        some([message.priority or None for message in messages]),
        some([None if message.ready_at is None else ceil_ms(min(message.ready_at, FOREVER_S)) for message in messages]),
        some([ceil_ms(message.delay_s) or None for message in messages]),
        some([None if message.expires_s is None else ceil_ms(min(message.expires_s, FOREVER_S)) for message in messages]),
        some([key(message.group) for message in messages], blobs),
        some([key(message.dedup_key) if message is not None else None for message in keyed], blobs),
        some([ceil_ms(message.dedup_window_s) if message is not None else None for message in keyed]),
        some([None if place is None else place.run for place in places], ids),
        chain,
        some([None if part is None else part.gather for part in inner], ids),
        some([None if part is None else part.index for part in inner]),
        some([None if head == PLAIN else encode_head(head) for head in heads], blobs),
        bodies,
    )
    return queues, tasks, chains, columns


def flows(messages: Sequence[Message], *, handed_on: bool = False) -> Column:
    """The column p_flow: what flow control looks at, as JSON (sql/flow.sql). `handed_on`: unique keys mean nothing. Raises NameInvalid, ValueInvalid."""
    if all(message.flow is None for message in messages):
        return None
    return some([_flow(message, handed_on) for message in messages], texts)


def _flow(message: Message, handed_on: bool) -> str | None:
    flow = message.flow
    if flow is None:
        return None
    check_flow(flow)
    told: dict[str, Any] = {}
    if flow.tenant:
        told["t"] = flow.tenant
    if flow.sticky:
        told["s"] = flow.sticky
    if flow.claims:
        told["c"] = [[claim.limit, claim.key, float(claim.cost)] for claim in flow.claims]
    if told:
        told["w"] = turn_cost(flow.weight)
        told["k"] = _digest(flow, message.priority)
    if flow.unique is not None and not handed_on:
        told["u"] = _unique(message, flow.unique)
    return msgspec.json.encode(told).decode() if told else None


def _digest(flow: Flow, priority: int) -> str:
    """What tells one lane of a queue from another, 32 bytes in hex."""
    name = (flow.tenant, flow.sticky, [(claim.limit, claim.key) for claim in flow.claims], priority)
    return sha256(pack(name)).hexdigest()


def _unique(message: Message, unique: Unique) -> list[Any]:
    """The last four are the packed envelope in parts: what a replacement brings, and what it leaves (sql/flow_unique.sql)."""
    head = fields(message)[4:]
    parts = [b"".join(map(pack, part)).hex() for part in (head[:1], head[1:8], head[8:10], head[10:])]
    return [unique.key, unique.states, _window(unique.window_s), unique.replace, _window(unique.most_s), *parts]


def _window(seconds: float) -> int | None:
    return ceil_ms(seconds) if seconds < FOREVER_S else None


def opened(gathers: Sequence[Gather], first_template: int) -> tuple[Any, ...]:
    """The twelve columns from g_id to g_suffix. `first_template`: place, from 1, of the first gather's message among the items; they follow in order."""
    if not gathers:
        return NOTHING_OPENED
    places: list[int | None] = []
    shells: list[tuple[bytes | None, bytes | None]] = []
    place = first_template
    for gather in gathers:
        if gather.then is None:
            places.append(None)
            shells.append((None, None))
            continue
        places.append(place)
        place += 1
        before, _, after = gathered(gather, [_MARK]).body.partition(b"\x91" + _MARK)
        shells.append((before, after))
    return (
        ids([gather.id for gather in gathers]),
        ids([gather.run for gather in gathers]),
        texts([gather.then.place.chain if gather.then is not None and gather.then.place is not None else "" for gather in gathers]),
        numbers([gather.expected for gather in gathers]),
        numbers([ON_DEAD[gather.on_dead] for gather in gathers]),
        ids([gather.outer.gather if gather.outer is not None else None for gather in gathers]),
        numbers([gather.outer.index if gather.outer is not None else None for gather in gathers]),
        numbers([ceil_ms(gather.result_ttl_s) for gather in gathers]),
        blobs([msgspec.msgpack.encode(gather) for gather in gathers]),
        numbers(places),
        blobs([before for before, _ in shells]),
        blobs([after for _, after in shells]),
    )


def templates(gathers: Iterable[Gather]) -> list[Message]:
    return [gather.then for gather in gathers if gather.then is not None]


class Ends:
    """A batch of settlements as the arguments of `settle` behind p_guest. Raises ValueInvalid."""

    _then: list[Message]

    def __init__(self, settlements: Sequence[Settlement]) -> None:
        self.settlements = settlements
        plain = all(type(settlement.outcome) is Ack for settlement in settlements)
        self.arguments: tuple[Any, ...] = (*self._receipts(), *self._ends(plain), *self._follow(), self._snoozes(plain))
        self.arguments += (flows(self._then, handed_on=True),)

    def _receipts(self) -> tuple[Any, ...]:
        return (
            known_ids([settlement.receipt.id for settlement in self.settlements]),
            numbers([settlement.receipt.epoch for settlement in self.settlements]),
            numbers([getattr(settlement.outcome, "ran_s", 0.0) for settlement in self.settlements]),
        )

    def _ends(self, plain: bool) -> tuple[Any, ...]:
        if plain:
            acks = [settlement.outcome for settlement in self.settlements if isinstance(settlement.outcome, Ack)]
            results = [ack.result for ack in acks]
            return (
                None,
                some([None if ack.ended is Ended.SUCCEEDED else ENDED[ack.ended] for ack in acks]) and numbers([ENDED[ack.ended] for ack in acks]),
                None,
                None,
                some(results, blobs),
                None if not any(result is not None for result in results) else numbers([ceil_ms(ack.result_ttl_s) for ack in acks]),
                some([ack.part for ack in acks], blobs),
                some([ack.note or None for ack in acks], texts),
                None,
                None,
            )
        rows = [_row(settlement) for settlement in self.settlements]
        op, ended, delay, lost, result, ttl, part, note, error, failure = zip(*rows, strict=True)
        return (
            numbers(op),
            numbers(ended),
            numbers(delay),
            numbers(lost),
            blobs(result),
            numbers(ttl),
            blobs(part),
            texts(note),
            texts(error),
            blobs(failure),
        )

    def _snoozes(self, plain: bool) -> Column:
        if plain:
            return None
        snoozes = [settlement.outcome.queue_s if isinstance(settlement.outcome, Release) else 0.0 for settlement in self.settlements]
        return some([ceil_ms(limits.seconds("queue_s", queue_s, most=limits.MAX_DELAY_S)) or None for queue_s in snoozes])

    def _follow(self) -> tuple[Any, ...]:
        """c_parent to g_suffix: who carries on whose part, the messages, the gathers."""
        carried: list[tuple[int, str, int]] = []
        messages: list[Message] = []
        parents: list[int] = []
        gathers: list[Gather] = []
        gather_parents: list[int] = []
        for place, settlement in enumerate(self.settlements, 1):
            ack = settlement.outcome
            if not isinstance(ack, Ack) or not (ack.then or ack.gathers):
                continue
            messages += ack.then
            parents += [place] * len(ack.then)
            gathers += ack.gathers
            gather_parents += [place] * len(ack.gathers)
            for message in (*ack.then, *templates(ack.gathers)):
                if message.place is not None:
                    carried += [(place, part.gather, part.index) for part in message.place.parts]
            carried += [(place, gather.outer.gather, gather.outer.index) for gather in ack.gathers if gather.outer is not None]
        self._then = [*messages, *templates(gathers)]
        if not messages and not gathers:
            return (None, None, None, "{}", "{}", "{}", 0, None, *NOTHING_SENT, None, *NOTHING_OPENED)
        follow = templates(gathers)
        queues, tasks, chains, columns = sent([*messages, *follow], handed_on=True) if messages or follow else ("{}", "{}", "{}", NOTHING_SENT)
        return (
            numbers([place for place, _, _ in carried]) if carried else None,
            ids([gather for _, gather, _ in carried]) if carried else None,
            numbers([part for _, _, part in carried]) if carried else None,
            queues,
            tasks,
            chains,
            len(follow),
            numbers([*parents, *([0] * len(follow))]),
            *columns,
            numbers(gather_parents) if gathers else None,
            *opened(gathers, len(messages) + 1),
        )


def _row(settlement: Settlement) -> tuple[Any, ...]:
    """op, ended, delay, lost, result, ttl, part, note, error, failure."""
    outcome = settlement.outcome
    match outcome:
        case Ack():
            return (0, ENDED[outcome.ended], None, None, outcome.result, ceil_ms(outcome.result_ttl_s), outcome.part, outcome.note, None, None)
        case RetryAfter(failure=failure):
            delay = ceil_ms(limits.seconds("delay_s", outcome.delay_s, most=limits.MAX_DELAY_S))
            why = ": ".join(filter(None, (failure.type, failure.text)))
            return (1, None, delay, outcome.lost, None, None, None, why, failure.type, msgspec.msgpack.encode(failure))
        case Release():
            delay = ceil_ms(limits.seconds("delay_s", outcome.delay_s, most=limits.MAX_DELAY_S))
            return (2, None, delay, None, None, None, None, outcome.why, None, None)
        case DeadLetter(failure=failure):
            return (3, None, None, outcome.lost, None, None, None, outcome.reason, failure.type, msgspec.msgpack.encode(failure))
