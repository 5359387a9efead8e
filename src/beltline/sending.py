"""Hop 1 and 2, for tasks and chains alike: a call is checked, becomes a message with an id made here, and is made durable.

Every send can be repeated safely: when the store's answer is lost (`EngineUnavailable`, effect "unknown") the same ids are sent again a few times, and
the error that remains carries them (`error.ids`), so that the caller can go on with `with_options(id=…)`.

In the caller's own transaction (`with_options(connection=…)`) nothing is repeated and nothing is durable yet: the message exists when, and only when, that
transaction commits. `send(…, connection=…)` means the same where the task has no parameter of that name; type checkers know only the first spelling, because a
signature made of the task's own (ParamSpec) has no room for a parameter more.
"""

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, ParamSpec, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct, structs
from uuid_utils import uuid7

from beltline.core import limits
from beltline.core.errors import EngineUnavailable, Unsupported
from beltline.core.limits import Seconds
from beltline.core.message import Message
from beltline.core.names import MessageId, message_id
from beltline.core.outcome import Sent
from beltline.core.retry import Retry, as_retry
from beltline.engines.guests import guest, is_async
from beltline.engines.protocol import Engine, Transactional
from beltline.handles import Handle, Host
from beltline.limiting import NO_FLOW, Debounce, FlowOptions, Throttle, Unique, flow_options

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

REPEATS = 3


def new_id() -> MessageId:
    """A fresh UUIDv7 as 32 hex digits: it sorts by time."""
    return MessageId(uuid7().hex)


class Options(Struct, frozen=True, kw_only=True):
    """What may be said about one send beside its arguments; None or the default = as the task says."""

    id: MessageId | None = None
    delay_s: float = 0.0
    ready_at: float | None = None
    priority: int | None = None
    group: str | None = None
    dedup_key: str | None = None
    dedup_window_s: float | None = None
    headers: dict[str, str] = {}
    expires_s: float | None = None
    timeout_s: float | None = None
    retry: Retry | None = None
    connection: Any = None
    flow: FlowOptions = NO_FLOW


DEFAULTS = Options()


def options(
    before: Options,
    *,
    id: "str | UUID | None" = None,
    delay: Seconds | None = None,
    at: datetime | None = None,
    priority: int | None = None,
    group: str | None = None,
    dedup_key: str | None = None,
    dedup_window: Seconds | None = None,
    headers: Mapping[str, str] | None = None,
    expires: Seconds | None = None,
    timeout: Seconds | None = None,
    retry: "Retry | int | bool | None" = None,
    connection: object | None = None,
    tenant: str | None = None,
    weight: float | None = None,
    cost: float | None = None,
    sticky: str | None = None,
    unique_key: "str | Unique | None" = None,
    debounce: "Debounce | None" = None,
    throttle: "Throttle | None" = None,
) -> Options:
    """`before` with the given changes, each checked. Raises ValueInvalid, NameInvalid."""
    changes: dict[str, Any] = {}
    if id is not None:
        changes["id"] = message_id(id)
    if delay is not None:
        changes["delay_s"] = limits.seconds("delay", delay, most=limits.MAX_DELAY_S)
    if at is not None:
        changes["ready_at"] = limits.instant("at", at)
    if priority is not None:
        changes["priority"] = limits.priority(priority)
    if group is not None:
        changes["group"] = limits.key("group", group)
    if dedup_key is not None:
        changes["dedup_key"] = limits.key("dedup_key", dedup_key)
    if dedup_window is not None:
        changes["dedup_window_s"] = limits.seconds("dedup_window", dedup_window, most=limits.MAX_DEDUP_WINDOW_S)
    if headers is not None:
        changes["headers"] = limits.headers({**before.headers, **headers})
    if expires is not None:
        changes["expires_s"] = limits.seconds("expires", expires, most=limits.MAX_DELAY_S)
    if timeout is not None:
        changes["timeout_s"] = limits.seconds("timeout", timeout, least=0.001, most=limits.MAX_LEASE_S)
    if retry is not None:
        changes["retry"] = as_retry(retry)
    if connection is not None:
        changes["connection"] = connection
    flow = flow_options(
        before.flow, tenant=tenant, weight=weight, cost=cost, sticky=sticky, unique_key=unique_key, debounce=debounce, throttle=throttle
    )
    return structs.replace(before, flow=flow, **changes)


