"""Hop 1 and 2, for tasks and chains alike: a call is checked, becomes a message with an id made here, and is made durable.

Every send can be repeated safely: when the store's answer is lost (`EngineUnavailable`, effect "unknown") the same ids are sent again a few times, and
the error that remains carries them (`error.ids`), so that the caller can go on with `with_options(id=…)`.
"""

import asyncio
import random
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, ParamSpec, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct, structs
from uuid_utils import uuid7

from beltline.core import limits
from beltline.core.errors import EngineUnavailable
from beltline.core.limits import Seconds
from beltline.core.message import Message
from beltline.core.names import MessageId, message_id
from beltline.core.outcome import Sent
from beltline.core.retry import Retry, as_retry
from beltline.handles import Handle, Host

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
    return structs.replace(before, **changes)


class Call(Generic[R_co]):
    """One call with its arguments checked and packed, ready to be sent: made by `task.call(…)`, taken by `send_many`."""

    __slots__ = ("message",)

    def __init__(self, message: Message) -> None:
        self.message = message


class Target(Protocol):
    """What a send needs to know of a task or chain."""

    @property
    def app(self) -> Host: ...

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
        return Call(self._target().message(args, kwargs, self._chosen()))

    def send(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Make one message durable. Raises InvalidArguments, BodyTooLarge, QueueFull (nothing stored), EngineUnavailable (`error.ids`)."""
        target = self._target()
        message = target.message(args, kwargs, self._chosen())
        return _handles(target, target.app.blocking(deliver(target.app, (message,))))[0]

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """`send` for asynchronous code."""
        target = self._target()
        message = target.message(args, kwargs, self._chosen())
        return _handles(target, await deliver(target.app, (message,)))[0]

    def send_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """All or none, in one write, in the order given: `task.send_many(task.call(x) for x in xs)`."""
        target = self._target()
        messages = [call.message for call in calls]
        return _handles(target, target.app.blocking(deliver(target.app, messages))) if messages else []

    async def asend_many(self, calls: Iterable[Call[R]]) -> list[Handle[R]]:
        """`send_many` for asynchronous code."""
        target = self._target()
        messages = [call.message for call in calls]
        return _handles(target, await deliver(target.app, messages)) if messages else []

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
    ) -> "Prepared[P, R]":
        """The same, with options for its sends. `delay` in seconds or a timedelta, `at` an aware datetime, `priority` -100..100 (larger first).

        `id` a UUID of your own (the same id twice = one message); `group` a FIFO lane; `dedup_key` within `dedup_window` (5 min) = the same message.
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
    for attempt in range(REPEATS + 1):
        try:
            return await engine.send(messages)
        except EngineUnavailable as error:
            error.ids = [message.id for message in messages]
            if attempt == REPEATS:
                raise
            await asyncio.sleep(random.uniform(0.02, 0.1) * 4**attempt)  # noqa: S311 - jitter, no secret
    raise AssertionError("unreachable")


def _handles(target: Target, sent: list[Sent]) -> list[Handle[Any]]:
    app, read = target.app, target.read_result
    return [Handle(app, each.id, read, each.new) for each in sent]
