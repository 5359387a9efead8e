"""The size of every queue's fleet, and the log of the decisions that made it: calls of the functions in fleets.sql."""

import msgspec

from beltline.core.scaling import LOGGED, Decision, Size
from beltline.engines.postgres import wire
from beltline.engines.postgres.browsing import Ask, not_declared

_decision = msgspec.msgpack.Decoder(Decision).decode


async def sizes(ask: Ask) -> list[Size]:
    rows = await ask(
        "SELECT q.name, f.turn, f.slots, f.decided, f.state, f.least, f.most FROM beltline.fleet f JOIN beltline.queue q ON q.n = f.queue"
        ' ORDER BY q.name COLLATE "C"',
        (),
    )
    return [
        Size(queue=name, turn=turn, slots=slots, decided_at=decided / 1000, state=state, ordered=None if least is None else (least, most))
        for name, turn, slots, decided, state, least, most in rows
    ]


async def set_size(ask: Ask, now: int | None, queue: str, turn: int, slots: int, state: bytes, log: Decision | None) -> bool:
    """Raises QueueNotDeclared."""
    packed = None if log is None else msgspec.msgpack.encode(log)
    [(done,)] = await ask(
        "SELECT beltline.set_size(%s::bigint, %s::text, %s::bigint, %s::int, %s::bytea, %s::bytea, %s::int)",
        (now, wire.clean(queue), turn, slots, state, packed, LOGGED),
    )
    if done is None:
        raise await not_declared(ask, queue)
    return bool(done)


async def set_range(ask: Ask, now: int | None, queue: str, least: int | None, most: int | None) -> None:
    """None: the workers' own range again. Raises QueueNotDeclared."""
    [(found,)] = await ask("SELECT beltline.set_range(%s::bigint, %s::text, %s::int, %s::int)", (now, wire.clean(queue), least, most))
    if not found:
        raise await not_declared(ask, queue)


async def decisions(ask: Ask, queue: str | None, limit: int) -> list[Decision]:
    """Raises QueueNotDeclared."""
    most = min(limit, 1 << 31)
    if queue is None:
        rows = await ask("SELECT data FROM beltline.decision ORDER BY n DESC LIMIT %s::bigint", (most,))
    else:
        found = await ask("SELECT n FROM beltline.queue WHERE name = %s::text", (wire.clean(queue),))
        if not found:
            raise await not_declared(ask, queue)
        rows = await ask("SELECT data FROM beltline.decision WHERE queue = %s::int ORDER BY n DESC LIMIT %s::bigint", (found[0][0], most))
    return [_decision(data) for (data,) in rows]