class Call(Generic[R_co]):
    """One call with its arguments checked and packed, ready to be sent: made by `task.call(…)`, taken by `send_many`."""

    __slots__ = ("message", "target")

    def __init__(self, message: Message, target: "Target") -> None:
        self.message = message
        self.target = target


class Target(Protocol):
    """What a send needs to know of a task or chain."""

    @property
    def app(self) -> Host: ...

    def takes(self, name: str) -> bool:
        """Whether a call may have an argument of this name."""
        ...

    def message(self, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Options) -> Message: ...

    def read_result(self, data: bytes) -> Any: ...


class Sendable(Generic[P, R]):
    """The sending face of tasks and chains, with or without options."""

    def _target(self) -> Target:
        raise TypeError("a Sendable has a target")  # pragma: no cover: every subclass has one

    def _chosen(self) -> Options:
        return DEFAULTS

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A typed bound call for `send_many`. Raises InvalidArguments now, not at the send."""
        target = self._target()
        return Call(target.message(args, kwargs, self._chosen()), target)

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Make one message durable. Raises InvalidArguments, BodyTooLarge, QueueFull (nothing stored), EngineUnavailable (`error.ids`)."""
        target, chosen, named = self._target(), self._chosen(), kwargs
        if "connection" in kwargs:
            chosen, named = _apart(target, chosen, kwargs)  # type: ignore[assignment]  # what is left are the task's own again
        message = target.message(args, named, chosen)
        if chosen.connection is not None:
            return _handles(target, deliver_in(target.app, chosen.connection, (message,)))[0]
        return _handles(target, target.app.blocking(deliver(target.app, (message,))))[0]

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """`send` for asynchronous code."""
        target, chosen, named = self._target(), self._chosen(), kwargs
        if "connection" in kwargs:
            chosen, named = _apart(target, chosen, kwargs)  # type: ignore[assignment]  # what is left are the task's own again
        message = target.message(args, named, chosen)
        if chosen.connection is not None:
            return _handles(target, await adeliver_in(target.app, chosen.connection, (message,)))[0]
        return _handles(target, await deliver(target.app, (message,)))[0]

    def send_many(self, calls: Iterable[Call[R]], *, connection: object | None = None) -> list[Handle[R]]:
        """All or none, in one write, in the order given: `task.send_many(task.call(x) for x in xs)`. `connection`: in that one's transaction."""
        return send_calls(self._target().app, list(calls), self._chosen().connection if connection is None else connection)

    async def asend_many(self, calls: Iterable[Call[R]], *, connection: object | None = None) -> list[Handle[R]]:
        """`send_many` for asynchronous code."""
        return await asend_calls(self._target().app, list(calls), self._chosen().connection if connection is None else connection)

    def with_options(
        self,
        *,
        id: "str | UUID | None" = None,
        delay: Seconds | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Seconds | None = None,
        headers: Mapping[str, str] | None = None,
        expires: Seconds | None = None,
        timeout: Seconds | None = None,
        retry: "Retry | int | bool | None" = None,
        connection: object | None = None,
        tenant: str | None = None,
        weight: float | None = None,
        cost: float | None = None,
        sticky: str | None = None,
        unique_key: "str | Unique | None" = None,
        debounce: "Debounce | None" = None,
        throttle: "Throttle | None" = None,
    ) -> "Prepared[P, R]":
        """The same, with options for its sends. `delay` in seconds or a timedelta, `at` an aware datetime, `priority` -100..100 (larger first).

        `id` a UUID of your own (the same id twice = one message); `group` a FIFO lane; `dedup_key` within `dedup_window` (5 min) = the same message.
        `connection` a database connection or session of yours on the engine's store: sends become part of its transaction (docs/howto/transactions.md).
        `tenant`, with its `weight` (1), whose message it is; `cost` what it uses of the task's limits (1); `sticky` a key that one worker keeps;
        `unique_key`, `debounce` (key, wait, most), `throttle` (key, time): which other message stands for it (docs/howto/limits-and-fairness.md).
        """
        chosen = options(
            self._chosen(),
            id=id,
            delay=delay,
            at=at,
            priority=priority,
            group=group,
            dedup_key=dedup_key,
            dedup_window=dedup_window,
            headers=headers,
            expires=expires,
            timeout=timeout,
            retry=retry,
            connection=connection,
            tenant=tenant,
            weight=weight,
            cost=cost,
            sticky=sticky,
            unique_key=unique_key,
            debounce=debounce,
            throttle=throttle,
        )
        return Prepared(self._target(), chosen)


