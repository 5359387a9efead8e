"""What people do to queues, messages and runs, workers' signs of life, and upkeep: calls of the functions in control.sql and upkeep.sql.

Each call is one transaction. Verbs that may touch millions go in pieces, so that no lock is held for long. `now`: the engine's time in ms, None for the
server's own. `woken`, beside an answer: numbers of the queues in which something may be received now, as one text; "" = in none.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from beltline.core import limits
from beltline.core.errors import NotFound, Refused, ValueInvalid
from beltline.core.flow import check_switch, queue_limits
from beltline.core.lifecycle import State
from beltline.core.message import Receipt
from beltline.core.names import MessageId, queue_name
from beltline.core.outcome import Settled
from beltline.core.queues import QueueSpec, rank
from beltline.core.views import MessageFilter, WorkerView
from beltline.engines.postgres import wire
from beltline.engines.postgres.browsing import Ask, not_declared
from beltline.engines.rows import key_of

PIECE = 2000  # messages per transaction of a verb that may touch millions
RETAINED = 5000  # and of each kind per transaction of retain
_MOST = (1 << 31) - 1

_spec = msgspec.msgpack.Decoder(QueueSpec).decode


async def call(ask: Ask, function: str, types: str, *values: object) -> tuple[tuple[Any, ...], str]:
    """The one row of a function, and the woken. Each argument goes with its type: an array of nothing has none of its own."""
    arguments = ", ".join(f"%s::{type}" for type in types.split())
    [row] = await ask(f"SELECT f.*, current_setting('beltline.woken', true) FROM beltline.{function}({arguments}) AS f", values)
    return row[:-1], row[-1] or ""


# ------------------------------------------------------------------------------------------------------------------ queues
async def declare(ask: Ask, now: int | None, specs: Sequence[QueueSpec]) -> str:
    """Returns the woken. Raises NameInvalid, ValueInvalid."""
    for spec in specs:
        queue_name(spec.name)
        if spec.kill_switch is not None:
            check_switch(spec.kill_switch)
        queue_limits(spec.limits)
        if spec.on_dead not in ("hold", "skip"):
            raise ValueInvalid(name="on_dead", value=spec.on_dead, allowed="hold or skip")
    while True:
        seen, known = await declarations(ask)
        changed = {spec.name: spec for spec in specs if known.get(spec.name) != spec}
        if not changed:
            return ""  # the usual case: every start of a worker declares what is declared already
        (declared,), woken = await call(ask, "declare", _DECLARE, now, seen, *as_columns([*changed.values()], [*(known | changed).values()]))
        if declared:
            return woken


async def declarations(ask: Ask) -> tuple[int, dict[str, QueueSpec]]:
    """Their version, and the queues by name."""
    [(seen, stored)] = await ask(
        "SELECT coalesce((SELECT value FROM beltline.meta WHERE key = 'declared'), '0')::bigint, ARRAY(SELECT spec FROM beltline.queue ORDER BY n)",
        (),
    )
    return int(seen), {spec.name: spec for spec in map(_spec, stored)}


def as_columns(specs: Sequence[QueueSpec], everything: Sequence[QueueSpec]) -> tuple[str, ...]:
    """What `declare` gets behind p_seen: the queues to declare, and the feeds of all there will be."""
    return (*_numbers(specs), *_feeds(everything), wire.texts(map(_flow, specs)))


_DECLARE = "bigint bigint text[] bytea[] float8[] float8[] float8[] bigint[] int[] boolean[] text[] text[] int[] jsonb[]"


def _numbers(specs: Sequence[QueueSpec]) -> tuple[str, ...]:
    return (
        wire.texts(spec.name for spec in specs),
        wire.blobs(msgspec.msgpack.encode(spec) for spec in specs),
        wire.numbers(float(spec.max_backlog) for spec in specs),
        wire.numbers(float(spec.high_water) for spec in specs),
        wire.numbers(float(spec.low_water) for spec in specs),
        wire.numbers(round(rank(0.0, -1, spec.ageing_s) * 1000) for spec in specs),
        wire.numbers(min(spec.max_deliveries, _MOST) for spec in specs),
        wire.numbers(spec.on_dead == "skip" for spec in specs),
    )


def _feeds(specs: Sequence[QueueSpec]) -> tuple[str, str, str]:
    feeds = [(spec.name, feed) for spec in specs for feed in spec.feeds]
    return (
        wire.texts(name for name, _ in feeds),
        wire.texts(feed.queue for _, feed in feeds),
        wire.numbers(min(feed.fan_out, _MOST) for _, feed in feeds),
    )


def _flow(spec: QueueSpec) -> str:
    """Limits and kill switch of a queue, as `_flow_declare` reads them."""
    switch = spec.kill_switch
    rule = None if switch is None else [switch.share, switch.least, int(switch.window_s * 500), switch.pause_s, switch.tries]
    return msgspec.json.encode({"l": spec.limits, "k": rule}).decode()


async def pause(ask: Ask, now: int | None, name: str, paused: bool) -> str:
    """Or resume. Returns the woken. Raises QueueNotDeclared."""
    (answer,), woken = await call(ask, "pause", "bigint text boolean", now, wire.clean(name), paused)
    if answer is None:
        raise await not_declared(ask, name)
    return woken


async def purge(ask: Ask, now: int | None, name: str) -> tuple[int, str]:
    """How many were ended, and the woken. Raises QueueNotDeclared."""
    total, before, more, every = 0, None, True, ""
    while more:
        (count, more, before), woken = await call(ask, "purge", "bigint text bigint int", now, wire.clean(name), before, PIECE)
        if count is None:
            raise await not_declared(ask, name)
        total += count
        every += woken
    return total, every


# ---------------------------------------------------------------------------------------------------------------- messages
async def cancel(ask: Ask, now: int | None, ids: Sequence[str], reason: str) -> tuple[list[State | None], str]:
    known = [id for id in ids if key_of(id) is not None]
    (states,), woken = await call(ask, "cancel", "bigint uuid[] text", now, wire.ids(known), wire.clean(reason))
    answers = iter(states)
    return [None if key_of(id) is None or (state := next(answers)) is None else State(state) for id in ids], woken


async def cancel_asked(ask: Ask, receipts: Sequence[Receipt]) -> list[Receipt]:
    rows = await ask(
        "SELECT r.ord FROM unnest(%s::uuid[], %s::int[]) WITH ORDINALITY AS r(id, epoch, ord) JOIN beltline.asked a ON a.id = r.id"
        " JOIN beltline.lease l ON l.id = r.id AND l.epoch = r.epoch ORDER BY r.ord",
        _receipts(receipts),
    )
    return [receipts[place - 1] for (place,) in rows]


def _receipts(receipts: Sequence[Receipt]) -> tuple[str, str]:
    return wire.ids(receipt.id if key_of(receipt.id) is not None else None for receipt in receipts), wire.numbers(
        receipt.epoch for receipt in receipts
    )


async def hurry(ask: Ask, now: int | None, ids: Sequence[str]) -> tuple[int, str]:
    (count,), woken = await call(ask, "hurry", "bigint uuid[]", now, wire.ids(id for id in ids if key_of(id) is not None))
    return count, woken


_WHERE = "uuid[] text[] text[] uuid[] bytea text bigint bigint"


def _where(where: MessageFilter) -> tuple[object, ...]:
    """The filter as p_ids to p_sent_before of control.sql; None does not filter. Its states do not matter: only dead ones are meant."""
    return (
        wire.ids(id for id in where.ids if key_of(id) is not None) if where.ids else None,
        wire.texts(where.queues) if where.queues else None,
        wire.texts(where.tasks) if where.tasks else None,
        wire.ids(run for run in (where.run,) if key_of(run) is not None) if where.run else None,
        wire.key(where.group) if where.group else None,
        wire.clean(where.error) if where.error else None,
        wire.ceil_ms(where.sent_after) if where.sent_after else None,
        wire.ceil_ms(where.sent_before) if where.sent_before else None,
    )


async def redrive(ask: Ask, now: int | None, where: MessageFilter, limit: int, target: str | None) -> tuple[list[MessageId], str]:
    """Ids of those that are ready again, oldest sent first, and the woken. Raises QueueNotDeclared."""
    moved: list[MessageId] = []
    after, every = 0, ""
    goal = None if target is None else wire.clean(target)
    while len(moved) < limit:
        piece = min(limit - len(moved), PIECE)
        (ids, after), woken = await call(ask, "redrive", f"bigint {_WHERE} int text bigint", now, *_where(where), piece, goal, after)
        if ids is None:
            raise await not_declared(ask, target or "")
        moved += ids
        every += woken
        if not after:
            break
    return moved, every


async def delete(ask: Ask, now: int | None, where: MessageFilter, limit: int) -> tuple[int, str]:
    total, more, every = 0, True, ""
    while more and total < limit:
        (count, more), woken = await call(ask, "delete_dead", f"bigint {_WHERE} int", now, *_where(where), min(limit - total, PIECE))
        total += count
        every += woken
    return total, every


async def edit(ask: Ask, now: int | None, id: str, body: bytes, max_body: int) -> None:
    """Raises NotFound, Refused, BodyTooLarge."""
    state = None
    if key_of(id) is not None:
        (state,), _ = await call(ask, "edit", "bigint uuid bytea", now, id, body if len(body) <= max_body else None)
    if state is None:
        raise NotFound(kind="message", name=id)
    if state >= 0:
        raise Refused(f"Message {id} is {State(state).word}.", why="Only dead and delayed messages can be edited.")
    limits.body(body, max_body)


async def cancel_run(ask: Ask, now: int | None, id: str, reason: str) -> str:
    """Returns the woken. Raises NotFound."""
    found, woken = False, ""
    if key_of(id) is not None:
        (found,), woken = await call(ask, "cancel_run", "bigint uuid text", now, id, wire.clean(reason))
    if not found:
        raise NotFound(kind="run", name=id)
    return woken


# ------------------------------------------------------------------------------------------------- deliveries and workers
async def progress(ask: Ask, notes: Sequence[tuple[Receipt, bytes]]) -> list[Settled]:
    if not notes:
        return []
    receipts = _receipts([receipt for receipt, _ in notes])
    (held,), _ = await call(ask, "progress", "uuid[] int[] bytea[]", *receipts, wire.blobs(value for _, value in notes))
    return [Settled.DONE if done else Settled.LEASE_LOST for done in held]


async def beat(ask: Ask, now: int | None, worker: WorkerView) -> None:
    serves = worker.state == "up", wire.texts(worker.queues)
    await call(ask, "beat", "bigint text bytea boolean text[]", now, wire.clean(worker.id), msgspec.msgpack.encode(worker), *serves)


async def forget(ask: Ask, now: int | None, worker: str) -> None:
    await call(ask, "forget", "bigint text", now, wire.clean(worker))


# ------------------------------------------------------------------------------------------------------------------ upkeep
async def sweep(ask: Ask, now: int | None) -> tuple[int, str]:
    """How many messages moved, and the woken."""
    (queues,), _ = await call(ask, "to_sweep", "bigint", now)
    total, every = 0, ""
    for queue in queues:
        (count,), woken = await call(ask, "sweep", "bigint int", now, queue)
        total += count
        every += woken
    return total, every


async def retain(ask: Ask, now: int | None, history_ms: int, limit: int) -> int:
    """How many messages, runs, results and keys were dropped, at most `limit` of each."""
    total, more = 0, True
    while more and limit > 0:
        (count, more), _ = await call(ask, "retain", "bigint bigint int", now, history_ms, min(limit, RETAINED))
        total += count
        limit -= RETAINED
    return total


async def rollup(ask: Ask, now: int | None) -> int:
    """Rows of counters summed up; 0 if somebody else is at it."""
    (count,), _ = await call(ask, "rollup", "bigint", now)
    return int(count)