class Prepared(Sendable[P, R]):
    """A task or chain with options."""

    def __init__(self, target: Target, chosen: Options) -> None:
        self._for = target
        self._options = chosen

    def _target(self) -> Target:
        return self._for

    def _chosen(self) -> Options:
        return self._options


async def deliver(app: Host, messages: "tuple[Message, ...] | list[Message]") -> list[Sent]:
    """Hop 2 and 3: the app's engine makes the messages durable; unknown answers are repeated with the same ids."""
    engine = await app.ready()
    unknown = False
    for attempt in range(REPEATS + 1):
        try:
            return await engine.send(messages)
        except EngineUnavailable as error:
            unknown = unknown or error.effect == "unknown"  # a later failure without effect says nothing about an earlier try
            if unknown and error.effect == "none":
                error = EngineUnavailable(error.what, effect="unknown", help=error.help)
            error.ids = [message.id for message in messages]
            if attempt == REPEATS:
                raise error from None
            await asyncio.sleep(random.uniform(0.02, 0.1) * 4**attempt)  # noqa: S311 - jitter, no secret
    raise AssertionError("unreachable")


def deliver_in(app: Host, connection: Any, messages: Sequence[Message]) -> list[Sent]:
    """The same in the transaction of a synchronous connection, in this thread. Raises Unsupported, HandleMisused, and the refusals of a send."""
    if is_async(connection):
        guest(connection)  # says why not
    return transactional(app.blocking(app.ready(connection))).send_with(connection, messages)


async def adeliver_in(app: Host, connection: Any, messages: Sequence[Message]) -> list[Sent]:
    """`deliver_in` for an asynchronous connection, in this event loop; an apsw.Connection, which knows no such difference, may come too."""
    return await transactional(await app.ready(connection)).asend_with(connection, messages)


def transactional(engine: Engine) -> Transactional:
    """Raises Unsupported."""
    if isinstance(engine, Transactional):
        return engine
    raise Unsupported(feature="writing in your own transaction", need=1, have=0, engine=engine.name, engines=("postgresql", "sqlite"))


def send_calls(app: Host, calls: list[Call[Any]], connection: Any = None) -> list[Handle[Any]]:
    """All or none, in one write, in the order given, whatever task or chain each is for."""
    messages = [call.message for call in calls]
    if not messages:
        return []
    sent = app.blocking(deliver(app, messages)) if connection is None else deliver_in(app, connection, messages)
    return [Handle(app, each.id, call.target.read_result, each.new) for call, each in zip(calls, sent, strict=True)]


async def asend_calls(app: Host, calls: list[Call[Any]], connection: Any = None) -> list[Handle[Any]]:
    """`send_calls` for asynchronous code."""
    messages = [call.message for call in calls]
    if not messages:
        return []
    sent = await deliver(app, messages) if connection is None else await adeliver_in(app, connection, messages)
    return [Handle(app, each.id, call.target.read_result, each.new) for call, each in zip(calls, sent, strict=True)]


def _apart(target: Target, chosen: Options, kwargs: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """`connection=` among the arguments is the transaction, unless the task takes an argument of that name."""
    if target.takes("connection"):
        return chosen, kwargs
    named = dict(kwargs)
    return options(chosen, connection=named.pop("connection")), named


def _handles(target: Target, sent: list[Sent]) -> list[Handle[Any]]:
    app, read = target.app, target.read_result
    return [Handle(app, each.id, read, each.new) for each in sent]
